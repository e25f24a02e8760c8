"""`resume SWEEP_DIR trainer.epochs=N`: all jobs of a sweep go on longer, or none is touched."""

import json

import pytest
import torch

from conftest import Killed
from runner.cli.resume import resume_sweep
from runner.errors import InputError
from runner.storage.record_schema import JobRecord, RunRecord, read_record, write_record
from runner.sweep import lengthen, plan, run
from runner.sweep.multirun import multirun
from test_sweep_run import WORDS


@pytest.fixture
def place(tmp_path):
    return tmp_path / "outputs" / "sweeps" / "two"


def epochs_of(place):
    return {path.parent.name: read_record(path, RunRecord)["epochs_done"] for path in place.glob("*/run.json")}


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model_state_dict"]


def bytes_of(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != "run.lock"}


def refusal(place, *words):
    before = bytes_of(place)
    with pytest.raises(InputError) as refused:
        resume_sweep(place, list(words))
    assert bytes_of(place) == before and "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.slow
def test_every_job_of_the_folder_goes_on_in_its_place(place, tmp_path):
    multirun([*WORDS, "seed=1,2"], None)
    multirun([*WORDS, "seed=2,3"], None)  # of another command, the last one
    before = {path.name for path in place.iterdir() if path.is_dir()}
    resume_sweep(place, ["trainer.epochs=3"])
    assert epochs_of(place) == {f"seed={seed}": 3 for seed in (1, 2, 3)}
    assert {path.name for path in place.iterdir() if path.is_dir()} == before
    summed = json.loads((place / "summary.json").read_text())
    assert [(row["n"], row["is_whole"]) for row in summed["settings"]] == [(3, True)] and not summed["notes"]
    assert [table["epochs"] for table in summed["tables"]] == [3]
    multirun([*WORDS[:-1], "trainer.epochs=3", "seed=1,2", "sweep.name=whole"], None)
    one, two = weights(place / "seed=1"), weights(place.with_name("whole") / "seed=1")
    assert all(torch.equal(one[key], two[key]) for key in one)
    kept = [path for path in bytes_of(place) if path.parent != place and path.name != "job.json"]
    after = {path: path.read_bytes() for path in kept}
    resume_sweep(place, [])  # nothing is left to be done, by this command or by that which was typed
    multirun([*WORDS, "trainer.epochs=3", "seed=1,2"], None)
    assert {path: path.read_bytes() for path in kept} == after


@pytest.mark.parametrize(
    "dies", ["second job", *(pytest.param(dies, marks=pytest.mark.slow) for dies in ("plan", "first job"))]
)
def test_a_lengthening_that_is_killed_goes_on(dies, place, monkeypatch):
    multirun([*WORDS, "seed=1,2"], None)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill(dies, patched)
        resume_sweep(place, ["trainer.epochs=2"])
    resume_sweep(place, [])
    assert epochs_of(place) == {"seed=1": 2, "seed=2": 2}
    assert {path.name for path in place.iterdir() if path.is_dir()} == {"seed=1", "seed=2"}
    identities = {read_record(place / name / "job.json", JobRecord)["identity"] for name in ("seed=1", "seed=2")}
    assert len(identities) == 2 and not json.loads((place / "summary.json").read_text())["notes"]


def kill(dies, patched):
    calls = 0
    name = "write_job" if dies == "plan" else "run_or_resume"
    from runner.sweep import worker

    real = plan.write_job if dies == "plan" else worker.run_or_resume

    def killed(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == (1 if dies == "first job" else 2):
            raise Killed
        return real(*arguments, **options)

    patched.setattr(plan if dies == "plan" else worker, name, killed)


@pytest.mark.slow
def test_a_sweep_that_is_not_yet_longer_everywhere_says_so(place, monkeypatch):
    multirun([*WORDS, "seed=1,2"], None)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill("second job", patched)
        resume_sweep(place, ["trainer.epochs=2"])
    from runner.sweep import summary
    from runner.sweep.settings import members

    (row,) = summary.summarize(members(place))["settings"]
    assert (row["n"], row["seeds"]["interrupted"], row["is_whole"]) == (1, 1, False)


@pytest.mark.slow
def test_what_cannot_go_on_is_refused_before_any_job_is_touched(place):
    multirun([*WORDS, "seed=1,2", "scheduler=cosine,step"], None)
    line = refusal(place, "trainer.epochs=3")
    assert line.startswith("scheduler=cosine,seed=1: trainer.epochs: 1 -> 3 would change scheduler.T_max=${")
    assert "planned for 1 epochs" in refusal(place, "trainer.epochs=0") or "at least 1" in refusal(
        place, "trainer.epochs=0"
    )
    assert "swept over" in refusal(place, "trainer.epochs=3,4")
    assert "trainer.epochs=x" in refusal(place, "trainer.epochs=x")
    assert "sweep of another config; model" in refusal(place, "trainer.epochs=3", "model.hidden=[5]")
    with pytest.raises(InputError, match=r"raise it for all jobs by: python -m runner resume .*two trainer.epochs=N"):
        multirun([*WORDS, "seed=1,2", "scheduler=step", "trainer.epochs=3"], None)


@pytest.mark.slow
def test_a_shorter_length_is_refused_with_the_job(place):
    multirun([*WORDS, "seed=1,2", "trainer.epochs=2"], None)
    assert refusal(place, "trainer.epochs=1").startswith("seed=1: trainer.epochs=1: this run is planned for 2 epochs")


@pytest.mark.slow
def test_a_job_that_its_words_do_not_make_again_is_named(place):
    multirun([*WORDS, "seed=1,2"], None)
    multirun([*WORDS, "seed=2,3"], None)
    path = place / "seed=1" / "job.json"
    record = read_record(path, JobRecord)
    write_record(path, {**record, "overrides": [*record["overrides"], "optimizer.lr=3"]})
    assert "seed=1: is no more what its words compose to" in refusal(place, "trainer.epochs=3")
    record["overrides"] = ["trust=[evil]"]
    path.write_text(json.dumps(record))
    assert "job.json: trust=[evil]: is not taken from a record" in refusal(place, "trainer.epochs=3")


def test_a_search_is_not_lengthened(place):
    pytest.importorskip("optuna", reason="the optional extra [optuna]")
    with pytest.raises(InputError, match="is a search, whose trials were told.*resume .*/JOB trainer.epochs=N"):
        multirun([*WORDS, "hydra/sweeper=optuna", "optimizer.lr=interval(0.1,1)", "sweep.lengthen=true"], None)
    assert not place.exists()


def test_the_keys_of_jobs_do_not_hold_the_length():
    one, two = {"trainer.epochs": 3, "a": 1}, {"trainer.epochs": 4, "a": 1}
    assert lengthen.setting_key(one, 1) == lengthen.setting_key(two, "1") != lengthen.setting_key(one, 2)
    assert lengthen.words_key({"a": "1", "trainer.epochs": "2"}) == lengthen.words_key({"a": "1"})
    assert run.is_shorter({"config": {"trainer": {"epochs": 3}}}, 4)
    assert not any(
        run.is_shorter({"config": config}, 4) for config in ({}, {"trainer": 3}, {"trainer": {"epochs": "x"}})
    )
