"""A sweep's way from its words to its summary, in this process: what is on disk when the first job begins."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from conftest import until
from runner.errors import InputError
from runner.storage.record_schema import JobRecord, read_record
from runner.storage.run_dir import RunDir, is_locked
from runner.sweep import run
from runner.sweep.multirun import multirun
from runner.sweep.plan import Job
from runner.sweep.submitit_pool import SubmititEngine
from test_sweep import refused

WORDS = ["dataset=fake", "dataset.train_size=20", "dataset.val_size=10", "dataset.eval_size=10", "model=mlp"]
WORDS += ["model.hidden=[4]", "dataset.input_shape=[1,2,2]", "trainer.epochs=1", "device.threads=1", "quiet=true"]
WORDS += ["hydra/launcher=basic", "sweep.name=two"]


def test_the_plan_is_on_disk_and_the_folder_taken_before_the_first_job_begins(monkeypatch, tmp_path):
    place, real, seen = tmp_path / "outputs" / "sweeps" / "two", run.run_jobs, []

    def first_call(sweeper, jobs, where, facts):
        launch = sweeper.launcher.launch

        def launched(words, initial_job_idx):
            seen.append([list(job) for job in words])
            record = json.loads((place / "sweep.json").read_text())
            assert [job["state"] for job in record["jobs"]] == ["planned"] * 2
            assert record["arguments"] == [*WORDS[:-2], "seed=1,2", "sweep.name=two"] and record["swept"] == ["seed"]
            assert record["hydra"] == ["hydra/launcher=basic"] and record["working_directory"] == str(tmp_path)
            assert record["config_dir"] is None and record["base"]["trainer.epochs"] == 1
            assert is_locked(RunDir(place)) and not list(place.glob("*/run.json"))
            for seed in (1, 2):
                job = read_record(place / f"seed={seed}" / "job.json", JobRecord)
                assert (job["seed"], job["settings"]) == (seed, {"seed": str(seed)})
            return launch(words, initial_job_idx=initial_job_idx)

        monkeypatch.setattr(sweeper.launcher, "launch", launched)
        return real(sweeper, jobs, where, facts)

    monkeypatch.setattr(run, "run_jobs", first_call)
    words = [*WORDS[:-1], "seed=1,2", WORDS[-1]]
    multirun(words, None)
    (launched,) = seen
    assert [job[-1] for job in launched] == ["hydra.sweep.subdir='seed=1'", "hydra.sweep.subdir='seed=2'"]
    record = json.loads((place / "sweep.json").read_text())
    assert [(job["name"], job["state"]) for job in record["jobs"]] == [("seed=1", "done"), ("seed=2", "done")]
    assert not is_locked(RunDir(place)) and (place / "summary.csv").exists()
    multirun(words, None)
    assert len(seen) == 1  # all of them finished before


def test_a_space_is_no_list_of_values_whether_optuna_is_installed_or_not(monkeypatch, capsys):
    real, lines = importlib.util.find_spec, []
    for is_there in (True, False):
        if not is_there:
            monkeypatch.setitem(sys.modules, "optuna", None)
            absent = lambda name, *a: None if name == "optuna" else real(name, *a)  # noqa: E731
            monkeypatch.setattr(importlib.util, "find_spec", absent)
        lines.append(refused(["-m", "optimizer.lr=interval(0.1,1)"], monkeypatch, capsys))
    assert (
        lines
        == [
            "error: optimizer.lr=interval(0.1,1): an interval has no list of values to run; give them (0.1,0.01), or"
            " search in it with hydra/sweeper=optuna"
        ]
        * 2
    )
    line = refused(["-m", "hydra/sweeper=optuna", "optimizer.lr=interval(0.1,1)"], monkeypatch, capsys)
    assert "needs optuna" in line and 'pip install -e ".[optuna]"' in line


def test_what_became_of_a_job_is_told_from_its_own_files(tmp_path):
    job = Job([], {"seed": 1}, {"seed": "1"}, folder=tmp_path / "a b")
    assert run.finished_state(job, None) == (None, None)
    run.plan.write_job(job)
    rows = [{"name": "a b", "settings": {"seed": "1"}, "overrides": [], "state": "planned", "deaths": []}]
    assert run.job_rows(tmp_path) == rows
    (job.folder / "run.json").write_text("{")
    state, why = run.finished_state(job, None)
    aside = f"mv '{job.folder}' '{job.folder}.set-aside'"
    assert state == "failed" and why.endswith(f"; put run.json back, or train it again: {aside}, and the same command")
    (row,) = run.job_rows(tmp_path)
    assert row["state"] == "failed" and row["error"].startswith(f"{job.folder / 'run.json'}: cannot be read")


def test_the_latest_code_of_a_run_is_that_of_its_last_resumption_that_kept_it():
    assert run.latest_code({"resumed": [], "code": "a"}) == "a"
    assert run.latest_code({"resumed": [{"code": "b"}, {"code": "c"}, {"code": None}], "code": "a"}) == "c"


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as refused_, run.locked(tmp_path / "file" / "sweep"):
        pass
    said = "cannot be written (Not a directory)"
    assert str(refused_.value) == f"hydra.sweep.dir={tmp_path / 'file' / 'sweep'}: {said}"
    with run.locked(tmp_path / "sweep"):
        assert is_locked(RunDir(tmp_path / "sweep"))
    assert not is_locked(RunDir(tmp_path / "sweep")) and Path("sweep").exists()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM without accounting: sbatch takes jobs and runs none, squeue says what a file has, sacct refuses."""
    pytest.importorskip("submitit", reason="the optional extra [slurm]")
    commands = {
        "sbatch": "echo Submitted batch job 77",
        "srun": "exit 1",
        "sacct": "echo Slurm accounting storage is disabled >&2; exit 1",
        "squeue": f"echo x >> {tmp_path}/looks; cat {tmp_path}/queue",
    }
    for name, script in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "queue").write_text("")
    return tmp_path


