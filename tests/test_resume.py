"""Continuing a run, through the real command: exactly, from whatever a crash or a disk left."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

import runner
from conftest import until
from runner.cli.verify import differences
from runner.errors import InputError
from runner.job.launch import launch
from runner.job.resuming import resume
from runner.job.run import train
from runner.storage import checkpoint
from runner.storage.run_dir import RunDir

# 45 training examples, 6 batches an epoch, dropout, an augmentation, a scheduler of batches.
WORDS = ["dataset=fake", "dataset.train_size=60", "dataset.val_size=15", "dataset.eval_size=20", "device.threads=1"]
WORDS += ["dataset.input_shape=[1,8,8]", "dataset.augment=[{_target_: runner.augment.RandomCrop, padding: 2}]"]
WORDS += ["dataloader.batch_size=8", "model=mlp", "model.hidden=[16]", "model.dropout=0.3", "quiet=true"]
WORDS += ["optimizer=adam", "scheduler=warmup_cosine", "trainer.epochs=4", "trainer.log_every=2", "seed=0"]


class Crash(BaseException):
    """Ends a run as a crash would: nothing is saved any more."""


def crash_at(step, path, words=WORDS):
    """Starts a run that ends after `step` batches; what was saved until then stays."""

    def on_batch(progress, num_batches):
        if progress.step == step:
            raise Crash

    with pytest.raises(Crash):
        launch(words, lambda cfg, place, notes: train(cfg, place, notes, on_batch=on_batch), run_dir=str(path))


def assert_equal_runs(one, two):
    assert list(differences(RunDir(Path(one)), RunDir(Path(two)))) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The run that never stopped, by "whole", and runs that are gone after a number of batches: made once."""
    runs = {}

    def made(step):
        if step not in runs:
            runs[step] = tmp_path_factory.mktemp("made") / str(step)
            runner.run(WORDS, run_dir=runs[step]) if step == "whole" else crash_at(step, runs[step])
        return runs[step]

    return made


@pytest.fixture
def whole(made, tmp_path):
    return Path(shutil.copytree(made("whole"), tmp_path / "whole"))


EVERY, BEST = ["checkpoint.every_batches=2"], ["checkpoint.save=best"]


@pytest.mark.parametrize(
    ("extra", "step"),
    [*(([], n) for n in (5, 6, 7, 24)), *((EVERY, n) for n in (1, 13, 23)), *((BEST, n) for n in (6, 23))],
    ids=str,
)
def test_a_crash_after_any_batch_changes_no_bit(whole, step, extra):
    crash_at(step, "crashed", WORDS + extra)
    resume(Path("crashed"), [])
    if extra == BEST:
        (whole / "checkpoints" / "last.pt").unlink()
    assert_equal_runs(whole, "crashed")


@pytest.mark.parametrize("policy", ["last", "none"])
def test_without_best_pt_the_best_weights_come_back_too(whole, policy):
    crash_at(20, "crashed", [*WORDS, f"checkpoint.save={policy}"])
    record = resume(Path("crashed"), [])
    expected = json.loads((whole / "run.json").read_text())
    assert (record["best_epoch"], record["test"]) == (expected["best_epoch"], expected["test"])


def test_workers_may_change_on_the_way(whole):
    crash_at(9, "crashed", [*WORDS, "checkpoint.every_batches=1"])
    resume(Path("crashed"), ["dataloader.num_workers=2"])
    assert_equal_runs(whole, "crashed")


