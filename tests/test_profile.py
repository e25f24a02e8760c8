"""`runner profile`: the pieces of a step add up, the loop computes what it computes, and what is counted is right."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runner.__main__ import dispatch
from runner.before import peak
from runner.before.profiling import arithmetic, most_allocated, profiled
from runner.before.stopwatch import PIECES, Stopwatch, attached, watched_steps
from runner.cli.profile import lines, time_of
from runner.config.compose import compose
from runner.errors import InputError
from runner.job.build import build
from runner.sweep.combine import task_config
from test_stream import Counted, words  # noqa: F401  # Counted is named in the words

MLP = ["model=mlp", "model.hidden=[8]", "optimizer=sgd", "device.threads=1", "quiet=true"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(peak, "SIZES", (64,))
    monkeypatch.setattr(peak, "LEAST_SECONDS", 0.003)


def slow(*given):
    return pytest.param(list(given), marks=pytest.mark.slow)


def cfg(*given):
    return task_config(compose([*given], None)[1])


def trainer(*given):
    return build(cfg(*MLP, *given), is_new=True).trainer


def test_the_pieces_follow_each_other_add_up_and_change_nothing():
    plain, other = (trainer("trainer.limit_batches=7", "trainer.epochs=1") for _ in range(2))
    watch = Stopwatch(other.config.device)
    own = other.optimizer.step, other.train_loader, len(other.listeners.batch)
    assert watched_steps(other, 7, watch, lambda: None) == 7 * 16
    plain.fit()
    assert all(torch.equal(*pair) for pair in zip(plain.task.parameters(), other.task.parameters(), strict=True))
    assert (other.optimizer.step, other.train_loader, len(other.listeners.batch)) == own
    assert not other.task._forward_hooks and not other.task._forward_pre_hooks
    spent = watch.on_host()
    assert set(spent) == set(PIECES) and all(seconds > 0 for seconds in spent.values())
    assert sum(spent.values()) == pytest.approx(watch.seconds) and watch.on_device() is None
    assert watch.began[:8] == ["rest", "data", "to device", "optimizer", "forward", "backward", "optimizer", "metrics"]
    assert len(watch.steps()) == 7


@pytest.mark.parametrize(
    "given",
    [
        ["trainer.limit_batches=2", "trainer.epochs=1", "scheduler=onecycle"],  # which refuses to go on behind its end
        ["trainer.overfit_batches=1", "checkpoint.every_batches=1", "scheduler=plateau"],
        slow("trainer.limit_batches=2", "trainer.accumulate=4", "trainer.grad_clip=0.1"),
        slow("dataloader.num_workers=1", "dataloader.persistent_workers=true", "trainer.limit_batches=3"),
    ],
)
def test_any_run_goes_on_as_long_as_is_asked_and_leaves_nothing(given):
    found = profiled(cfg(*MLP, *given), 5, 1)
    assert found.steps == 5 and sum(found.pieces.values()) == pytest.approx(found.step)
    assert found.low <= found.median <= found.high
    assert not list(Path().iterdir())


def test_a_stream_and_a_run_that_diverges():
    given = [word for word in words() if not word.startswith(("trainer.epochs", "quiet"))]
    assert profiled(cfg(*given), 3, 0).examples_per_second > 0
    with pytest.raises(InputError, match="the loss is not finite .*: there is nothing to measure"):
        profiled(cfg(*MLP, "optimizer.lr=1e30", "trainer.log_every=1"), 20, 0)


def test_what_is_counted_is_right():
    found = profiled(cfg(*MLP, "optimizer.momentum=0.9"), 3, 1)
    ways = 2 * 16 * 8 * (64 + 10)  # a multiplication and an addition for each weight and example
    assert sum(found.flops.values()) == ways * 2 + 2 * 16 * 8 * 10  # forward, weights' gradients, the hidden layer's
    numbers = 64 * 8 + 8 + 8 * 10 + 10
    assert {key: found.memory[key] for key in ("parameters", "gradients", "optimizer")} == {
        key: 4 * numbers for key in ("parameters", "gradients", "optimizer")
    }
    assert 4 * numbers < found.memory["step"] < found.memory["process"]
    assert found.traced_step >= sum(one.seconds for one in found.operators) > 0
    assert found.operators == sorted(found.operators, key=lambda one: -one.seconds)
    assert "aten::addmm" in {one.name for one in found.operators}
    named = {event["name"] for event in json.loads(found.trace)["traceEvents"]}
    assert named >= set(PIECES)


def test_the_most_that_was_allocated_at_once_is_read_from_the_trace():
    events = [{"name": "[memory]", "args": {"Total Allocated": size}} for size in (10, 50, 20)]
    assert most_allocated(json.dumps({"traceEvents": [*events, {"name": "aten::add"}]})) == 50
    assert most_allocated(json.dumps({"traceEvents": []})) is None


def test_what_torch_cannot_count_is_said(monkeypatch):
    def fail(step):
        raise RuntimeError("no\nway")

    monkeypatch.setattr("runner.before.profiling.counted", fail)
    assert arithmetic(trainer()) == ({}, "RuntimeError: no way")


def test_the_screen_adds_up_and_the_trace_is_written_again(capsys):
    Path("mine.json").write_text("{}")
    given = ["profile", *MLP, "--steps", "12", "--top", "2", "-o", "trace.json"]
    assert dispatch(given) == 0
    lines = capsys.readouterr().out.splitlines()
    shares = [float(line.split(" %")[0].split()[-1]) for line in lines if line.startswith(tuple(PIECES))]
    assert len(shares) == len(PIECES) and sum(shares) == pytest.approx(100, abs=0.5)
    at = next(n for n, line in enumerate(lines) if line.startswith("operators"))
    shares = [float(line.split(" %")[0].split()[-1]) for line in lines[at + 2 : at + 6]]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert json.loads(Path("trace.json").read_text())["madeBy"] == "runner profile"
    assert dispatch([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.rpartition("trace.json")[0])["steps"] == 12


class Event:
    """Stands for one of CUDA's: its device is as far as the host."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1000 * (other.at - self.at)


