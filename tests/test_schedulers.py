"""Our schedules against torch's own schedulers, driven by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

import runner
from conftest import killed_after
from runner.errors import InputError
from runner.job.resuming import resume
from runner.schedulers import lambda_lr, one_cycle, warmup_cosine
from runner.values import compile_expression

EPOCHS, BATCHES = 20, 2


def warm(optimizer):
    return SequentialLR(
        optimizer,
        [LinearLR(optimizer, start_factor=0.01, total_iters=4), CosineAnnealingLR(optimizer, T_max=36, eta_min=0.0)],
        milestones=[4],
    )


BY_HAND = {
    "constant": lambda o: ConstantLR(o, factor=1.0, total_iters=0),
    "step": lambda o: StepLR(o, step_size=1, gamma=0.7),
    "multistep": lambda o: MultiStepLR(o, milestones=[6, 10], gamma=0.1),
    "exponential": lambda o: ExponentialLR(o, gamma=0.9),
    "cosine": lambda o: CosineAnnealingLR(o, T_max=EPOCHS),
    "plateau": lambda o: ReduceLROnPlateau(o, mode="max", factor=0.1, patience=2),
    "lambda": lambda o: LambdaLR(o, lambda epoch: 0.95**epoch),
    "onecycle": lambda o: OneCycleLR(o, max_lr=0.05, total_steps=EPOCHS * BATCHES),
    "cosine_restarts": lambda o: CosineAnnealingWarmRestarts(o, T_0=10),
    "polynomial": lambda o: PolynomialLR(o, total_iters=EPOCHS, power=1.0),
    "warmup_cosine": warm,
    "sequential": lambda o: SequentialLR(
        o, [LinearLR(o, start_factor=0.1, total_iters=3), CosineAnnealingLR(o, T_max=EPOCHS - 3)], milestones=[3]
    ),
}
PER_BATCH = ("onecycle", "warmup_cosine")


def sgd(lr=0.05, momentum=0.9):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=momentum)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_rates_of_20_epochs_are_those_of_torchs_scheduler_driven_by_hand(name, tmp_path):
    words = [f"scheduler={name}", "optimizer=sgd", "optimizer.lr=0.05", "dataset=fake", "model=mlp", "quiet=true"]
    words += ["dataset.train_size=50", "dataset.eval_size=10", "dataset.val_size=10", "dataloader.batch_size=20"]
    words += ["checkpoint.save=none", f"trainer.epochs={EPOCHS}", "device.threads=1"]
    runner.run(words, run_dir=tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    optimizer = sgd()
    scheduler = BY_HAND[name](optimizer)
    expected = []
    for row in rows:
        for _ in range(BATCHES):
            used = optimizer.param_groups[0]["lr"]
            optimizer.step()
            if name in PER_BATCH:
                scheduler.step()
        expected.append(used)
        if name == "plateau":
            scheduler.step(row["val/accuracy"])
        elif name not in PER_BATCH:
            scheduler.step()
    assert [row["lr"] for row in rows] == expected
    assert len(rows) == EPOCHS


def test_an_expression_knows_epoch_step_min_max_and_math():
    evaluate = compile_expression("min(1, (step + 1) / 4) * cos(pi * epoch / 8)", ("epoch", "step"))
    assert evaluate(epoch=2, step=1) == 0.5 * math.cos(math.pi * 2 / 8)


@pytest.mark.parametrize(
    "text", ["0.95 ** (", "foo", "epoch.real", "__import__('os')", "'a'", "[x for x in (1,)]", "1 / epoch", ""]
)
def test_an_expression_that_is_none_is_refused_at_once(text):
    with pytest.raises(ValueError, match="parse|no number"):
        compile_expression(text, ("epoch", "step"))


def test_an_expression_knows_the_length_of_the_run():
    rates = []
    for interval, count in (("epoch", 3), ("batch", 6)):
        optimizer = sgd(1.0)
        text = "1 - epoch / epochs + step / steps / 100 + batches_per_epoch"
        scheduler = lambda_lr(optimizer, text, 2, interval, epochs=3, steps=6)
        for _ in range(count):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    factors = [1 - (step // 2) / 3 + step / 6 / 100 + 2 for step in range(6)]
    assert rates == [*factors[::2], *factors]


@pytest.mark.parametrize("text", ["9**9**9", "10**9999", "pow(9, 10**9)", "1" * 2000, "(" * 900])
def test_no_expression_takes_long_or_grows(text):
    with pytest.raises(ValueError, match="too large|parse"):
        compile_expression(text)


def test_lambda_counts_batches_where_it_steps_by_batch():
    optimizer = sgd(1.0)
    scheduler = lambda_lr(optimizer, "0.5 ** epoch + step / 100", batches_per_epoch=2, interval="batch")
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [1.0, 1.0 + 0.01, 0.5 + 0.02, 0.5 + 0.03]


def test_lambda_takes_a_list_with_one_entry_a_param_group():
    parameters = [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(2)]
    scheduler = lambda_lr(torch.optim.SGD(parameters, lr=1.0), ["1", "0.1"], batches_per_epoch=1)
    assert scheduler.get_last_lr() == [1.0, 0.1]
    with pytest.raises(ValueError, match="3 entries for 2 param groups"):
        lambda_lr(torch.optim.SGD(parameters, lr=1.0), ["1", "1", "1"], batches_per_epoch=1)


def test_lambda_keeps_a_callable_objects_attributes_out_of_its_state():
    class Factor:
        secret = object()

        def __call__(self, epoch):
            return 0.5

    assert lambda_lr(sgd(), Factor(), batches_per_epoch=1).state_dict()["lr_lambdas"] == [None]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_cycle_cycles_a_momentum_only_where_there_is_one(momentum):
    optimizer = sgd(momentum=momentum)
    one_cycle(optimizer, max_lr=0.1, total_steps=10)
    assert optimizer.param_groups[0]["momentum"] == (0.95 if momentum else 0.0)


@pytest.mark.parametrize("warmup", [-1, -0.5, 10, 1.0])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup):
    with pytest.raises(ValueError, match="warmup"):
        warmup_cosine(sgd(), run_length=10, warmup=warmup)


NESTED = """_target_: torch.optim.lr_scheduler.{kind}
_partial_: true
interval: batch
schedulers:
  - _target_: torch.optim.lr_scheduler.LinearLR
    _partial_: true
    start_factor: 0.1
    total_iters: 2
  - _target_: {second}