def test_a_finished_run_says_so_and_goes_on_when_epochs_are_raised(tmp_path):
    short = [w for w in WORDS if "warmup" not in w] + ["scheduler=step", "trainer.epochs=2"]
    runner.run(short, run_dir="run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert resume(Path("run"), [])["epochs_done"] == 2
    record = resume(Path("run"), ["trainer.epochs=4"])
    assert (record["epochs_done"], record["epochs"], record["state"]) == (4, 4, "done")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().startswith(before)
    runner.run([*short, "trainer.epochs=4"], run_dir="long")
    assert_equal_runs("long", "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.lr=0.5",
            "optimizer.lr: 0.001 -> 0.5 would change .* dataset=fake .* init_from=run optimizer.lr=0.5",
        ),
        ("dataset.train_size=70", "dataset.train_size: 60 -> 70"),
        ("dataloader.batch_size=4", "dataloader.batch_size: 8 -> 4"),
        ("trainer.epochs=9", "trainer.epochs: 4 -> 9 would change scheduler.run_length"),
        ("trainer.epochs=3", "trainer.epochs=3: this run is planned for 4 epochs, 2 of them are done"),
        ("seed=1", "seed: 0 -> 1"),
        ("optimizer.foo=1", "optimizer has no key 'foo'"),
        ("optimizer.lr=abc", "must be a number"),
        ("device=foo", "device=foo: no such choice; choices: auto, cpu"),
    ],
)
def test_what_would_change_the_past_is_refused_with_the_way_out(override, message, made):
    shutil.copytree(made(13), "run")
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=message):
        resume(Path("run"), [override])
    assert before == {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}


def test_a_new_run_starts_from_another_runs_weights(whole):
    record = runner.run([*WORDS, f"init_from={whole}", "trainer.dry_run=true"], run_dir="second")
    assert record["config"]["init_from"] == str(whole)
    assert "model_weights: 4 of 4 tensors" in Path("second/runner.log").read_text()
    with pytest.raises(InputError, match="init_from=absent: holds no run"):
        runner.run([*WORDS, "init_from=absent"], run_dir="third")


def damage(path, how):
    content = path.read_bytes()
    path.unlink()  # best.pt may be another name of the same file
    if how == "empty":
        path.write_bytes(b"")
    elif how == "directory":
        path.mkdir()
    elif how == "foreign":
        path.write_bytes(b"PK\x03\x04 somebody else's file")
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        path.write_bytes(content[:3000] + bytes([content[3000] ^ 4]) + content[3001:])
    elif how == "version":
        checkpoint.save(path, {**torch.load(pickle_free(content), weights_only=True), "format_version": 7})


def pickle_free(content):
    import io

    return io.BytesIO(content)


@pytest.mark.parametrize("how", ["empty", "directory", "foreign", "truncated", "flipped", "version", "missing"])
def test_a_damaged_last_checkpoint_falls_back_and_says_what_it_costs(whole, how, made):
    shutil.copytree(made(20), "run")
    damage(Path("run/checkpoints/last.pt"), how)
    resume(Path("run"), ["quiet=false"])
    if how != "missing":
        log = Path("run/runner.log").read_text()
        assert "last.pt" in log and "continuing from" in log
    assert_equal_runs(whole, "run")


@pytest.mark.slow
@pytest.mark.parametrize("names", [["best"], ["last", "best"], ["last-1", "best"], ["last", "last-1"]])
def test_any_files_may_be_damaged_as_long_as_one_is_good(whole, names, made):
    shutil.copytree(made(20), "run")
    for name in names:
        damage(Path(f"run/checkpoints/{name}.pt"), "flipped")
    resume(Path("run"), [])
    assert_equal_runs(whole, "run")


def test_with_no_good_checkpoint_left_there_is_a_clear_error(cli):
    crash_at(20, cli.cwd / "run")
    for path in (cli.cwd / "run" / "checkpoints").iterdir():
        damage(path, "truncated")
    done = cli("resume", "run")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for part in ("none of its checkpoints is good", "last.pt", "last-1.pt"):
        assert part in done.stderr


class Payload:
    def __reduce__(self):
        return (open, (os.path.abspath("pwned"), "w"))


