"""Every dotted name that a YAML file, the README or a page of docs/ mentions is there."""

import importlib
import re
from pathlib import Path

import pytest

from conftest import CONF
from runner.config.admission import walk

ROOT = CONF.parent
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "log.md")]  # that is history
FILES = {"runner.log"}  # a file of a run's folder
# The names that people's own YAML files and scripts hold: they stay for good.
FOR_GOOD = {
    "runner": "run load_model runs",
    "runner.errors": "InputError Diverged",
    "runner.models": "Net MLP StridedNet resnet18",
    "runner.losses": "NLL CrossEntropy Focal OneHotMSE",
    "runner.metrics": "Accuracy",
    "runner.tasks": "Step Supervised",
    "runner.data": "Digits Fake image_folder",
    "runner.augment": "RandomAffine RandomCrop RandomErasing RandomHorizontalFlip",
    "runner.schedulers": "cosine_restarts lambda_lr one_cycle warmup_cosine",
    "hydra_plugins.runner_sweep": "LocalLauncher RayLauncher SubmititLauncher RunnerSweeper OptunaSweeper",
}


def walk_to(name):
    return walk(name, None)[0]


def mentioned(path: Path) -> set[str]:
    text = path.read_text()
    names = set(re.findall(r"\b(?:runner|hydra_plugins)(?:\.[A-Za-z_]\w*)+", text))
    if path.suffix == ".yaml":
        names |= set(re.findall(r"_target_: ([A-Za-z_][\w.]*)", text))
    return {
        name for name in names if name not in FILES and name.split(".")[0] not in ("your", "null")
    }  # your.function: an example


@pytest.mark.parametrize("path", [*sorted(CONF.rglob("*.yaml")), *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_name_that_is_mentioned_resolves(path):
    for name in mentioned(path):
        if name.startswith("optuna."):
            pytest.importorskip("optuna")
        walk(name, None)


@pytest.mark.parametrize("name", [f"{module}.{name}" for module, names in FOR_GOOD.items() for name in names.split()])
def test_a_name_that_stays_for_good_is_there(name):
    assert callable(walk_to(name))


def test_a_plugin_that_hydra_has_imported_is_found(monkeypatch):
    plugins, loaded = importlib.import_module("hydra_plugins"), importlib.import_module("hydra_plugins.runner_sweep")
    monkeypatch.delattr(plugins, "runner_sweep", raising=False)  # as Hydra's scan leaves it
    assert walk_to("hydra_plugins.runner_sweep.LocalLauncher") is loaded.LocalLauncher


def test_names_are_looked_for_at_all():
    assert sum(len(mentioned(path)) for path in PAGES) > 10
