"""The README's promises that a machine can check."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from runner.cli import VERBS
from runner.config.compose import compose

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TREE = README[README.index("## The files") :]
COMMANDS = re.findall(r"^(?:runner|python -m runner)(?: ([^#\n]*?))?\s*(?:#.*)?$", README, re.MULTILINE)


def test_the_two_commands_are_there_as_written():
    for command in ("pip install -e . && python -m runner", 'pip install -e ".[test]" && python -m pytest'):
        assert f"\n{command}\n" in README


def test_the_file_tree_names_every_module():
    for path in (ROOT / "src" / "runner").glob("*.py"):
        assert path.name == "__init__.py" or f"  {path.name} " in TREE, path.name


def test_the_table_of_the_example_names_functions_that_are_there():
    table = README[README.index("## The MNIST example") : README.index("## The files")]
    for module, names in re.findall(r"`(\w+)\.py`: ((?:`[\w.]+`(?:, )?)+)", table):
        for name in re.findall(r"`([\w.]+)`", names):
            if not name.endswith(".py"):
                found = importlib.import_module(f"runner.{module}")
                for part in name.split("."):
                    found = getattr(found, part)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c])
def test_every_command_composes_or_is_a_verb(command):
    words = shlex.split(command)
    if words[0] in VERBS or words[0].startswith("-"):
        return
    compose(words)


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 12