@pytest.mark.parametrize("use", ["resume", "evaluate", "load_model", "model_weights"])
def test_a_hostile_pickle_is_refused_and_does_nothing(whole, cli, use, monkeypatch):
    monkeypatch.setattr(checkpoint, "plain", lambda state: state)  # we write none: somebody else does
    state = torch.load(whole / "checkpoints" / "last.pt", weights_only=True)
    state["metrics"] = Payload()
    for name in ("last", "last-1", "best"):
        checkpoint.save(whole / "checkpoints" / f"{name}.pt", state)
    record = json.loads((whole / "run.json").read_text())
    (whole / "run.json").write_text(json.dumps({**record, "state": "interrupted"}))
    message = "holds more than tensors and plain values"
    if use == "load_model":
        with pytest.raises(InputError, match=message):
            runner.load_model(whole)
    else:
        words = [f"model_weights={whole}/checkpoints/last.pt", *WORDS] if use == "model_weights" else [use, str(whole)]
        done = cli(*words)
        assert done.returncode == 2 and message in done.stderr
    (whole / "checkpoints" / "raw.pt").write_bytes(pickle.dumps({"format_version": 1, "model_state_dict": Payload()}))
    with pytest.raises(InputError):
        runner.load_model(whole, str(whole / "checkpoints" / "raw.pt"))
    assert not Path("pwned").exists()


SLOW = """
import os, time, torch
class Slow(torch.nn.Sequential):
    '''A linear model that takes its time, so that a signal comes in the middle.'''
    def __init__(self, input_shape, num_classes):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
    def forward(self, x):
        time.sleep(float(os.environ.get("TRAIN_DELAY" if self.training else "EVAL_DELAY", 0)))
        return super().forward(x)
"""
SLOW_WORDS = [w for w in WORDS if not w.startswith("model.") and w != "quiet=true"] + [
    "model._target_=slow.Slow",
    *("~model.hidden", "~model.dropout", "~model.batch_norm"),
]
CASES = {
    "training": ([], {"TRAIN_DELAY": "0.2"}, 2.0, False),
    "evaluation": (["dataloader.eval_batch_size=5"], {"EVAL_DELAY": "0.8"}, 1.2, False),
    "first batch": ([], {"TRAIN_DELAY": "2.0"}, 0.5, False),
    "3 workers": (["dataloader.num_workers=3"], {"TRAIN_DELAY": "0.2"}, 1.5, False),
    "3 workers, the whole group": (["dataloader.num_workers=3"], {"TRAIN_DELAY": "0.2"}, 1.5, True),
}


def children_of(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [int(child) for child in found]


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "training" else pytest.mark.slow) for case in CASES]
)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143)])
def test_a_signal_at_any_time_stops_saves_and_continues_exactly(cli, monkeypatch, case, signum, code):
    extra, delays, wait, to_group = CASES[case]
    (cli.cwd / "slow.py").write_text(SLOW)
    process = cli.start(*SLOW_WORDS, *extra, "hydra.run.dir=run", start_new_session=True, env={**os.environ, **delays})
    started = cli.cwd / "run" / "run.json"
    until(started.exists)
    time.sleep(wait)
    count = 3 if "workers" in case else 0
    workers = []

    def are_there():  # between two epochs there are none
        workers[:] = children_of(process.pid)
        return len(workers) == count

    until(are_there)
    (os.killpg if to_group else os.kill)(process.pid, signum)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    assert "stopped by SIGTERM" in output and "python -m runner resume run" in output
    assert json.loads(started.read_text())["state"] == "interrupted"
    assert not [pid for pid in workers if is_alive(pid)]
    monkeypatch.syspath_prepend(str(cli.cwd))
    resume(Path("run"), ["quiet=true"])
    runner.run([*SLOW_WORDS, *extra, "quiet=true"], run_dir="whole")
    assert_equal_runs("whole", "run")


@pytest.mark.slow
def test_the_second_signal_stops_at_once(cli):
    (cli.cwd / "slow.py").write_text(SLOW)
    process = cli.start(*SLOW_WORDS, "hydra.run.dir=run", env={**os.environ, "TRAIN_DELAY": "8"})
    until((cli.cwd / "run" / "run.json").exists)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl(PR_SET_PDEATHSIG) is Linux's; elsewhere it takes torch 5 s")
