"""Trackers: what a run told is all there once, also after kills, and the run is the one without them."""

from pathlib import Path

import pytest

import runner
from runner.errors import InputError
from runner.job.resuming import resume
from test_listeners import FAST, rows
from test_tasks import Killed, assert_equal, final

WORDS = [*FAST, "tracking=tensorboard", "trainer.epochs=3", "checkpoint.every_batches=4", "trainer.log_every=3"]


def events(folder):
    """{tag: [(step, value), ...]} of the event files, read back as TensorBoard does."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    found = reader.EventAccumulator(str(Path(folder, "tensorboard")), size_guidance={"scalars": 0})
    found.Reload()
    tags = [tag for tag in found.Tags()["scalars"] if "second" not in tag]  # times differ
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags}


def test_each_step_is_there_once_also_after_kills_and_the_run_is_the_same(monkeypatch):
    pytest.importorskip("tensorboard", reason="the optional extra [tensorboard]")
    from runner.train.trainer import Trainer

    plain = [word for word in WORDS if not word.startswith("tracking")]
    runner.run(plain, run_dir="plain")
    runner.run(WORDS, run_dir="whole")
    after = Trainer.after_batch
    for stop in (6, 11, 30):
        count = 0

        def dying(self, stop=stop):
            nonlocal count
            after(self)
            count += 1
            if count == stop:
                raise Killed

        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(Trainer, "after_batch", dying)
            runner.run(WORDS, run_dir="killed") if not Path("killed").exists() else resume(Path("killed"), [])
    resume(Path("killed"), [])
    assert_equal(final("plain"), final("killed"))
    whole, killed = events("whole"), events("killed")
    assert whole == killed
    for tag, told in whole.items():
        assert len({step for step, _ in told}) == len(told), tag
    assert [round(value, 6) for _, value in whole["epoch/val/loss"]] == [round(r["val/loss"], 6) for r in rows("plain")]


def test_without_its_package_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        InputError, match="^tracking.tensorboard: the package tensorboard is missing; pip install tensorboard$"
    ):
        runner.run([*FAST, "tracking=tensorboard"])


def test_another_trackers_name_is_refused():
    with pytest.raises(InputError, match="tracking=wandb: .*choices: none, tensorboard"):
        runner.run([*FAST, "tracking=wandb"])
