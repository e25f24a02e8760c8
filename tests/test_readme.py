"""The README's promises that a machine can check, and every command that any page tells a reader to type."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from runner.__main__ import dispatch
from runner.cli import VERBS
from runner.config.compose import compose
from runner.errors import InputError
from runner.job.changes import is_accepting

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(
    r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL
)  # a paragraph names the block's file
COMMAND = re.compile(r"^(?:runner|python -m runner)((?: .*)?)$", re.MULTILINE)
INLINE = re.compile(r"`python -m runner((?: [^`]*)?)`")
ENGINE = ("hydra/launcher=", "hydra.launcher.")


def blocks(page, language):
    """The contents of a page's fenced blocks in one language."""
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def commands(page):
    """The words after `python -m runner` of every command on a page, in its sh blocks and in its sentences."""
    shell = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [*COMMAND.findall(shell), *INLINE.findall(page.read_text())]
    return [shlex.split(line, comments=True) for line in lines]


def write_files(page, folder):
    """Writes the files that a page shows into a folder."""
    for name, text in FILE.findall(page.read_text()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def words_or_page(value):
    """A test's name for one of its parameters."""
    return value.stem if isinstance(value, Path) else shlex.join(value)


COMMANDS = [(page, words) for page in PAGES for words in commands(page)]


@pytest.fixture
def harmless(monkeypatch):
    """The program up to the point where it would start something: a run is composed, a verb's words are parsed."""
    monkeypatch.setattr("runner.job.launch.launch", lambda overrides, task, config_dir: compose(overrides, config_dir))
    for verb in VERBS:
        monkeypatch.setattr(f"runner.cli.{verb.replace('-', '_')}.main", lambda arguments: 0)
    monkeypatch.setattr(
        "runner.cli.resume.main",
        lambda arguments: bool(compose([w for w in arguments.overrides if not is_accepting(w)])) - 1,
    )
    monkeypatch.setattr("runner.cli.ls.main", lambda arguments: bool(compose(arguments.where)) - 1)


def try_command(words):
    """What the program answers. A sweep only shows its jobs; an engine's software need not be here."""
    engine = [word for word in words if word.startswith(ENGINE)]
    if engine:
        compose(engine)
    dry = ["sweep.dry_run=true"] if "-m" in words else []
    return dispatch([*(word for word in words if word not in engine), *dry])


def slow_if_a_sweep(page, words):
    return pytest.param(page, words, marks=pytest.mark.slow if "-m" in words and page != "README" else ())


@pytest.mark.parametrize(("page", "words"), [slow_if_a_sweep(*one) for one in COMMANDS], ids=words_or_page)
def test_every_command_is_one_that_the_program_takes(page, words, harmless, tmp_path, monkeypatch):
    write_files(page, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert try_command(words) == 0


@pytest.mark.parametrize(
    "command",
    [
        *(
            "ls outputs --sorted val/loss",
            "ls outputs --where optimizer.rate=1",
            "evaluate",
            "evaluate RUN --spilt test",
        ),
        *("verify RUN --kills often", "resume RUN trainer.epoch=20", "show RUN --all", "train", "--quietly"),
        *("--cfg jobs", "--resolve", "scheduler=cosin", "optimizer.rate=1", "--config-dir nowhere model=tiny"),
        *("-m seed=1,2 optimizer.rate=1", "-m seed=1,2 hydra/launcher=rays", "-m seed=1,2 hydra.launcher.cpu=1"),
    ],
)
def test_a_wrong_command_is_found(command, harmless):
    with pytest.raises(InputError):
        try_command(shlex.split(command))


def test_there_are_commands_to_check():
    assert len([page for page, _ in COMMANDS if page == README]) > 4
    assert {words[0] for _, words in COMMANDS if words} >= set(VERBS)


def test_the_two_commands_are_there_as_written():
    for command in ("pip install -e . && python -m runner", 'pip install -e ".[test]" && python -m pytest'):
        assert f"{command}\n" in blocks(README, "sh")


def test_the_table_of_the_example_names_what_is_there():
    text = (ROOT / "docs" / "mnist-example.md").read_text()
    named = re.findall(r"`([\w/]+)\.py`: ((?:`[\w.]+`(?:, )?)+)", text)
    assert len(named) >= 12
    for path, names in named:
        for name in re.findall(r"`([\w.]+)`", names):
            found = importlib.import_module(f"runner.{path.replace('/', '.')}")
            for part in name.split("."):
                found = getattr(found, part)