def test_workers_end_with_a_killed_parent_and_the_lock_is_free(cli):
    (cli.cwd / "slow.py").write_text(SLOW)
    words = [*SLOW_WORDS, "dataloader.num_workers=2", "hydra.run.dir=run"]
    process = cli.start(*words, env={**os.environ, "TRAIN_DELAY": "1"})
    until(lambda: len(children_of(process.pid)) == 2)
    workers = children_of(process.pid)
    second = cli("resume", "run")
    assert second.returncode == 2 and f"pid {process.pid}" in second.stderr
    plain = cli(*words)
    assert plain.returncode == 2 and f"pid {process.pid}" in plain.stderr
    time.sleep(0.3)
    process.kill()
    process.communicate()
    until(lambda: not any(map(is_alive, workers)), 10)
    assert cli("resume", "run").returncode == 0


def test_the_plain_command_on_an_unfinished_run_names_the_resume_line(cli):
    crash_at(9, cli.cwd / "run")
    done = cli(*WORDS, "hydra.run.dir=run")
    assert done.returncode == 2 and "python -m runner resume" in done.stderr


def test_a_run_killed_before_its_first_checkpoint_starts_again(whole):
    crash_at(3, "run")
    assert not list(Path("run/checkpoints").iterdir())
    record = resume(Path("run"), [])
    assert record["resumed"][0]["epoch"] == 0
    assert_equal_runs(whole, "run")


@pytest.mark.slow
def test_verify_finds_what_differs_by_name(whole, cli):
    equal = cli("verify", str(whole), "--kills", "3", "--seed", "1")
    assert equal.returncode == 0, equal.stdout + equal.stderr
    assert "equal in every bit" in equal.stdout and equal.stdout.count("killed at step") == 3
    state = torch.load(whole / "checkpoints" / "last.pt", weights_only=True)
    state["model_state_dict"]["1.weight"][0, 0] += 1e-7
    checkpoint.save(whole / "checkpoints" / "last.pt", state)
    other = cli("verify", str(whole), "--kills", "0")
    assert other.returncode == 1
    assert "last.pt['model_state_dict']['1.weight']" in other.stdout
    crash_at(9, cli.cwd / "unfinished")
    assert cli("verify", "unfinished").returncode == 2


def test_a_device_change_is_allowed_and_other_threads_are_said(whole):
    crash_at(13, "run")
    if not torch.cuda.is_available():
        resume(Path("run"), ["device=cpu"])  # auto was the CPU
        assert "another device" not in Path("run/runner.log").read_text()
        assert_equal_runs(whole, "run")
    crash_at(13, "other")
    resume(Path("other"), ["device.threads=2"])
    assert "another device, thread count or placement" in Path("other/runner.log").read_text()


@pytest.mark.parametrize("name", ["epoch_0004", "best"])
def test_a_crash_between_two_names_of_the_last_checkpoint_is_mended(whole, monkeypatch, name):
    from runner.storage.checkpoint import Checkpoints

    real = Checkpoints._set_aside

    def crash(self):
        if (self.directory / "epoch_0004.pt").exists():
            raise Crash
        return real(self)

    monkeypatch.setattr(Checkpoints, "_set_aside", crash)
    words = [*WORDS, "checkpoint.every=1" if name == "epoch_0004" else "checkpoint.every=4"]
    with pytest.raises(Crash):
        runner.run(words, run_dir="run")
    monkeypatch.undo()
    os.chdir(whole.parent)
    assert checkpoint.load(Path("run/checkpoints/last.pt"))["epoch"] == 3
    resume(Path("run"), [])
    assert_equal_runs(whole, "run")


