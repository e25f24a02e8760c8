"""What a small change of the code would break in silence: each test here notices one of tests/mutations.py's."""

import copy
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from mutations import MUTATIONS
from runner.config.compose import compose
from runner.errors import Diverged, InputError, Interrupted
from runner.job.recovery import FileFacts, best_file
from runner.losses import NLL
from runner.storage import checkpoint, files, lease, lock
from runner.storage.checkpoint import Checkpoints, load
from runner.storage.lease import Lease, Taken
from runner.storage.rows import Rows
from runner.storage.run_dir import RunDir
from runner.sweep import plan
from runner.sweep.plan import Job
from runner.sweep.run import finished_state
from runner.tasks import Supervised
from runner.train.events import Progress
from runner.train.weights import load_weights, weights_of
from test_checkpoint import state
from test_trainer import Explodes, StopAfter, assert_equal_states, make, rows_of


class Scripted:
    """A metric whose values are given."""

    def __init__(self, values):
        self.values = list(values)

    def update(self, outputs, targets): ...
    def reset(self): ...
    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...
    def compute(self):
        return self.values.pop(0)


def scripted(*values):
    return {"odd": Scripted([0.0] * 9)}, {"odd": Scripted(values)}


class Noisy(nn.Sequential):
    """Draws in evaluation too."""

    def forward(self, x):
        return super().forward(x) * torch.rand(())  # what is added to all scores changes no loss


def noisy():
    return Noisy(nn.Flatten(), nn.Linear(36, 4))


