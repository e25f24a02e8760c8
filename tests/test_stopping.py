"""When a run ends before its length: the rule, the run that obeys it, and what is said of it afterwards."""

import contextlib
import functools
import importlib
import json
import math
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

import runner
from conftest import killed_after
from runner.config.compose import compose, overridden
from runner.errors import InputError, Interrupted
from runner.job.build import build
from runner.job.launch import launch
from runner.job.record import ending, unbegun
from runner.job.resuming import resume
from runner.job.run import train
from runner.storage.identity import config_digest
from runner.storage.run_dir import RunDir
from runner.sweep import show
from runner.sweep.combine import task_config
from runner.sweep.plan import result_config
from runner.train.stopping import Stopping
from test_listeners import FAST
from test_mutations import scripted
from test_tasks import assert_equal, final
from test_trainer import make, rows_of

PATIENT = [*FAST, "trainer.epochs=20", "stopping=early", "stopping.patience=2", "stopping.min_delta=0.005"]


def composed(*words):
    return task_config(compose([*words], None)[1])


def verb(name, *words):
    module = importlib.import_module(f"runner.cli.{name}")
    return module.main(module.parser().parse_args(words))


def reason(*values, mode="max", seconds=0.0, **rule):
    rows = [{"epoch": number + 1, "step": 9 * number + 9, "val/a": value} for number, value in enumerate(values)]
    return Stopping(**rule).reason(rows, "val/a", mode, seconds)


@pytest.mark.parametrize(
    ("values", "rule", "said"),
    [
        ([], {"patience": 1}, None),
        ([1], {"patience": 1}, None),
        ([1, 1], {"patience": 1}, "val/a has not been better than that of epoch 1 for 1 evaluation"),
        ([1, 2, 1, 3, 3], {"patience": 2}, None),
        ([1, 2, 1, 2], {"patience": 2}, "val/a has not been better than that of epoch 2 for 2 evaluations"),
        ([1, 1.1], {"patience": 1, "min_delta": 0.15}, "val/a has not been better than that of epoch 1 by more"),
        ([1, 1.1, 1.2], {"patience": 2, "min_delta": 0.15}, None),  # better than the last that counted
        ([2, 1, 0.5], {"patience": 1, "mode": "min"}, None),
        ([2, 3], {"patience": 1, "mode": "min"}, "val/a has not been better than that of epoch 1 for 1"),
        ([math.nan, None], {"patience": 2}, "val/a has not been better than no number for 2 evaluations"),
        ([math.nan, 1], {"patience": 1}, None),
        ([0.4, 0.5], {"threshold": 0.5}, "val/a is 0.5, and 0.5 was asked for"),
        ([0.4, 0.49], {"threshold": 0.5}, None),
        ([0.4], {"threshold": 0.5, "mode": "min"}, "val/a is 0.4, and 0.5 was asked for"),
        ([None], {"threshold": 0.5}, None),
        ([0.4], {"divergence": 0.5}, "val/a is 0.4 after 1 evaluation, worse than 0.5"),
        ([0.5], {"divergence": 0.5}, None),
        ([0.4], {"divergence": 0.5, "divergence_after": 2}, None),
        ([0.4, 0.4], {"divergence": 0.5, "divergence_after": 2}, "val/a is 0.4 after 2 evaluations, worse than 0.5"),
        ([9], {"divergence": 5, "mode": "min"}, "val/a is 9 after 1 evaluation, worse than 5"),
        ([math.nan], {"divergence": 5}, "val/a is not finite after 1 evaluation, worse than 5"),
        ([1], {"max_minutes": 1, "seconds": 59.9}, None),
        ([1], {"max_minutes": 1, "seconds": 60.0}, "max_minutes=1 have passed"),
        ([1, 1, 1], {}, None),
    ],
)
def test_the_reason_follows_from_the_rows(values, rule, said):
    found = reason(*values, **rule)
    assert found is None if said is None else found.startswith(said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("stopping.patience=0", "stopping.patience=0: must be a whole number of at least 1 or null"),
        ("stopping.patience=x", "stopping.patience=x: must be a whole number of at least 1 or null"),
        ("stopping.min_delta=-1", "stopping.min_delta=-1: must be a number of at least 0"),
        ("stopping.min_delta=1", "stopping.min_delta=1: needs a stopping.patience"),
        ("stopping.threshold=high", "stopping.threshold=high: must be a number or null"),
        ("stopping.divergence=true", "stopping.divergence=true: must be a number or null"),
        ("stopping.divergence_after=0", "stopping.divergence_after=0: must be a whole number of at least 1"),
        ("stopping.divergence_after=2", "stopping.divergence_after=2: needs a stopping.divergence"),
        ("stopping.max_minutes=0", "stopping.max_minutes=0: must be a number of above 0 or null"),
        ("stopping.threshold=.nan", "stopping.threshold=.nan: must be a number or null"),
        ("stopping.patiense=1", "stopping.patiense=1: stopping has no key 'patiense'; did you mean patience?"),
        ("stopping=erly", "stopping=erly: no such choice; did you mean early? choices: early, none"),
        ("stopping=null", "stopping=null: a run needs the group stopping; choices: early, none"),
        (
            "+stopping.min_dela=1",
            "stopping.min_dela: nothing takes this key; did you mean min_delta? choices: patience,",
        ),
    ],
)
def test_bad_input_is_one_line(word, said):
    with pytest.raises(InputError) as refused:
        runner.run([*FAST, word], run_dir="run")
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)
    assert not Path("run", "run.json").exists()