def test_damage_and_a_kill_together_lose_no_more_than_the_damage(tmp_path):
    """The proof that a lost best epoch is made again outlives the rows that held it."""
    words = [
        *WORDS,
        "trainer.monitor=train/loss",
        "model.dropout=0.0",
        "dataset.augment=[]",
        "optimizer.lr=0.01",
    ]  # it falls
    runner.run(words, run_dir="whole")
    assert json.loads(Path("whole/run.json").read_text())["best_epoch"] == 4
    crash_at(20, "run", words)
    for name in ("last", "best"):  # one file of two names
        damage(Path(f"run/checkpoints/{name}.pt"), "flipped")

    def crash(progress, num_batches):
        if progress.batch == 2:
            raise Crash

    for _ in range(2):
        with pytest.raises(Crash):
            resume(Path("run"), [], on_batch=crash)
    resume(Path("run"), [])
    events = json.loads(Path("run/run.json").read_text())["resumed"]
    assert [event["epoch"] for event in events] == [2, 2, 2]
    assert_equal_runs("whole", "run")


NUMPY = """
import math
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler, LambdaLR

from runner.metrics import Accuracy


def warm_cosine(optimizer):
    def factor(epoch):  # the first rates are Python's, later ones numpy's
        return (epoch + 1) / 2 if epoch < 2 else 0.5 * (1 + np.cos(np.pi * epoch / 5))

    return LambdaLR(optimizer, factor)


class Short(LRScheduler):
    def __init__(self, optimizer):
        self.seen, self.where, self.table = deque(maxlen=2), Path("a"), defaultdict(int)
        super().__init__(optimizer)

    def get_lr(self):
        self.seen.append(np.float32(0.1))
        self.table[np.int64(self.last_epoch)] += 1
        return [(self.seen[-1] * np.float32(0.7)) ** 2 * len(self.table) for group in self.optimizer.param_groups]


class Counting(Accuracy):
    def __init__(self):
        super().__init__()
        self.by_class = {}

    def update(self, output, target):
        super().update(output, target)
        for label in target.numpy():
            self.by_class[label] = self.by_class.get(label, np.int64(0)) + 1

    def compute(self):
        return np.float32(sum(self.by_class.values()) / 7 + super().compute())

    def reset(self):
        super().reset()
        self.by_class = {}

    def state_dict(self):
        return {**super().state_dict(), "by_class": dict(self.by_class), "seen": np.array([len(self.by_class)])}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        assert all(type(key) is np.int64 for key in state["by_class"]), state
        self.by_class = dict(state["by_class"])


class Numbers(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr=np.float32(lr))

    def step(self, closure=None):
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["history"] = deque([np.float64(parameter.detach().sum().item())], maxlen=3)
        self.param_groups[0]["lr"] = self.param_groups[0]["lr"] * np.float32(0.99)


class Remembering(torch.nn.Linear):
    def __init__(self):
        super().__init__(64, 10)
        self.calls = np.int64(0)

    def forward(self, x):
        self.calls += self.training
        return super().forward(x.flatten(1)) * (1 + 0.01 * float(self.calls))

    def get_extra_state(self):
        return {"calls": self.calls, "table": np.arange(3)}

    def set_extra_state(self, state):
        self.calls = state["calls"]


class Holding(LRScheduler):
    def __init__(self, optimizer):
        self.function = math.cos
        super().__init__(optimizer)

    def get_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]


class Odd(Counting):
    def state_dict(self):
        return {"odd": object()}
"""
PART = {
    "scheduler": "{_target_: np_parts.warm_cosine}",
    "scheduler ": "{_target_: np_parts.Short, interval: batch}",
    "optimizer": "{_target_: np_parts.Numbers, _partial_: true, lr: 0.1}",
    "metrics": "{accuracy: {_target_: np_parts.Counting}}",
    "model": "{_target_: np_parts.Remembering}",
}


def with_part(key, value, more=()):
    Path("np_parts.py").write_text(NUMPY)
    partial = ", _partial_: true" if key == "scheduler" else ""
    words = [word for word in WORDS if not word.startswith((f"{key}=", f"{key}."))]
    return [*words, f"~{key}", f"+{key}={value[:-1]}{partial}}}", *more]


