"""The pages of docs/: what they show works, what they list is what is there, what they point to exists."""

import ast
import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import runner
from conftest import CONF
from runner.cli import overrides
from runner.errors import Diverged
from test_readme import FILE, PAGES, README, ROOT, blocks, commands, words_or_page, write_files

DOCS = ROOT / "docs"
OWN = DOCS / "add-your-own.md"
METHOD = DOCS / "your-own.md"
FAST = ["trainer.dry_run=true", "quiet=true", "device.threads=1"]


def trains(words):
    """Whether a command trains one run: no sweep, no look at the config, no verb."""
    return not {"-m", "--cfg", "--help", "--hydra-help"} & set(words) and words[0] not in ("verify", "resume")


EXAMPLES = [(OWN, words) for words in commands(OWN) if words and trains(words)]
EXAMPLES += [(METHOD, words) for words in commands(METHOD) if words and trains(words)]
EXAMPLES += [(README, words) for words in commands(README) if "--config-dir" in words and trains(words)]


@pytest.fixture
def train(tmp_path, tiny_data, monkeypatch):
    """Trains one batch of everything with a page's files, in a folder where `data` holds tiny data sets."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "data").symlink_to(tiny_data)

    def run(page, words):
        write_files(page, tmp_path)
        for path in tmp_path.glob("*.py"):
            sys.modules.pop(path.stem, None)
        given = overrides.parser().parse_intermixed_args(words)
        return runner.run([*given.overrides, *FAST], run_dir="run", config_dir=given.config_dir)

    yield run
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def own_files(page, words):
    """The page's YAML files that a command chooses by name, with their text."""
    files, at = dict(FILE.findall(page.read_text())), words.index("--config-dir") + 1 if "--config-dir" in words else 0
    chosen = [f"{words[at]}/{word.replace('=', '/')}.yaml" for word in words if "=" in word]
    return {name: files[name] for name in chosen if name in files}


# --------------------------------------------------------------------------------------------- what the pages show


@pytest.mark.parametrize(("page", "words"), EXAMPLES, ids=words_or_page)
def test_every_example_of_an_own_part_trains_one_batch(page, words, train):
    if any("torchmetrics" in word for word in words):
        pytest.importorskip("torchmetrics", reason="the optional extra [metrics]")
    record = train(page, words)
    assert (record["state"], record["epochs_done"]) == ("done", 1)
    for text in own_files(page, words).values():
        for target in re.findall(r"_target_: (\S+)", text):
            assert target in json.dumps(record["config"])


@pytest.mark.parametrize("page", [OWN, METHOD, README], ids=lambda page: page.stem)
def test_every_file_of_the_page_is_used_by_an_example(page):
    files = dict(FILE.findall(page.read_text()))
    used = {name for other, words in EXAMPLES if other == page for name in own_files(page, words)}
    assert {name for name in files if name.startswith("myconf/")} == used
    targets = re.findall(r"_target_: (\w+)\.", "".join(text for name, text in files.items() if name in used))
    assert {Path(name).stem for name in files if name.endswith(".py")} <= set(targets)


def test_every_group_has_an_example_of_an_own_choice():
    groups = {path.parent.name for path in CONF.glob("*/*.yaml")} - {
        "device",
        "precision",
        "tracking",
        "stopping",
        "averaging",
    }  # nothing to add there, or on a page of its own
    assert groups == {name.split("/")[1] for name, _ in FILE.findall(OWN.read_text()) if name.startswith("myconf/")}


def test_an_own_file_with_our_name_wins_and_the_log_says_what_the_page_says(train):
    record = train(OWN, ["--config-dir", "theirs"])
    assert record["config"]["scheduler"]["gamma"] == 0.5
    (line,) = [line for text in blocks(OWN, "") for line in text.splitlines() if line.startswith("config: ")]
    assert line in Path("run/runner.log").read_text()


def test_the_python_of_the_page_on_a_runs_folder_loads_every_file():
    words = ["checkpoint.state_dict=true", "checkpoint.whole_model=true", *FAST]
    runner.run(words, run_dir="outputs/mine")
    names = {}
    for text in blocks(DOCS / "run-folder.md", "python"):
        exec(text, names)
    state = names["state"]["model_state_dict"]
    assert all((state[key] == value).all() for key, value in names["model"].state_dict().items())
    assert not names["model"].training


def test_the_python_of_the_page_on_python_runs(monkeypatch):
    real = runner.run
    monkeypatch.setattr(runner, "run", lambda words, **where: real([*words, *FAST], **where))
    with pytest.raises(Diverged):  # its row has no figures
        real(["optimizer=sgd", "optimizer.lr=1e30", "quiet=true"], run_dir="outputs/diverged")
    names = {}
    for text in blocks(DOCS / "from-python.md", "python"):
        exec(text, names)
    assert names["record"]["state"] == "done"
    assert {row["path"] for row in names["table"]} == {"outputs/mine", "outputs/diverged"}


# --------------------------------------------------------------------------------------------- what the pages list


def test_the_table_of_choices_is_what_conf_holds():
    rows = re.findall(r"^\| `(\w+)` \| (`\w+`\*?.*) \|$", (DOCS / "choices.md").read_text(), re.MULTILINE)
    listed = {group: dict(re.findall(r"`(\w+)`(\*?)", text)) for group, text in rows}
    defaults = {}
    for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]:
        defaults |= entry if isinstance(entry, dict) else {}
    there = {}
    for path in CONF.glob("*/*.yaml"):
        group = path.parent.name
        there.setdefault(group, {})[path.stem] = "*" if defaults[group] == path.stem else ""
    assert listed == there


def is_empty(path):
    """Whether a file holds nothing but a docstring, as a room's __init__.py does."""
    return path.name == "__init__.py" and len(ast.parse(path.read_text()).body) <= 1


def test_the_page_on_the_architecture_lists_every_file():
    listed = re.findall(r"^\| `([\w/]+\.py)` \| \S", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    there = [path for path in (ROOT / "src").rglob("*.py") if not is_empty(path)]
    assert sorted(listed) == sorted(str(path.relative_to(ROOT / "src")) for path in there)


# ------------------------------------------------------------------------------------------ what the pages point to


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).is_file(), target


def test_the_readme_leads_to_every_page():
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", README.read_text()))
    assert linked == {path.name for path in DOCS.glob("*.md")}


def is_there(name):
    """Whether a dotted name leads to a module, or to something in one. Modules that need extras are not imported."""
    module, names = name, []
    while True:
        try:
            if importlib.util.find_spec(module) is not None:
                break
        except ModuleNotFoundError:
            pass
        module, _, last = module.rpartition(".")
        names.insert(0, last)
    found = importlib.import_module(module) if names else None
    for part in names:
        found = getattr(found, part, None)
    return not names or found is not None


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "log"], ids=lambda page: page.stem)
def test_every_file_and_module_that_a_page_names_is_there(page):
    text = page.read_text()
    for path in re.findall(r"\b(?:tests|conf|benchmarks|docs|src)/[\w/.-]+\.(?:py|yaml|md)", text):
        assert (ROOT / path).is_file(), path
    for name in re.findall(r"`(runner(?!\.log`)(?:\.[A-Za-z_]\w*)+)\b", text):  # runner.log is a run's file
        assert is_there(name), name


def test_a_name_that_is_not_there_is_found():
    assert is_there("runner.errors.InputError") and is_there("runner.models")
    assert not is_there("runner.models.Nett") and not is_there("runner.nowhere.Net")