"""
SECONDS = {
    "SequentialLR": "runner.schedulers.lambda_lr\n    lr_lambda: 1 - step / steps\nmilestones: [3]\n",
    "ChainedScheduler": "torch.optim.lr_scheduler.ExponentialLR\n    gamma: 0.9\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SECONDS)
def test_torchs_schedulers_of_schedulers_have_torchs_rates_and_are_resumed_exactly(kind, tmp_path, monkeypatch):
    (tmp_path / "mine" / "scheduler").mkdir(parents=True)
    Path("mine/scheduler/nested.yaml").write_text(NESTED.format(kind=kind, second=SECONDS[kind]))
    words = ["scheduler=nested", "optimizer=sgd", "dataset=fake", "model=mlp", "quiet=true", "trainer.epochs=2"]
    words += ["dataset.train_size=50", "dataset.eval_size=10", "dataset.val_size=10", "dataloader.batch_size=10"]
    words += ["trainer.log_every=1", "optimizer.lr=1.0", "device.threads=1", "checkpoint.every_batches=3"]
    runner.run(words, run_dir="whole", config_dir="mine")
    rates = [json.loads(line)["lr"] for line in Path("whole/steps.jsonl").read_text().splitlines()]
    optimizer = sgd(1.0)
    rising = LinearLR(optimizer, start_factor=0.1, total_iters=2)
    if kind == "SequentialLR":
        falling = LambdaLR(optimizer, lambda step: 1 - step / 8)
        scheduler = SequentialLR(optimizer, [rising, falling], milestones=[3])
    else:
        scheduler = ChainedScheduler([rising, ExponentialLR(optimizer, gamma=0.9)], optimizer)
    expected = []
    for _ in range(8):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == expected
    killed_after(5, monkeypatch, lambda: runner.run(words, run_dir="killed", config_dir="mine"))
    resume(Path("killed"), [])
    ends = [torch.load(f"{run}/checkpoints/last.pt", weights_only=True) for run in ("whole", "killed")]
    assert all(torch.equal(v, ends[1]["model_state_dict"][k]) for k, v in ends[0]["model_state_dict"].items())
    assert ends[0]["scheduler_state_dict"] == ends[1]["scheduler_state_dict"]


@pytest.mark.parametrize(
    "second, named",
    [
        ("torch.optim.lr_scheduler.ReduceLROnPlateau\nmilestones: [3]", ["scheduler.schedulers.1", "metric"]),
        ("torch.optim.lr_scheduler.StepLR\nmilestones: [3]", ["scheduler.schedulers.1", "step_size"]),
        ("torch.optim.lr_scheduler.StepLR\n    step_size: 0\nmilestones: [3]", ["scheduler.schedulers.1.step_size=0"]),
        ("torch.optim.lr_scheduler.StepLr\nmilestones: [3]", ["scheduler.schedulers.1._target_", "StepLR"]),
        ("torch.optim.lr_scheduler.ExponentialLR\n    gamma: 1\nmilestones: [3, 4]", ["scheduler.milestones=[3, 4]"]),
    ],
)
def test_a_wrong_scheduler_inside_another_is_named_by_its_own_key(second, named, tmp_path):
    (tmp_path / "mine" / "scheduler").mkdir(parents=True)
    Path("mine/scheduler/nested.yaml").write_text(NESTED.format(kind="SequentialLR", second=second))
    with pytest.raises(InputError) as refused:
        runner.run(["scheduler=nested", "trainer.epochs=1"], run_dir="run", config_dir="mine")
    assert all(part in str(refused.value) for part in named), refused.value


def test_the_length_of_the_run_reaches_the_schedulers(tmp_path):
    words = ["scheduler=cosine", "scheduler.interval=batch", "dataset=fake", "model=mlp", "quiet=true"]
    words += ["dataset.val_size=10", "dataset.train_size=50", "dataloader.batch_size=20", "trainer.epochs=3"]
    record = runner.run(words, run_dir=tmp_path / "run")
    assert record["config"]["scheduler"]["T_max"] == 3 * 2
    record = runner.run(
        ["scheduler=lambda", 'scheduler.lr_lambda="0.9 ** epoch"', *words[2:]], run_dir=tmp_path / "other"
    )
    rows = [json.loads(line) for line in (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [1.0, 0.9, 0.9**2]


class Stateless:
    def __init__(self, optimizer):
        pass

    def step(self):
        pass


def test_a_scheduler_that_no_checkpoint_can_hold_is_one_line():
    words = ["~scheduler", "+scheduler={_target_: test_schedulers.Stateless, _partial_: true}"]
    with pytest.raises(InputError, match=r"^scheduler: Stateless must have step\(\), state_dict\(\)"):
        runner.run([*words, "trainer.dry_run=true"], run_dir="run")