@pytest.mark.parametrize("key", PART)
def test_a_run_whose_parts_hold_numpys_numbers_is_saved_read_and_resumed(key, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    words = with_part(key.strip(), PART[key], ["checkpoint.every_batches=1", "checkpoint.state_dict=true"])
    runner.run(words, run_dir=tmp_path / "whole")
    for path in Path("whole/checkpoints").glob("*.pt"):
        assert torch.load(path, weights_only=True), path
    crash_at(15, "crashed", words)
    resume(Path("crashed"), [])
    assert_equal_runs("whole", "crashed")
    record = json.loads(Path("whole/run.json").read_bytes().rpartition(b"}")[0] + b"}")
    assert all(type(value) is float for value in record["last"].values())


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("scheduler", "{_target_: np_parts.Holding}", "scheduler:.*function"),
        ("metrics", "{accuracy: {_target_: np_parts.Odd}}", r"metrics\.accuracy:.*object"),
    ],
)
def test_a_part_whose_state_no_file_can_hold_is_refused_before_training(key, value, said, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match=said):
        runner.run(with_part(key, value), run_dir=tmp_path / "run")
    assert not Path("run/metrics.jsonl").exists()


CHANGING = """
import torch
from torch import nn

from runner.tasks import Step


class Task(nn.Module):
    seen = []
    total = 0

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.criterion = model, loss

    def forward(self, batch):
        data, target = batch
        output = self.model(data)
        output = output * (1 + self.changed(data, output.detach()))
        return Step(self.criterion(output, target), len(target), output, target)


def copied(model):
    import copy
    return copy.deepcopy(model).requires_grad_(False)


class Momentum(Task):  # a teacher that follows the student in forward, and a queue of what it gave
    def __init__(self, model, loss):
        super().__init__(model, loss)
        self.teacher = copied(model)
        self.register_buffer("queue", torch.zeros(4, 10))

    def changed(self, data, output):
        for own, other in zip(self.teacher.parameters(), self.model.parameters()):
            own.mul_(0.9).add_(other.detach() + 0.01, alpha=0.1)
        self.queue = torch.cat([self.teacher(data).detach()[:1], self.queue[:-1]])
        return self.queue.mean()


class Hidden(Task):  # ... in a list, so that it is no submodule
    def __init__(self, model, loss):
        super().__init__(model, loss)
        self.others = [copied(model)]

    def changed(self, data, output):
        for own in self.others[0].parameters():
            own.data.mul_(0.9)
        return self.others[0].eval()(data).mean().detach()


class Inner(Task):  # an optimizer of its own, for a temperature
    def __init__(self, model, loss):
        super().__init__(model, loss)
        self.scale = nn.Parameter(torch.zeros(()))
        self.inner = torch.optim.Adam([self.scale], lr=0.1)

    def changed(self, data, output):
        self.inner.zero_grad()
        with torch.enable_grad():
            (self.scale - output.mean()).square().backward()
        self.inner.step()
        return self.scale.detach()


class Extra(Task):
    count = 0

    def get_extra_state(self):
        return self.count

    def set_extra_state(self, state):
        self.count = state

    def changed(self, data, output):
        self.count += 1
        return self.count


class Own:
    def __init__(self):
        self.values = {}


class Objects(Task):  # objects of one's own, a closure, what a class holds
    def __init__(self, model, loss):
        super().__init__(model, loss)
        self.own, count = Own(), 0

        def counting():
            nonlocal count
            count += 1
            return count

        self.counting = counting

    def changed(self, data, output):
        self.own.values[len(self.own.values)] = float(output.mean())
        self.seen.append(1)
        type(self).total += 1
        return sum(self.own.values.values()) + self.counting() + len(self.seen) + self.total


class Replaced(Task):  # a parameter that is made anew, one that freezes, a hook
    def __init__(self, model, loss):
        super().__init__(model, loss)
        self.scale, self.calls = nn.Parameter(torch.zeros(()), requires_grad=False), []

    def changed(self, data, output):
        self.scale = nn.Parameter(self.scale + 1, requires_grad=False)
        self.model.register_forward_hook(lambda *args: self.calls.append(1))
        return self.scale + len(self.calls)
"""


