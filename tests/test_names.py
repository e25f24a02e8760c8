"""Every dotted name that a YAML file, the README or a page of docs/ mentions is there."""

import re
from pathlib import Path

import pytest

from conftest import CONF
from runner.config.checks import found_by_name

ROOT = CONF.parent
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "log.md")]  # that is history
FILES = {"runner.log"}  # a file of a run's folder
# The names that people's own YAML files and scripts hold: they stay for good.
FOR_GOOD = """
runner.run runner.load_model runner.runs runner.errors.InputError runner.errors.Diverged
runner.models.Net runner.models.MLP runner.models.StridedNet runner.models.resnet18
runner.losses.NLL runner.losses.CrossEntropy runner.losses.Focal runner.losses.OneHotMSE
runner.metrics.Accuracy runner.data.Digits runner.data.Fake runner.data.image_folder
runner.augment.RandomAffine runner.augment.RandomCrop runner.augment.RandomErasing runner.augment.RandomHorizontalFlip
runner.schedulers.cosine_restarts runner.schedulers.lambda_lr runner.schedulers.one_cycle runner.schedulers.warmup_cosine
hydra_plugins.runner_sweep.LocalLauncher hydra_plugins.runner_sweep.RayLauncher
hydra_plugins.runner_sweep.SubmititLauncher hydra_plugins.runner_sweep.RunnerSweeper
hydra_plugins.runner_sweep.OptunaSweeper
""".split()


def mentioned(path: Path) -> set[str]:
    text = path.read_text()
    names = set(re.findall(r"\b(?:runner|hydra_plugins)(?:\.[A-Za-z_]\w*)+", text))
    if path.suffix == ".yaml":
        names |= set(re.findall(r"_target_: ([A-Za-z_][\w.]*)", text))
    return {name for name in names if name not in FILES and name.split(".")[0] != "your"}  # your.function: an example


@pytest.mark.parametrize("path", [*sorted(CONF.rglob("*.yaml")), *PAGES], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_name_that_is_mentioned_resolves(path):
    for name in mentioned(path):
        if name.startswith("optuna."):
            pytest.importorskip("optuna")
        found_by_name(name)


@pytest.mark.parametrize("name", FOR_GOOD)
def test_a_name_that_stays_for_good_is_there(name):
    assert callable(found_by_name(name))


def test_names_are_looked_for_at_all():
    assert sum(len(mentioned(path)) for path in PAGES) > 10
