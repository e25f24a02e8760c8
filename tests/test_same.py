"""trainer.overfit_batches: the same batches in every epoch, as the first epoch draws them, and what is said of them."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import open_dict

import runner
from conftest import killed_after
from runner.__main__ import dispatch
from runner.batches.nested import equal
from runner.before.beforehand import check_jobs
from runner.cli.verify import differences
from runner.config.compose import compose
from runner.errors import InputError
from runner.job.build import build
from runner.job.resuming import resume
from runner.storage.run_dir import RunDir
from runner.sweep.combine import task_config
from runner.sweep.plan import result_config
from runner.sweep.show import caveats
from test_stream import Counted, words  # noqa: F401  # Counted is named in the words

MLP = ["model=mlp", "model.hidden=[8]", "trainer.epochs=4", "device.threads=1", "quiet=true"]
TWO = [*MLP, "trainer.overfit_batches=2", "dataloader.batch_size=32"]
SHIFT = "+dataset.augment=[{_target_: runner.augment.RandomAffine, degrees: 20}]"


def built(*given):
    return build(task_config(compose([*given], None)[1]), is_new=True)


@pytest.mark.parametrize("placement", ["memory", pytest.param("workers", marks=pytest.mark.slow)])
def test_the_batches_are_those_of_the_first_epoch_augmented_as_there(placement):
    given = [*MLP, SHIFT, f"dataloader.placement={placement}", "dataloader.batch_size=32"]
    if "augment" in task_config(compose(MLP, None)[1]).dataset:
        given[len(MLP)] = SHIFT.removeprefix("+")
    whole, same = built(*given).trainer, built(*given, "trainer.overfit_batches=2").trainer
    first = list(whole.train_loader.batches(0))[:2]
    for batches in (same.train_loader.batches(0), same.train_loader.batches(3), same.eval_loaders["overfit"].batches()):
        assert equal(list(batches), first)
    assert equal(list(same.train_loader.batches(2, 1)), first[1:])
    assert not equal(list(whole.train_loader.batches(1))[:2], first)


def test_a_streams_are_kept_and_nobody_can_change_them():
    trainer = built(*words(), "trainer.limit_batches=null", "trainer.overfit_batches=3").trainer
    first = [(data.clone(), target.clone()) for data, target in trainer.train_loader.batches(0)]
    assert equal(list(built(*words(), "trainer.limit_batches=3").trainer.train_loader.batches()), first)
    for data, _ in trainer.train_loader.batches(1):
        data.zero_()
    assert equal([tuple(batch) for batch in trainer.eval_loaders["overfit"].batches()], first)


@pytest.mark.slow
@pytest.mark.parametrize("given", [TWO, [*words(), "trainer.overfit_batches=3", "trainer.monitor=overfit/loss"]])
def test_a_run_that_is_killed_inside_an_epoch_goes_on_with_the_same_batches(given, monkeypatch):
    given = [*given, "checkpoint.every_batches=1"]
    runner.run(given, run_dir="whole")
    killed_after(3, monkeypatch, lambda: runner.run(given, run_dir="killed"))
    killed_after(2, monkeypatch, lambda: resume(Path("killed"), []))
    resume(Path("killed"), [])
    assert not list(differences(RunDir(Path("whole")), RunDir(Path("killed"))))


def test_what_is_said_of_such_a_run_is_true(capsys):
    record = runner.run(TWO, run_dir="run")
    assert record["monitor"] == "overfit/accuracy" and record["chosen_on"] == "overfit"
    assert record["examples"] == {"train": 64} and record["test"] == {}
    assert not any(name.startswith(("val/", "test/")) for name in record["best"])
    log = Path("run/runner.log").read_text()
    assert "the same 2 batches, as the first epoch draws them" in log and "scheduler=constant keeps it" in log
    assert dispatch(["evaluate", "run"]) == 0
    said = capsys.readouterr().out
    assert f"overfit/accuracy: {record['best']['overfit/accuracy']!r}" in said and "test" not in said
    with pytest.raises(InputError, match="--split test: this run has no such part; choices: overfit"):
        dispatch(["evaluate", "run", "--split", "test"])
    facts = {"monitor": "overfit/accuracy", "compared": 1, "epochs": 1, "mode": "max", "choice": None}
    (line,) = caveats({**facts, "chosen_on": "overfit", "is_dry_run": False})
    assert line.startswith("trainer.overfit_batches: figures of the very examples that were trained on")
    with pytest.raises(InputError, match="trainer.overfit_batches: 2 -> 3 would change what this run has trained"):
        resume(Path("run"), ["trainer.overfit_batches=3"])


def test_a_config_of_before_is_the_same_setting_and_its_run_opens():
    runner.run([*MLP, "trainer.epochs=1"], run_dir="run")
    record = json.loads(Path("run/run.json").read_text())
    older = json.loads(json.dumps(record["config"]))
    del older["trainer"]["overfit_batches"]
    assert result_config(older) == result_config(record["config"])
    cfg = task_config(compose(MLP, None)[1])
    with open_dict(cfg):
        del cfg.trainer["overfit_batches"]
    assert build(cfg).parts.test is not None


def test_jobs_of_a_sweep_have_each_their_own_parts():
    jobs = [(one, task_config(compose([*MLP, one], None)[1])) for one in ("seed=1", "trainer.overfit_batches=1")]
    for order in (jobs, jobs[::-1]):
        check_jobs(order)


@pytest.mark.slow
def test_more_batches_than_an_epoch_has_are_all_of_them_and_dry_run_is_one():
    trainer = built(*MLP, "trainer.overfit_batches=99", "dataloader.batch_size=400").trainer
    assert len(trainer.train_loader) == 3 and sum(len(b[1]) for b in trainer.eval_loaders["overfit"].batches()) == 1007
    assert len(built(*TWO, "trainer.dry_run=true").trainer.train_loader) == 1
    assert len(built(*TWO, "trainer.limit_batches=1").trainer.train_loader) == 1
    assert torch.equal(*(next(built(*TWO).trainer.eval_loaders["overfit"].batches())[1] for _ in range(2)))


@pytest.mark.parametrize(
    "value", ["0", "true", *(pytest.param(one, marks=pytest.mark.slow) for one in ("-1", "1.5", "x", "[1]"))]
)
def test_a_wrong_count_is_one_line(value):
    for start in (lambda words: runner.run(words, run_dir="run"), lambda words: built(*words)):
        with pytest.raises(InputError, match=r"trainer.overfit_batches=.*must be a whole number"):
            start([*MLP, f"trainer.overfit_batches={value}"])


def test_the_loader_says_how_many_examples_there_are_where_drop_last_leaves_none():
    with pytest.raises(InputError, match="with drop_last no batch is left of 1007 examples"):
        built(*TWO, "dataloader.batch_size=2000", "dataloader.drop_last=true")