@pytest.mark.parametrize("name", ["Momentum", "Hidden", "Inner", "Extra", "Objects", "Replaced"])
def test_what_a_task_changes_itself_is_as_if_nothing_had_looked_at_it(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("changing.py").write_text(CHANGING)
    words = [*WORDS, "~task", f"+task={{_target_: changing.{name}}}", "trainer.epochs=2"]
    runner.run(words, run_dir=tmp_path / "whole")
    sys.modules.pop("changing")  # with what its classes hold
    crash_at(1, "crashed", words)  # before its first checkpoint
    sys.modules.pop("changing")
    resume(Path("crashed"), [])  # a run that goes on is not looked at
    assert_equal_runs("whole", "crashed")


COPYING = """
import copy

import torch
from torch import nn

from runner.tasks import Step


class Near(nn.Module):  # L2-SP: not far from where it started
    def __init__(self, model, loss, kind="plain"):
        super().__init__()
        self.model, self.criterion = model, loss
        start = [p.detach().clone() for p in model.parameters()]
        if kind == "plain":
            self.start = start
        elif kind == "buffer":
            self.register_buffer("first", start[0])
            self.start = [self.first]
        else:
            self.teacher = copy.deepcopy(model).requires_grad_(False)

    def forward(self, batch):
        data, target = batch
        output = self.model(data)
        start = self.start if hasattr(self, "start") else self.teacher.parameters()
        far = sum((a - b).square().sum() for a, b in zip(self.model.parameters(), start))
        return Step(self.criterion(output, target) + 0.01 * far, len(target), output, target)
"""


@pytest.mark.parametrize(
    "kind", ["plain", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("buffer", "module"))]
)
def test_a_task_that_copies_the_model_holds_the_weights_that_the_run_starts_from(kind, whole, cli, monkeypatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("copying.py").write_text(COPYING)
    words = [*WORDS, "~task", f"+task={{_target_: copying.Near, kind: {kind}}}", f"init_from={whole.name}"]
    record = runner.run([*words, "optimizer.lr=1e-12", "averaging=none"], run_dir="still")
    plain = runner.run([*WORDS, f"init_from={whole.name}", "optimizer.lr=1e-12"], run_dir="plain")
    assert record["last"]["val/loss"] == pytest.approx(plain["last"]["val/loss"], abs=1e-6)  # it is not far from it
    whole_run = runner.run(words, run_dir="run")
    crash_at(13, "crashed", words)
    resume(Path("crashed"), [])
    assert_equal_runs("run", "crashed")
    shown = cli("evaluate", "crashed", "--which", "last", "--split", "val")
    values = dict(line.removeprefix("val/").split(": ") for line in shown.stdout.splitlines())
    assert float(values["loss"]) == whole_run["last"]["val/loss"], shown.stderr


def test_where_the_weights_are_gone_that_a_task_keeps_in_no_checkpoint_the_run_is_not_continued(whole, monkeypatch):
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("copying.py").write_text(COPYING)
    for kind in ("plain", "module"):
        words = [*WORDS, "~task", f"+task={{_target_: copying.Near, kind: {kind}}}", "model_weights=start.pt"]
        Path("start.pt").write_bytes((whole / "checkpoints" / "last.pt").read_bytes())
        crash_at(13, kind, words)
    Path("start.pt").unlink()
    assert resume(Path("module"), [])["state"] == "done"  # all that it holds is in the checkpoint
    with pytest.raises(InputError, match=r"model_weights.*start\.pt"):
        resume(Path("plain"), [])