class Counting(NLL):
    """A loss with a state, and a parameter that is trained."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output, target):
        self.count += self.training
        return super().forward(output * self.scale, target)


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equal_epochs_the_first_is_the_best(mode):
    sign = 1 if mode == "max" else -1
    trainer = make(epochs=4, monitor="val/odd", mode=mode, metrics=scripted(0.5, 0.5, 0.5 + 0.1 * sign, 0.5))
    best = []
    trainer.listeners.epoch.append(lambda end: best.append((end.is_best, end.progress.best_epoch)))
    trainer.fit()
    assert best == [(True, 1), (False, 1), (True, 3), (False, 3)]
    assert trainer.progress.best_value == 0.5 + 0.1 * sign


def test_evaluation_draws_the_same_whatever_was_drawn_before_and_leaves_the_generators_alone():
    trainer = make(model=noisy())
    torch.manual_seed(5)
    expected = torch.rand(2)
    values = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        values.append(trainer.evaluate())
        if seed == 5:
            assert torch.equal(torch.rand(2), expected)
    assert values[0] == values[1]
    other = make(model=noisy(), seed=4)
    other.task.model.load_state_dict(trainer.task.model.state_dict())
    assert other.evaluate()["val/loss"] != values[0]["val/loss"]


def test_training_is_the_same_with_and_without_an_evaluated_part():
    def drawing():
        model = Noisy(nn.Flatten(), nn.Linear(36, 4), nn.Dropout(0.5))
        return make(model=model, monitor="train/loss", epochs=2)

    evaluated, bare = drawing(), drawing()
    bare.eval_loaders = {}
    bare.task.model.load_state_dict(evaluated.task.model.state_dict())
    evaluated.fit(), bare.fit()
    assert_equal_states(dict(evaluated.task.model.state_dict()), dict(bare.task.model.state_dict()))


def test_the_last_weights_are_put_back_after_the_test_also_when_it_is_stopped():
    trainer = make(
        epochs=2, monitor="val/odd", mode="max", metrics=scripted(1.0, 0.0, 0.0, 0.0, 0.0, 0.0), loss=Counting()
    )
    trainer.fit()
    last = copy.deepcopy(weights_of(trainer.task))
    assert trainer.progress.best_epoch == 1
    best = trainer.load_best_weights()
    assert not torch.equal(best["model_state_dict"]["1.weight"], last["model_state_dict"]["1.weight"])
    seen = []
    trainer.task.model.register_forward_hook(lambda *_: seen.append(trainer.task.model[1].weight.clone()))
    trainer.test(trainer.eval_loaders["val"])
    assert torch.equal(seen[0], last["model_state_dict"]["1.weight"])
    assert torch.equal(seen[-1], best["model_state_dict"]["1.weight"])
    assert_equal_states(last, weights_of(trainer.task))
    trainer.eval_args = (
        *trainer.eval_args[:-1],
        StopAfter(3).check,
    )  # two batches of the last weights, then one of the best
    with pytest.raises(Interrupted):
        trainer.test(trainer.eval_loaders["val"])
    assert_equal_states(last, weights_of(trainer.task))


def test_the_losss_state_is_saved_and_loaded(tmp_path):
    whole = make(tmp_path / "whole", loss=Counting())
    whole.fit()
    stopped = make(tmp_path / "stopped", loss=Counting(), stop=StopAfter(4))
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = make(tmp_path / "stopped", loss=Counting())
    resumed.state.load_state_dict(load(tmp_path / "stopped" / "checkpoints" / "last.pt"))
    assert resumed.task.criterion.count == 4 and resumed.task.criterion.scale != 1
    resumed.fit()
    assert whole.task.criterion.count == 18
    assert_equal_states(dict(whole.task.criterion.state_dict()), dict(resumed.task.criterion.state_dict()))
    other = Supervised(nn.Linear(2, 2), Counting())
    load_weights(other, {**weights_of(other), "criterion_state_dict": dict(whole.task.criterion.state_dict())})
    assert other.criterion.count == 18


def test_nothing_that_is_not_finite_is_saved_inside_an_epoch(tmp_path):
    def explode(progress, num_batches):
        if progress.batch == 2:
            trainer.task.model[1].weight.data.fill_(math.inf)

    trainer = make(tmp_path, checkpoints=Checkpoints(every_batches=2), log_every=0)
    trainer.listeners.batch.append(explode)
    with pytest.raises(Diverged, match="1.weight is not finite in epoch 1, after batch 2 of 6"):
        trainer.fit()
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


class Unsayable(NLL):
    """Its value is NaN from the third batch on, its gradient is not."""

    calls = 0

    def forward(self, output, target):
        self.calls += self.training
        return super().forward(output, target) + (math.nan if self.calls >= 3 else 0.0)


def test_no_state_with_a_loss_that_is_not_finite_is_saved_inside_an_epoch(tmp_path):
    trainer = make(tmp_path, checkpoints=Checkpoints(every_batches=2), log_every=0, loss=Unsayable())
    with pytest.raises(Diverged, match="epoch 1, batch 3 of 6"):
        trainer.fit()
    assert load(tmp_path / "checkpoints" / "last.pt")["progress"]["batch"] == 2


def test_what_the_optimizer_keeps_must_be_finite_too():
    trainer = make(epochs=1)

    def explode(progress, num_batches):
        if progress.batch == num_batches:
            next(iter(trainer.optimizer.state.values()))["momentum_buffer"].fill_(math.nan)

    trainer.listeners.batch.append(explode)
    with pytest.raises(Diverged, match="the optimizer's momentum_buffer of parameter 0"):
        trainer.fit()


def test_a_stop_with_a_state_that_is_not_finite_saves_nothing(tmp_path):
    trainer = make(tmp_path, model=Explodes(2), log_every=0, stop=StopAfter(4))
    with pytest.raises(Diverged, match="batch 3 of 6"):
        trainer.fit()
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


def test_minutes_are_counted_from_the_last_save(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("runner.train.trainer.time.monotonic", lambda: clock[0])
    trainer = make(tmp_path, epochs=1, checkpoints=Checkpoints(every_minutes=2))
    saved = []
    trainer.listeners.saving.append(lambda: saved.append(trainer.progress.batch))

    def tick(progress, num_batches):
        clock[0] += 60

    trainer.listeners.batch.append(tick)
    trainer.fit()
    assert saved == [2, 4, 0]  # and the epoch's end


def test_a_scheduler_of_metrics_gets_this_epochs_metric():
    trainer = make(epochs=3, monitor="val/odd", metrics=scripted(3.0, 2.0, 1.0))
    taken = []
    scheduler = trainer.schedule.scheduler
    object.__setattr__(trainer.schedule, "monitor", "val/odd")
    scheduler.step = taken.append
    rows = rows_of(trainer)
    trainer.fit()
    assert taken == [row["val/odd"] for row in rows] == [3.0, 2.0, 1.0]


# --- what lies on disk ------------------------------------------------------------------------------------------------


def test_the_first_checkpoint_is_read_back_before_it_takes_a_name(tmp_path, monkeypatch):
    checkpoints = Checkpoints()
    checkpoints.open(tmp_path / "c")
    with pytest.raises(InputError, match="odd"):
        checkpoints.write(state(1, odd=object()), is_evaluated=True, is_best=True)
    assert [p.name for p in (tmp_path / "c").glob("*.pt")] == []
    read = []
    monkeypatch.setattr(checkpoint, "load", lambda path: read.append(path.name))
    for epoch in (1, 2):
        checkpoints.write(state(epoch), is_evaluated=True, is_best=False)
    assert read == ["last.pt.tmp"]  # once: it costs as much as a save


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, call):
    files.write_atomically(tmp_path / "a", b"old")
    with monkeypatch.context() as patched:

        def fail(*_):
            raise OSError(28, "No space left on device")

        patched.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            files.write_atomically(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_nothing_is_written_into_a_leftover_that_has_a_second_name(tmp_path):
    (tmp_path / "precious").write_bytes(b"old")
    os.link(tmp_path / "precious", tmp_path / "a.tmp")
    files.write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "precious").read_bytes() == b"old" and (tmp_path / "a").read_bytes() == b"new"


def test_rows_are_cut_back_byte_for_byte_and_only_where_there_is_something_to_cut(tmp_path):
    rows = Rows(tmp_path / "rows.jsonl", "epoch")
    rows.path.write_bytes(b'{"epoch":1}\n{"epoch": 2}\n{"epoch": 3}\n')
    before = rows.path.stat().st_ino
    rows.cut_back(3)
    assert rows.path.stat().st_ino == before
    rows.cut_back(2)
    assert rows.path.read_bytes() == b'{"epoch":1}\n{"epoch": 2}\n'


def test_a_run_that_began_between_two_looks_is_not_overwritten(tmp_path, monkeypatch):
    place = RunDir(tmp_path / "run")
    take = RunDir.lock

    def another_was_faster(self):
        self.run_json.write_text('{"state": "done"}')
        take(self)

    monkeypatch.setattr(RunDir, "lock", another_was_faster)
    with pytest.raises(InputError, match="already holds a run"):
        place.claim()
    monkeypatch.undo()
    place.lock()  # it was given back
    place.release()
    place.discard()
    assert place.run_json.exists()


@pytest.mark.parametrize("how", ["removed", "made again"])
def test_a_lock_is_of_the_file_that_has_the_name(tmp_path, monkeypatch, how):
    path = tmp_path / "run.lock"
    path.touch()
    real, tries = lock._try, []

    def removed_meanwhile(descriptor):
        real(descriptor)
        if not tries:
            path.unlink()
            if how == "made again":
                path.touch()
        tries.append(descriptor)

    monkeypatch.setattr(lock, "_try", removed_meanwhile)
    lock.take(path, "me\n")
    assert len(tries) == 2
    assert path.read_text() == "me\n"
    assert os.fstat(lock._held[path.resolve()]).st_ino == path.stat().st_ino
    lock.give_back(path)
    assert path.exists()  # without it two processes could lock two files


OTHER = "host elsewhere, pid 7, abc\n"


def test_a_stolen_lease_is_given_back_to_whom_it_was_stolen_from(tmp_path, monkeypatch):
    path = tmp_path / "run.lease"
    path.write_text("host gone, pid 1, def\n")
    os.utime(path, (1, 1))
    real = os.rename

    def another_was_faster(source, target):
        if source == path:
            path.unlink()
            path.write_text(OTHER)
            monkeypatch.setattr(os, "rename", real)
        real(source, target)

    monkeypatch.setattr(os, "rename", another_was_faster)
    with pytest.raises(Taken, match="host elsewhere, pid 7"):
        Lease(path)
    assert path.read_text() == OTHER and os.listdir(tmp_path) == ["run.lease"]


def test_an_owner_whose_lease_is_anothers_ends_at_once(tmp_path, monkeypatch, capsys):
    ended, killed = threading.Event(), []

    def kill(pid, signum):
        killed.append((pid, signum))
        ended.set()

    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr("runner.storage.lease.os.kill", kill)
    path = tmp_path / "run.lease"
    held = Lease(path)
    time.sleep(0.05)
    before = list(killed)
    path.write_text(OTHER)
    is_ended = ended.wait(10)
    held._ended.set()
    held._thread.join(10)  # before anything is asserted: its next beat would be a real one
    assert is_ended and before == []
    assert set(killed) == {(os.getpid(), signal.SIGKILL)}
    held.release()
    assert path.read_text() == OTHER  # it is not ours to remove


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "later", "expected"), [("max", 0.5, False), ("max", 0.6, True), ("min", 0.5, False)])
def test_a_lost_best_epoch_is_made_up_for_only_by_one_that_is_better(mode, later, expected):
    facts = FileFacts(Progress(2, 18, 0, 1, 0.5, 9, 18), holds_best=False)
    assert best_file(facts, {Path("last.pt"): facts}, {9: 0.5, 18: 0.4, 27: later}, mode) == (None, expected)


def test_only_a_later_epoch_makes_up_for_a_lost_best_one():
    facts = FileFacts(Progress(2, 18, 0, 1, 0.5, 9, 18), holds_best=False)
    assert best_file(facts, {Path("last.pt"): facts}, {9: 0.9, 18: 0.9, 27: None}, "max") == (None, False)


# What cannot change a result; all else in the config is part of a job's identity.
NEUTRAL = {"name", "tags", "notes", "trust", "quiet", "trainer.log_every"}
NEUTRAL |= {f"dataloader.{key}" for key in ("placement", "memory_limit", "num_workers", "pin_memory")}
NEUTRAL |= {f"dataloader.{key}" for key in ("persistent_workers", "prefetch_factor")}


def test_a_jobs_identity_is_of_every_key_that_can_change_its_result():
    _, composed = compose([])
    with_hydra = OmegaConf.to_container(composed, resolve=False)
    config = {key: value for key, value in with_hydra.items() if key != "hydra"}
    flat = plan.flatten(config)
    before = Job([], config, {}).identity
    assert {"precision.type", "trainer.accumulate"} <= set(flat)
    wrong = []
    for key in flat:
        other = OmegaConf.create(config)
        OmegaConf.update(other, key, "another", force_add=True)
        changed = Job([], OmegaConf.to_container(other, resolve=False), {}).identity != before
        if changed == (key in NEUTRAL or key.startswith(("sweep.", "checkpoint.", "derived."))):
            wrong.append(key)
    assert wrong == []


ONE, TWO = (
    {"commit": "a", "diff": None, "runner": "1", "own": {}},
    {"commit": "b", "diff": None, "runner": "1", "own": {}},
)


@pytest.mark.parametrize(
    ("record", "code", "expected"),
    [
        (None, ONE, None),
        ({"state": "done", "code": ONE}, TWO, "done"),
        ({"state": "failed", "failure": "diverged", "code": ONE}, ONE, "failed"),
        ({"state": "failed", "failure": "diverged", "code": ONE}, TWO, None),
        ({"state": "failed", "failure": "diverged", "code": ONE, "resumed": [{"code": TWO}]}, TWO, "failed"),
        ({"state": "failed", "failure": "diverged", "code": TWO, "resumed": [{"code": ONE}]}, TWO, None),
        ({"state": "failed", "failure": "RuntimeError", "code": ONE}, ONE, None),
        ({"state": "interrupted", "failure": "diverged", "code": ONE}, ONE, None),
    ],
)
def test_a_job_runs_again_unless_it_is_done_or_diverged_with_this_very_code(tmp_path, record, code, expected):
    job = Job([], {}, {}, folder=tmp_path)
    if record is not None:
        full = {"error": "the loss is not finite", "epochs": 2, "epochs_done": 0, "config": {}, "monitor": "val/loss"}
        full |= {"mode": "min", "best_value": None, "best_epoch": None, "test": {}, "best": {}, "last": {}, **record}
        full["resumed"] = [{"at": "then", "epoch": 0, "batch": 0, **event} for event in record.get("resumed", [])]
        (tmp_path / "run.json").write_text(json.dumps(full))
    why = "the loss is not finite" if expected == "failed" else None
    assert finished_state(job, code) == (expected, why)


def test_a_job_keeps_its_deaths_when_it_is_planned_again(tmp_path):
    job = Job(["seed=1"], {"seed": 1}, {"seed": "1"}, folder=tmp_path / "seed=1")
    plan.write_job(job)
    for exit_code in (-9, -11):
        plan.record_death(job.folder, {"exit_code": exit_code})
        plan.write_job(job)
    assert [d["exit_code"] for d in plan.known_jobs(tmp_path)["seed=1"]["deaths"]] == [-9, -11]


def test_a_folder_that_holds_a_run_is_no_new_jobs(tmp_path):
    (tmp_path / "seed=1").mkdir()
    (tmp_path / "seed=1" / "run.json").write_text("{}")
    job = Job([], {"seed": 1}, {"seed": "1"})
    plan.place_jobs([job], tmp_path)
    assert job.name.startswith("seed=1-")


def test_null_and_missing_are_two_things_when_two_sweeps_are_compared(tmp_path):
    said = {"arguments": [], "config_dir": None, "base": {"a": None}, "swept": ["b"], "code": ONE}
    plan.write_sweep(tmp_path, said, [])
    plan.check_same(tmp_path, {"a": None, "b.c": 1, "seed": 3}, ["d"], ONE, force=False)
    with pytest.raises(InputError, match="holds a sweep of another config; a: None -> -"):
        plan.check_same(tmp_path, {}, [], ONE, force=False)
    with pytest.raises(InputError, match="holds a sweep of other code; commit: a -> b"):
        plan.check_same(tmp_path, {"a": None}, [], TWO, force=False)
    plan.check_same(tmp_path, {}, [], TWO, force=True)


def test_the_name_of_each_new_folder_is_made_durable_in_the_one_above(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "fsync_directory", synced.append)
    files.make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir() and sorted(synced) == [tmp_path, tmp_path / "a"]
    synced.clear()
    files.make_directory(tmp_path / "a")
    assert synced == []


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MUTATIONS))
def test_each_mutation_by_hand_is_noticed(name, tmp_path):
    path, old, new, tests = MUTATIONS[name]
    root = Path(__file__).parents[1]
    for folder in ("src", "conf"):
        shutil.copytree(root / folder, tmp_path / folder)
    mutated = tmp_path / "src" / "runner" / path
    assert mutated.read_text().count(old) == 1, f"{path} has changed: mend tests/mutations.py"
    mutated.write_text(mutated.read_text().replace(old, new))
    words = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*words, *(str(root / "tests" / test) for test in tests)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout
    assert "FAILED" in done.stdout or "ERROR" in done.stdout
