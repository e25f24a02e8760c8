"""The schedule is walked before anything trains: what is refused, what is doubted, what is kept."""

import copy
import random
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from runner.config.compose import set_up
from runner.config.conf_dir import conf_dir
from runner.errors import InputError
from runner.groups import walk
from runner.groups.model_parts import make_schedule


def schedule(name, optimizer=None, epochs=14, batches=10, base=None, is_new=True, **changes):
    set_up()
    node = OmegaConf.to_container(OmegaConf.load(f"{conf_dir()}/scheduler/{name}.yaml")) if base is None else base
    node |= {"mode": "min"} if name == "plateau" else {}
    length = {"epoch": epochs, "batch": epochs * batches}
    config = {
        "scheduler": {**node, **changes},
        "derived": {"batches_per_epoch": batches, "run_length": length},
        "optimizer": {"lr": 0.1},
        "trainer": {"monitor": "val/loss", "mode": "min"},
    }
    optimizer = optimizer or torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    return make_schedule(OmegaConf.create(config), optimizer, is_new)


REFUSED = [
    ("step", {"step_size": 0}, "step_size=0"),
    ("step", {"step_size": -1}, "step_size=-1"),
    ("step", {"step_size": 1.5}, "step_size=1.5"),
    ("step", {"gamma": -1}, "gamma=-1"),
    ("step", {"gamma": float("nan")}, "gamma=nan"),
    ("step", {"gamma": "big"}, "gamma=big"),
    ("exponential", {"gamma": 1e300}, "gamma=1e"),
    ("cosine", {"T_max": 0}, "T_max=0"),
    ("cosine", {"T_max": "abc"}, "T_max=abc"),
    ("cosine", {"eta_min": -1.0}, "eta_min=-1.0"),
    ("cosine", {"eta_min": float("inf")}, "eta_min=inf"),
    ("cosine_restarts", {"cycles": 0}, "cycles=0"),
    ("cosine_restarts", {"T_mult": 0}, "T_mult=0"),
    ("cosine_restarts", {"T_0": -2}, "T_0=-2"),
    ("onecycle", {"total_steps": 3}, "total_steps=3"),
    ("onecycle", {"max_lr": -0.1}, "max_lr=-0.1"),
    ("onecycle", {"pct_start": 1.5}, "pct_start=1.5"),
    ("onecycle", {"div_factor": 0.0}, "div_factor=0.0"),
    ("onecycle", {"anneal_strategy": "exp"}, "anneal_strategy=exp"),
    ("multistep", {"milestones": [1.5]}, "milestones=[1.5]"),
    ("multistep", {"milestones": ["1"]}, "milestones=['1']"),
    ("multistep", {"milestones": ["abc"]}, "milestones=['abc']"),
    ("multistep", {"milestones": [-1]}, "milestones=[-1]"),
    ("multistep", {"milestones": 6}, "milestones=6"),
    ("multistep", {"milestones": [True]}, "milestones=[True]"),
    ("lambda", {"lr_lambda": "-1"}, "lr_lambda=-1"),
    ("lambda", {"lr_lambda": "1 - epoch"}, "lr_lambda=1 - epoch"),
    ("lambda", {"lr_lambda": "1 / (7 - epoch)"}, "lr_lambda=1 / (7 - epoch)"),
    ("lambda", {"lr_lambda": [1, 1]}, "lr_lambda="),
    ("plateau", {"patience": -1}, "patience=-1"),
    ("plateau", {"factor": -1}, "factor=-1"),
    ("plateau", {"factor": 2.0}, "factor=2.0"),
    ("plateau", {"min_lr": -1.0}, "min_lr=-1.0"),
    ("plateau", {"threshold": float("nan")}, "threshold=nan"),
    ("polynomial", {"power": -2}, "power=-2"),
    ("polynomial", {"total_iters": -1}, "total_iters=-1"),
    ("warmup_cosine", {"warmup": -1}, "warmup=-1"),
    ("warmup_cosine", {"start_factor": 3.0}, "start_factor=3.0"),
]


@pytest.mark.parametrize(("name", "changes", "named"), REFUSED, ids=[named for _, _, named in REFUSED])
def test_nonsense_is_refused_by_key_and_value(name, changes, named):
    with pytest.raises(InputError) as refused:
        schedule(name, **changes)
    assert str(refused.value).startswith(f"scheduler.{named}") and "\n" not in str(refused.value)


@pytest.mark.parametrize("rate", [float("inf"), -0.1, float("nan")])
def test_the_rate_itself_is_looked_at(rate):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.param_groups[0]["lr"] = rate
    with pytest.raises(InputError, match="optimizer.lr="):
        schedule("step", optimizer)