@pytest.mark.slow
def test_without_accounting_slurms_queue_says_that_a_job_is_dead(slurm, monkeypatch, capfd):
    import submitit

    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 0)
    jobs = [Job([], {}, {}, folder=slurm / name) for name in ("a", "b", "c")]
    for job in jobs:
        job.folder.mkdir()
    (slurm / "queue").write_text("77_0|SUSPENDED\n77_1|CONFIGURING\n77_2|RUNNING\n78|FAILED\n")
    with SubmititEngine("slurm", slurm / "own", None, {"timeout_min": 5}, 1, 1) as engine:
        running = dict(zip(("a", "b", "c"), engine.start(jobs), strict=True))
        until(lambda: engine.ended(running) or len((slurm / "looks").read_text()) > 2)
        assert engine.ended(running) == []  # whatever else it is in, it has not ended
        (slurm / "queue").unlink()  # SLURM does not answer for a while
        looks = len((slurm / "looks").read_text())
        until(lambda: engine.ended(running) or len((slurm / "looks").read_text()) > looks)
        assert engine.ended(running) == []
        (slurm / "queue").write_text("77_0|OUT_OF_MEMORY\n77_2|RUNNING\n")
        until(lambda: len(engine.ended(running)) == 2)
        assert engine.ended(running) == ["a", "b"]
        outcomes = [engine.outcome_of(running[name], job, False) for name, job in zip("ab", jobs[:2], strict=True)]
    assert [outcome["kind"] for outcome in outcomes] == ["death", "death"]
    assert "OUT_OF_MEMORY" in outcomes[0]["error"] and "77_1" in outcomes[1]["error"]
    assert "Bypassing" not in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_sweep_on_a_slurm_without_accounting_ends_where_its_job_is_dead(slurm, cli):
    words = ["-m", "seed=1,2", "model=mlp", "trainer.dry_run=true", "sweep.retries=1", "sweep.name=s"]
    done = cli(*words, "hydra/launcher=submitit_slurm", timeout=300)
    assert done.returncode == 1 and "2 of 2 jobs failed" in done.stderr and "Bypassing" not in done.stderr + done.stdout
