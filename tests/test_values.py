"""Every value of a config against what it may be, in this process: the answers of compose and of the checks."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from benchmarks.wrong_configs import campaign, report

import runner
from runner.config.checks import blamed
from runner.config.compose import compose
from runner.errors import InputError
from runner.values import Rule, fits, hints_of

SMALL = ["dataset=fake", "dataset.train_size=32", "dataset.eval_size=8", "dataset.input_shape=[1,8,8]", "quiet=true"]
PAIR = "import torch\nclass Pair(torch.nn.Linear):\n"
PAIR += "    def forward(self, x):\n        return super().forward(x.flatten(1)), x\n"

WRONG = [
    (["optimizer.lr=nan"], ["optimizer.lr=nan", "finite"]),
    (["optimizer.lr=inf"], ["optimizer.lr=inf", "finite"]),
    (["dataset.std=[-1]"], ["dataset.std=[-1]", "above 0"]),
    (["dataset.std=[0.0]"], ["dataset.std=[0.0]", "above 0"]),
    (["dataset.mean=[0.1,0.2,0.3]"], ["dataset.mean=[0.1, 0.2, 0.3]", "one number a channel"]),
    (["dataset.mean=[]"], ["dataset.mean=[]"]),
    (["dataset.input_shape=[1,9,9]"], ["dataset.input_shape=[1, 9, 9]", "[1, 8, 8]"]),
    (["model=mlp", "model.hidden=[0]"], ["model.hidden=[0]", "at least 1"]),
    (["loss.weight=[-1,1,1,1,1,1,1,1,1,1]"], ["loss.weight=[-1", "none below 0"]),
    (["loss.weight=[1,2]"], ["loss.weight=[1, 2]", "10 classes"]),
    (["trainer.monitor=lr"], ["trainer.monitor=lr", "val/accuracy"]),
    (["scheduler=plateau", "scheduler.monitor=lr"], ["scheduler.monitor=lr"]),
    (["scheduler=multistep", "scheduler.milestones=[abc]"], ["scheduler.milestones=['abc']"]),
    (["scheduler=cosine", "scheduler.interval=week"], ["scheduler.interval=week", "epoch, batch"]),
    (["checkpoint.every_minutes=nan"], ["checkpoint.every_minutes=nan"]),
    (["checkpoint.every_minutes=[1]"], ["checkpoint.every_minutes=[1]"]),
    (["checkpoint.every=true"], ["checkpoint.every=true", "whole number"]),
    (["dataloader.memory_limit=nan"], ["dataloader.memory_limit=nan"]),
    (["hydra.run.dir="], ["hydra.run.dir=", "must name a folder"]),
    (["name="], ["name=", "must be text"]),
    (["device.threads=100000"], ["device.threads=100000", "at most"]),
    (["dataloader.num_workers=100000"], ["dataloader.num_workers=100000", "at most"]),
    (["model_weights=/dev/zero"], ["model_weights=/dev/zero", "regular file"]),
    (["optimizer=adam", "optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "list of 2"]),
    (["optimizer.lr=-1"], ["optimizer.lr=-1", "Invalid learning rate"]),
    (["dataloader.collate_fn=mine.collate"], ["dataloader.collate_fn=mine.collate", "_target_"]),
    (["optimizer._partial_=false"], ["optimizer._partial_=false", "must be true"]),
    (["scheduler=null"], ["scheduler=null", "choices: constant"]),
    (["scheduler=StepLR"], ["scheduler=StepLR", "did you mean step?"]),
    (["optimizer=adm"], ["did you mean adam?"]),
    (["dataset=minst"], ["did you mean mnist?"]),
    (["learning_rate=0.1"], ["did you mean optimizer.lr?"]),
    (["wd=0.1"], ["did you mean optimizer.weight_decay?"]),
    (["bs=8"], ["did you mean dataloader.batch_size?"]),
    (["max_epochs=8"], ["did you mean trainer.epochs?"]),
    (["trainer.num_epochs=8"], ["did you mean epochs?"]),
    (["model=mlp", "model.batch_norm=true", "dataloader.batch_size=1"], ["dataloader.batch_size=1", "drop_last"]),
]


@pytest.mark.parametrize(("words", "named"), WRONG, ids=lambda value: " ".join(value)[:60])
def test_a_wrong_value_is_named_with_its_key_before_anything_trains(words, named, tmp_path):
    with pytest.raises(InputError) as raised:
        runner.run([*words, "trainer.dry_run=true"])
    message = str(raised.value)
    assert "\n" not in message and all(word in message for word in named), message
    assert not list(tmp_path.rglob("run.json"))


OWN = [
    (
        "optimizer",
        "_target_: torch.optim.SGD\n_partial_: true\nlr: ${optimiser.lr}\n",
        ["optimizer.lr", "optimiser.lr"],
    ),
    ("optimizer", "_target_: torch.optim.SGD\nlr: 0.1\n", ["optimizer._partial_=null", "must be true"]),
    ("model", "_target_: pair.Pair\nin_features: 64\nout_features: 10\n", ["model", "tuple"]),
    ("experiment", "trainer:\n  epochs: 1\n", ["experiment", "# @package _global_"]),
    ("experiment", "# @package _global_\nlearning_rate: 1\n", ["learning_rate", "optimizer.lr"]),
    ("dataloader", "shuffle: 1\n", ["dataloader.shuffle=1", "true or false"]),
]


@pytest.mark.parametrize(("group", "text", "named"), OWN)
def test_a_wrong_file_of_ones_own_is_answered_the_same_way(group, text, named, tmp_path, monkeypatch):
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "own.yaml").write_text(text)
    (tmp_path / "pair.py").write_text(PAIR)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as raised:
        runner.run([f"{group}=own", "trainer.dry_run=true"], config_dir="conf")
    assert all(word in str(raised.value) for word in named), raised.value


@pytest.mark.parametrize("group", ["dataloader", "checkpoint"])
def test_what_a_choice_of_ones_own_leaves_out_is_as_packaged_and_recorded(group, tmp_path):
    (tmp_path / "conf" / group).mkdir(parents=True)
    text = {"dataloader": "shuffle: false\n", "checkpoint": "save: last\n"}[group]
    (tmp_path / "conf" / group / "own.yaml").write_text(text)
    words = [*SMALL, "model=mlp", "trainer.dry_run=true"]
    default = runner.run(words)["config"][group]
    assert runner.run([*words, f"{group}=own"], config_dir="conf")["config"][group] == {
        **default,
        **{"dataloader": {"shuffle": False}, "checkpoint": {"save": "last"}}[group],
    }


@pytest.mark.parametrize(
    ("value", "hint", "is_right"),
    [
        (1, float, True),
        (True, float, False),
        (True, int, False),
        (1, bool, False),
        (1.5, int, False),
        ("1e-3", float | torch.Tensor, False),
        (None, int | None, True),
        ([1], int | None, False),
        ([1, 2], tuple[float, float], True),
        ([1], tuple[float, float], False),
        ([1, "a"], Sequence[int], False),
        ("abc", Sequence[int], False),
        ("min", Literal["min", "max"], True),
        ("best", Literal["min", "max"], False),
        ("mine.f", Callable[[int], int], False),
        ({"_target_": "mine.f"}, int, True),
        ("anything", torch.Tensor, True),
    ],
)
def test_a_value_fits_a_hint_or_does_not(value, hint, is_right):
    assert fits(value, hint) is is_right


def test_a_hint_that_its_own_default_does_not_fit_is_not_believed():
    def sloppy(rate: int = 0.5, width: int = 3, other: "Nowhere" = 1):  # noqa: F821
        pass

    assert hints_of(sloppy) == {"width": int}


def test_a_rule_refuses_what_is_not_finite_and_says_its_range():
    with pytest.raises(ValueError, match="x=nan: must be a number of above 0 or null"):
        Rule(float | None, above=0).check("x", math.nan)


def test_the_argument_is_found_in_a_library_s_message():
    assert blamed("optimizer", "Invalid learning rate: -1", {"lr": -1, "eps": 0.1}) == "optimizer.lr=-1"
    assert blamed("optimizer", "something else", {"lr": -1, "eps": 0.1}) == "optimizer"


@pytest.mark.parametrize(
    ("message", "node"),
    [
        ("stack expects each tensor to be equal size, but got [31] at entry 0 and [10] at entry 1", {"most": 31}),
        ("stack expects each tensor to be equal size, but got [31] at entry 0", {"size": 31, "seed": 0}),
        ("mat1 and mat2 shapes cannot be multiplied (2x64 and 31x10)", {"hidden": 64, "classes": 10, "root": "mat1"}),
        ("expected 10 of the sizes, got 0", {"widths": [10, 3], "shuffle": False, "depth": 0}),
    ],
    ids=str,
)
def test_no_argument_is_blamed_for_its_value_alone(message, node):
    assert blamed("dataset", message, node) == "dataset"


@pytest.mark.parametrize(
    ("message", "node", "told"),
    [
        ("num_heads must divide embed_dim", {"num_heads": 3, "width": 8}, "num_heads=3"),
        ("weight tensor should be defined for all 10 classes", {"weight": [1, 2], "gamma": 10}, "weight=[1, 2]"),
        ("Invalid momentum value: -1", {"momentum": -1, "dampening": -1}, "momentum=-1"),
        ("unexpected keyword argument 'size'", {"size": 3, "width": 3}, "size=3"),
    ],
    ids=str,
)
def test_an_argument_that_a_message_names_is_blamed(message, node, told):
    assert blamed("model", message, node) == f"model.{told}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what its forked children leave open
def test_a_small_campaign_of_wrong_configs_is_answered():
    cases = campaign(40, real=2)
    assert sum(bool(case.faults) for case in cases) <= 3, report(cases)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("model/five.yaml", "5\n", "five.yaml: must hold a group of keys"),
        ("experiment/five.yaml", "defaults:\n  - optimizer: adam\n", "optimizer=adam: the file begins with"),
    ],
)
def test_a_yaml_file_of_the_users_that_is_none_is_named(tmp_path, path, text, message):
    file = tmp_path / "mine" / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        compose([f"{file.parent.name}=five"], str(tmp_path / "mine"))


def test_a_sampler_whose_package_is_not_there_is_refused_before_a_trial(monkeypatch):
    optuna = pytest.importorskip("optuna")
    from runner.search.sampler import try_sampler

    class Lazy(optuna.samplers.RandomSampler):
        def sample_relative(self, *_):
            raise ImportError("No module named 'far_away'")

        def infer_relative_search_space(self, *_):
            return {}

    space = {"optimizer.lr": optuna.distributions.FloatDistribution(0.1, 1.0)}
    try_sampler(optuna.samplers.TPESampler(seed=0), space)
    try_sampler(optuna.samplers.GridSampler({"optimizer.lr": [0.1]}), space)
    with pytest.raises(InputError, match="hydra.sweeper.sampler._target_=Lazy: No module named 'far_away'"):
        try_sampler(Lazy(), space)