def test_the_rates_are_those_that_the_run_will_take():
    made = schedule("warmup_cosine")
    assert len(made.rates) == 141
    taken = []
    for _ in range(140):
        taken.append((made.scheduler.get_last_lr()[0],))
        made.scheduler.optimizer.step()
        made.scheduler.step()
    assert list(made.rates[:-1]) == taken


def test_each_group_has_its_rate_and_a_metrics_schedule_only_its_first():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 0.01)]
    assert schedule("step", torch.optim.SGD(groups, lr=1.0)).rates[1] == pytest.approx((0.07, 0.007))
    assert len(schedule("plateau").rates) == 1


@pytest.mark.parametrize("name", ["onecycle", "cosine", "warmup_cosine", "lambda"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adadelta])
def test_walking_changes_neither_the_optimizer_nor_the_generators(name, kind):
    def settings(optimizer):
        return [{k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    walked, plain = (kind([nn.Parameter(torch.zeros(3))], lr=torch.tensor(0.1)) for _ in range(2))
    before = torch.get_rng_state(), random.getstate()
    one, two = schedule(name, walked), schedule(name, plain, is_new=False)
    assert settings(walked) == settings(plain) and one.scheduler.state_dict() == two.scheduler.state_dict()
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert not walked.state and two.rates == []


class Counting:
    """A factor that remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, count):
        self.asked.append(count)
        return 1.0


def test_a_users_function_is_made_anew_for_the_walk():
    made = schedule("lambda", lr_lambda={"_target_": f"{__name__}.Counting"})
    function = made.scheduler.lr_lambdas[0].__closure__[0].cell_contents
    assert function.asked == [0]


def own(optimizer, floor=0.0):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda count: 1 - count / 5 + floor)


def test_a_users_scheduler_is_walked_too():
    node = {"_target_": f"{__name__}.own", "_partial_": True, "interval": "epoch"}
    with pytest.raises(InputError, match="scheduler.floor=0.0: own: the learning rate becomes -0.02 after 6 steps"):
        schedule("", base={**node, "floor": 0.0})
    assert schedule("", base={**node, "floor": 5.0}).rates


def test_what_is_seldom_meant_is_doubted(caplog):
    schedule("lambda", lr_lambda="min(1, (step + 1) / 100)")
    assert "`step` counts batches, but with scheduler.interval=epoch" in caplog.text
    caplog.clear()
    schedule("step", interval="batch")
    assert "practically 0 from batch 47 of 140 on" in caplog.text
    caplog.clear()
    for name in ("step", "cosine", "cosine_restarts", "onecycle", "exponential", "lambda", "multistep", "constant"):
        schedule(name)
    schedule("lambda", lr_lambda="min(1, (step + 1) / 100)", interval="batch")
    assert not caplog.text


@pytest.mark.parametrize(
    "name, changes, named",
    [
        ("multistep", {"milestones": [20, 30]}, ["milestones=[20, 30]", "never changes"]),
        ("multistep", {"milestones": [6, 20]}, ["milestones=[6, 20]", "before the last"]),
        ("step", {"step_size": 20}, ["step_size=20", "never changes"]),
        ("cosine", {"T_max": 3}, ["T_max=3", "rises again from epoch 5 of 14"]),
        ("cosine", {"T_max": 30}, ["T_max=30", "ends before"]),
        ("polynomial", {"total_iters": 10}, ["practically 0 from epoch 11 of 14"]),
        ("onecycle", {"total_steps": 300}, ["total_steps=300", "ends before"]),
    ],
)
def test_a_schedule_whose_lengths_are_not_the_runs_is_doubted(name, changes, named, caplog):
    schedule(name, **changes)
    assert len(caplog.records) == 1 and all(part in caplog.text for part in named), caplog.text


@pytest.mark.parametrize("name", [path.stem for path in Path(conf_dir(), "scheduler").glob("*.yaml")])
@pytest.mark.parametrize("epochs", [1, 2, 14, 100])
def test_no_shipped_schedule_is_doubted_without_a_reason(name, epochs, caplog):
    if (name, epochs) in (("multistep", 2), ("cosine_restarts", 2), ("step", 100)) or (
        name == "sequential" and epochs < 4
    ):
        return  # with a reason
    schedule(name, epochs=epochs)
    assert not caplog.text


def test_a_very_long_run_is_walked_as_far_as_takes_seconds(monkeypatch):
    monkeypatch.setattr(walk, "LONGEST", 20)
    assert len(schedule("step", epochs=1000).rates) == 21