def test_a_trainer_ends_after_the_evaluation_that_says_so():
    trainer = make(
        epochs=9, monitor="val/odd", mode="max", metrics=scripted(1.0, 2.0, 2.0, 0.0), stopping=Stopping(patience=2)
    )
    rows = rows_of(trainer)
    trainer.fit()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4] and trainer.progress.best_epoch == 2
    assert trainer.stop_reason == "val/odd has not been better than that of epoch 2 for 2 evaluations"
    trainer.fit()
    assert len(rows) == 4  # it still holds


def test_a_run_whose_last_evaluation_would_stop_it_is_not_stopped():
    trainer = make(epochs=2, monitor="val/odd", mode="max", metrics=scripted(1.0, 1.0), stopping=Stopping(patience=1))
    trainer.fit()
    assert trainer.progress.epoch == 2 and trainer.stop_reason is None


def test_the_time_of_all_epochs_counts():
    trainer = make(epochs=9, stopping=Stopping(max_minutes=1))
    trainer.seconds = 59.99999
    trainer.fit()
    assert trainer.progress.epoch == 1 and trainer.stop_reason == "max_minutes=1 have passed"


def test_time_inside_epochs_that_were_stopped_counts_in_the_record_and_for_the_clock():
    """Stopped inside every epoch, before any evaluation, and killed by no limit but the clock's."""
    words = [*FAST, "trainer.epochs=40", "trainer.limit_batches=4", "stopping.max_minutes=0.02"]

    def on_batch(progress, batches):
        time.sleep(0.1)
        if progress.batch == 2 and progress.epoch % 2 == 0:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        launch(words, functools.partial(train, on_batch=on_batch), None, "run")
    place, seconds = Path("run"), [0.0]
    for _ in range(40):
        record = RunDir(place).read_run()
        assert record["seconds"] >= seconds[-1] + 0.1  # nothing that was used is forgotten
        seconds.append(record["seconds"])
        with contextlib.suppress(Interrupted):
            if resume(place, [], on_batch=on_batch, is_shown=False)["state"] == "done":
                break
    record = RunDir(place).read_run()
    assert record["stopped"] == "max_minutes=0.02 have passed" and record["epochs_done"] < 40
    rows = RunDir(place).metrics.read()
    assert record["seconds"] >= sum(row["seconds"] for row in rows) - 0.01
    assert all(0 < row["examples_per_second"] < 16 / 0.1 + 1 for row in rows)


def test_a_run_that_is_stopped_inside_an_epoch_says_its_step():
    words = [*FAST, "trainer.limit_batches=6", "trainer.evaluate_every=4 steps", "stopping.threshold=0"]
    record = runner.run(words, run_dir="run")
    assert ending(record).startswith("stopped after step 4 of 12: val/accuracy is")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    place = tmp_path_factory.mktemp("stopped")
    runner.run(PATIENT, run_dir=place / "run")
    return place / "run"


def test_a_stopped_run_says_so_everywhere(stopped, capsys):
    record = RunDir(stopped).read_run()
    done = record["epochs_done"]
    assert record["state"] == "done" and 3 <= done < 20 and record["epochs"] == 20 and record["test"]["last"]
    why = f"has not been better than that of epoch {done - 2} by more than 0.005 for 2 evaluations"
    assert record["stopped"].endswith(why)
    ending = f"stopped after epoch {done} of 20: {record['stopped']}"
    assert ending in (stopped / "runner.log").read_text()
    resume(stopped, [])
    assert capsys.readouterr().out == f"{stopped}: finished, {ending}\n"
    verb("show", str(stopped))
    assert f"stopped {record['stopped']}" in " ".join(capsys.readouterr().out.split())
    verb("watch", str(stopped))
    assert record["stopped"][:40] in capsys.readouterr().out
    verb("report", str(stopped), "-o", "r.html")
    assert f"Stopped after {done} of 20 epochs: " in Path("r.html").read_text()


def test_killed_runs_stop_where_they_would_have(stopped, monkeypatch):
    start = lambda: runner.run(PATIENT, run_dir="killed")  # noqa: E731
    killed_after(30, monkeypatch, start)
    for batches in (20, 45):
        killed_after(batches, monkeypatch, lambda: resume(Path("killed"), []))
    resume(Path("killed"), [])
    assert_equal(final("killed"), final(stopped))
    assert RunDir(Path("killed")).read_run()["stopped"] == RunDir(stopped).read_run()["stopped"]