def test_what_a_gpus_events_say_is_told_beside_the_hosts(monkeypatch):
    monkeypatch.setattr("torch.cuda.Event", Event)
    watch, made = Stopwatch(torch.device("cuda")), trainer("trainer.limit_batches=2")
    watched_steps(made, 3, watch, lambda: None)
    assert watch.on_device() == pytest.approx(watch.on_host(), abs=1e-3)
    found = profiled(cfg(*MLP), 2, 0)
    operators = [replace(one, device_seconds=found.traced_step / len(found.operators) / 2) for one in found.operators]
    shown = lines(
        replace(found, device_pieces=watch.on_device(), operators=operators, memory={**found.memory, "device": 1}), 3
    )
    assert "on the host  on the device  share" in " ".join(shown).replace("   ", "  ").replace("   ", "  ")
    assert any(line.startswith("the device waits") and line.endswith("50.0 %") for line in shown)
    assert "  the device held 0.0 MiB at most" in shown
    uncounted = lines(replace(found, flops={}, why_not="no way"), 3)
    assert any(line.startswith("arithmetic: not counted (no way); the machine's peak is ") for line in uncounted)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--steps", "0"], "--steps 0: must be a whole number of 1 to 10,000"),
        (["--steps", "x"], "--steps: invalid int value: 'x'"),
        (["--warmup", "-1"], "--warmup -1: must be a whole number of 0 to 10,000"),
        (["--top", "0"], "--top 0: must be"),
        (["-o", "nowhere/t.json"], "-o nowhere/t.json: there is no folder nowhere"),
        (["-o", "mine.json"], "-o mine.json: is there already, and is no trace of `runner profile`"),
        (["-o", "."], "-o .: is a folder"),
        (["model=mlp,net"], "model: has several values"),
        (["trainer.epoch=1"], "trainer.epoch=1: .*did you mean epochs"),
        (["trainer.epochs=0"], "trainer.epochs=0"),
    ],
)
def test_wrong_input_is_one_line(given, line):
    Path("mine.json").write_text("{}")
    with pytest.raises(InputError, match=line) as refused:
        dispatch(["profile", *given])
    assert "\n" not in str(refused.value)


def test_times_have_units():
    assert [time_of(seconds) for seconds in (2.5, 0.0123, 0.00234, 0.0000412)] == [
        "2.50 s",
        "12.3 ms",
        "2.34 ms",
        "41 µs",
    ]


def test_help_imports_no_torch():
    code = "import sys; from runner.cli.profile import parser; parser().format_help(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_the_last_batch_of_an_epoch_counts_as_what_it_is():
    made = trainer("dataloader.batch_size=400")
    assert watched_steps(made, 4, Stopwatch(made.config.device), lambda: None) == 400 + 400 + 207 + 400


def test_a_stopwatch_that_is_left_by_an_error_lets_the_trainer_go():
    made = trainer()
    with pytest.raises(KeyError), attached(made, Stopwatch(made.config.device)):
        raise KeyError
    assert not made.task._forward_hooks and type(made.train_loader).__name__ == "MemoryLoader"