def test_another_rule_takes_a_stopped_run_on_as_if_it_had_been_its_rule_from_the_start(tmp_path):
    runner.run([*PATIENT, "stopping.threshold=0.1"], run_dir="short")
    assert RunDir(Path("short")).read_run()["epochs_done"] == 1
    runner.run([*FAST, "trainer.epochs=20", "stopping.threshold=0.36"], run_dir="whole")
    with pytest.raises(InputError, match="stopping=x: no such choice; choices: early, none"):
        resume(Path("short"), ["stopping=x"])
    resume(Path("short"), ["stopping=none", "stopping.threshold=0.36"])
    assert_equal(final("short"), final("whole"))
    record = RunDir(Path("short")).read_run()
    assert record["stopped"].startswith("val/accuracy is 0.3") and record["epochs_done"] > 1


def test_a_finished_run_has_nothing_left_to_stop(capsys):
    runner.run([*FAST, "stopping.patience=9"], run_dir="run")
    resume(Path("run"), ["stopping.patience=1"])
    told = capsys.readouterr().out
    assert "finished, all 2 epochs are done; nothing is left to be done with stopping.patience" in told


def test_a_rule_changes_no_identity_of_a_checkpoint_but_that_of_a_job():
    usual, other = composed(*FAST), composed(*FAST, "stopping.patience=3")
    usual, other = (OmegaConf.to_container(cfg, resolve=True) for cfg in (usual, other))
    assert config_digest(usual) == config_digest(other)
    assert result_config(usual) != result_config(other)
    before = {key: value for key, value in usual.items() if key != "stopping"}
    assert result_config(usual) == result_config(before)  # a sweep of before goes on


def test_a_config_of_before_builds():
    cfg = composed(*FAST)
    with open_dict(cfg):
        del cfg["stopping"]
    assert build(cfg).trainer.config.stopping == Stopping()


def test_a_clock_is_no_rule_to_train_again_by(stopped):
    record = json.loads((stopped / "run.json").read_text())
    folder = RunDir(Path("clock"))
    folder.path.mkdir()
    folder.write_run({**record, "stopped": "max_minutes=1 have passed"})
    for words in ([], ["-o", "again"]):
        with pytest.raises(InputError, match=r"clock: was stopped by the clock \(max_minutes=1 have passed\): trained"):
            verb("verify", "clock", *words)


@pytest.mark.slow
def test_a_stopped_run_is_verified_and_replayed(stopped, capsys):
    assert verb("verify", str(stopped), "--kills", "2") == 0
    assert verb("verify", str(stopped), "-o", "again") == 0
    assert "equal in every bit" in capsys.readouterr().out


@pytest.mark.slow
def test_a_table_says_how_many_of_its_jobs_stopped(cli):
    done = cli("-m", *FAST, "trainer.epochs=20", "seed=1,2", "stopping.threshold=0.2,null", "sweep.name=s")
    assert done.returncode == 0, done.stderr
    told = " ".join(cli("show", "outputs/sweeps/s").stdout.split())  # whatever the width
    assert "20 epochs (2 stopped earlier); 4 of 4 jobs done" in told
    assert "stopping.threshold=0.2 " in told and "stopping.threshold=null " in told  # which another config leaves out
    assert "is the maximum over up to 20 epochs" in told


def test_a_table_without_a_stopped_job_says_nothing_of_it():
    facts = {"monitor": "val/a", "mode": "max", "epochs": 20, "examples": None, "stopped": 0, "compared": 1}
    facts |= {"choice": None, "chosen_on": "val", "is_dry_run": False}
    assert "stopped" not in show.heading(facts, []) and "over 20 epochs" in show.caveats(facts)[0]
    assert "20 epochs (3 stopped earlier)" in show.heading({**facts, "stopped": 3}, [])
    assert "over up to 20 epochs" in show.caveats({**facts, "stopped": 3})[0]


def test_a_stopped_runs_config_can_be_overridden():
    text = "stopping:\n  patience: 1\n"
    assert overridden(text, ["stopping=none"]).stopping.patience is None


def test_a_value_that_a_file_has_set_can_be_null_again_where_null_is_one():
    cfg = composed("stopping=early", "stopping.patience=null", "trainer.epochs=2")
    assert cfg.stopping.patience is None
    assert composed("experiment=digits_early", "stopping.patience=null").stopping.patience is None
    with pytest.raises(InputError, match="trainer.epochs=null: must be a whole number, got null"):
        composed("trainer.epochs=null")
    with pytest.raises(InputError, match="optimizer.lr=null: must be a number, got null"):
        composed("optimizer.lr=null")


def test_a_run_that_is_trained_again_has_not_begun(stopped):
    record = RunDir(stopped).read_run()
    again = {**record, **unbegun()}
    assert record["stopped"] and record["steps_done"] and record["best_step"] and record["best"]
    assert (again["state"], again["stopped"], again["steps_done"], again["best_step"]) == ("running", None, 0, None)
    assert all(again[key] == {} for key in ("best", "last", "test", "known_steps"))
