"""Sweeps: planned before they start, finished whatever dies, continued, extended, summed up."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runner
from conftest import until
from runner.cli.verify import differences
from runner.storage import identity
from runner.storage.records import runs
from runner.storage.run_dir import RunDir
from runner.sweep import plan
from runner.sweep.plan import Job
from test_resume import is_alive

WORDS = ["dataset=fake", "dataset.train_size=40", "dataset.eval_size=20", "dataset.input_shape=[1,4,4]", "model=mlp"]
WORDS += ["trainer.epochs=3", "device.threads=1", "dataloader.batch_size=8"]
NAMES = [f"scheduler={scheduler},seed={seed}" for scheduler in ("cosine", "step") for seed in (1, 2)]
TWO = ["-m", "seed=1,2", "scheduler=step,cosine", "sweep.name=two", *WORDS]


def states(place):
    return {row["name"]: row["state"] for row in json.loads((place / "sweep.json").read_text())["jobs"]}


@pytest.mark.slow
def test_a_sweep_leaves_a_run_directory_a_job_and_a_summary_and_goes_on(cli):
    place = cli.cwd / "outputs" / "sweeps" / "two"
    shown = cli(*TWO, "sweep.dry_run=true")
    assert all(name in shown.stdout for name in NAMES) and not place.exists()
    done = cli(*TWO)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in place.iterdir() if p.is_dir()) == NAMES
    assert states(place) == dict.fromkeys(NAMES, "done")
    for name in NAMES:
        scheduler, seed = (part.split("=")[1] for part in name.split(","))
        runner.run([*WORDS, f"seed={seed}", f"scheduler={scheduler}", "quiet=true"], run_dir=cli.cwd / "single" / name)
        assert list(differences(RunDir(cli.cwd / "single" / name), RunDir(place / name))) == []
        assert "epoch" in (place / name / "runner.log").read_text()
        assert (place / name / ".hydra" / "config.yaml").exists()
    summed = json.loads((place / "summary.json").read_text())
    assert [row["n"] for row in summed["settings"]] == [2, 2]
    assert len((place / "summary.csv").read_text().splitlines()) == 1 + 2
    assert len((place / "summary_long.csv").read_text().splitlines()) == 1 + 2 * 6
    # The same again costs no job; a further seed and a further axis keep the old names.
    before = {name: (place / name / "run.json").stat().st_mtime_ns for name in NAMES}
    again = cli(*TWO)
    assert "4 of them finished before" in again.stdout and again.returncode == 0
    more = cli("-m", "seed=1,2,3", "scheduler=step", "optimizer.lr=1.0,0.5", "sweep.name=two", *WORDS)
    assert more.returncode == 0, more.stderr
    assert before == {name: (place / name / "run.json").stat().st_mtime_ns for name in NAMES}
    new = sorted({p.name for p in place.iterdir() if p.is_dir()} - set(NAMES))
    assert new == [*(f"optimizer.lr=0.5,seed={seed}" for seed in (1, 2, 3)), "optimizer.lr=1.0,seed=3"]
    # Another base, and a sweep.json that is lost.
    other = cli(*TWO, "trainer.epochs=4")
    assert other.returncode == 2 and "trainer.epochs: 3 -> 4" in other.stderr and "sweep.force=true" in other.stderr
    (place / "sweep.json").unlink()
    assert cli(*TWO).returncode == 0
    assert len(states(place)) == 8
    resumed = cli("resume", str(place))
    assert resumed.returncode == 0 and "4 of them finished before" in resumed.stdout


@pytest.mark.slow
def test_hydras_own_launcher_gives_the_same_folders_and_bits(cli):
    basic = cli(*[w.replace("two", "basic") for w in TWO], "hydra/launcher=basic")
    assert basic.returncode == 0, basic.stderr
    ours = cli(*TWO)
    assert ours.returncode == 0
    place = cli.cwd / "outputs" / "sweeps"
    for name in NAMES:
        assert list(differences(RunDir(place / "basic" / name), RunDir(place / "two" / name))) == []
    assert (place / "basic" / "summary.json").exists()


FAULTY = """
import os, signal, torch
class Faulty(torch.nn.Sequential):
    def __init__(self, kind):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(16, 10))
        self.kind = kind
    def forward(self, x):
        kind = self.kind if self.training and len(x) == 8 else 0  # the look before a sweep has a smaller batch
        if kind == 1:
            raise RuntimeError("this job raises")
        if kind == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x) * (float("nan") if kind == 3 else 1.0)
"""


@pytest.mark.slow
def test_failures_are_listed_with_exit_codes_and_logs_and_the_others_finish(cli):
    (cli.cwd / "faulty.py").write_text(FAULTY)
    words = [*WORDS, "model._target_=faulty.Faulty", "+model.kind=0,1,2,3,4,5,6,7", "sweep.name=faulty"]
    words += ["~model.input_shape", "~model.num_classes", "~model.hidden", "~model.batch_norm", "~model.dropout"]
    done = cli("-m", *words)
    assert done.returncode == 1, done.stderr
    place = cli.cwd / "outputs" / "sweeps" / "faulty"
    found = states(place)
    assert sorted(found.values()) == ["done"] * 5 + ["failed"] * 3
    assert "model.kind=1: failed: RuntimeError: this job raises" in done.stderr
    assert "model.kind=2: failed: its worker died with exit code -9 (SIGKILL)" in done.stderr
    assert "model.kind=3: failed: the loss is not finite" in done.stderr
    assert "3 of 8 jobs failed" in done.stderr and "model.kind=1/runner.log" in done.stderr
    assert "Traceback" in (place / "model.kind=1" / "runner.log").read_text()
    assert len(json.loads((place / "model.kind=2" / "job.json").read_text())["deaths"]) == 2  # once, and its retry
    assert json.loads((place / "summary.json").read_text())["settings"][0]["n"] == 1
    assert "(one seed)" in done.stdout
    again = cli("-m", *words)  # the one that diverged is not tried again, the others are
    log = (place / "model.kind=3" / "runner.log").read_text()
    assert again.returncode == 1 and log.count("failed: the loss is not finite") == 1
    assert (place / "model.kind=1" / "runner.log").read_text().count("this job raises") > 1


@pytest.mark.slow
def test_a_stopped_sweep_saves_and_continues(cli):
    words = ["-m", "seed=1,2,3", "sweep.name=stopped", *[w for w in WORDS if "epochs" not in w], "trainer.epochs=400"]
    process = cli.start(*words)
    place = cli.cwd / "outputs" / "sweeps" / "stopped"
    until(lambda: list(place.glob("*/metrics.jsonl")), 90)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "continue with: python -m runner resume" in output
    assert "interrupted" in states(place).values()
    assert (place / "summary.csv").exists()


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(cli):
    words = ["-m", "seed=1,2", "sweep.name=orphans", *[w for w in WORDS if "epochs" not in w], "trainer.epochs=4000"]
    process = cli.start(*words)
    place = cli.cwd / "outputs" / "sweeps" / "orphans"
    until(lambda: len(list(place.glob("*/metrics.jsonl"))) == 2, 90)
    pids = [int((path.parent / "run.lock").read_text().split()[-1]) for path in place.glob("*/run.json")]
    assert len(pids) == 2 and all(map(is_alive, pids))
    process.kill()
    process.communicate()
    until(lambda: not any(map(is_alive, pids)), 10)
    assert {row["state"] for row in runs(place)} == {"killed"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1,2", "foo=1,2"], "no key 'foo'"),
        (["hydra.job.name=a,b"], "hydra.job.name"),
        (["sweep.retries=1,2"], "sweep.retries: cannot be swept over"),
        (["seed=choice()"], "empty"),
        (["seed=1,2,abc"], "seed=abc: must be a whole number"),
        (["model._target_=runner.models.Net,runner.models.Nope"], "job 1"),
        (["seed=1", "sweep.name=a/b"], "sweep.name=a/b"),
        (["seed=1", "hydra.launcher.jobs=0"], "hydra.launcher.jobs=0"),
        (["seed=1", "--cfg", "job"], "--cfg"),
    ],
)
def test_bad_input_is_one_line_and_nothing_on_disk(cli, words, message):
    done = cli("-m", *words)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not [p for p in cli.cwd.rglob("*") if p.is_file()]


@pytest.mark.slow
def test_5_starts_at_one_instant_get_5_folders(cli):
    from concurrent.futures import ThreadPoolExecutor

    words = ["-m", "seed=1", *WORDS, "trainer.dry_run=true"]
    with ThreadPoolExecutor(5) as pool:
        done = list(pool.map(lambda _: cli(*words, timeout=900), range(5)))
    assert [d.returncode for d in done] == [0] * 5
    assert len(list((cli.cwd / "outputs" / "sweeps").iterdir())) == 5


@pytest.mark.slow
def test_a_killed_sweep_continues_to_the_bits_of_single_runs():
    root = Path(__file__).parents[1]
    words = [sys.executable, "-m", "benchmarks.kill_sweep", "--rounds", "1", "--seed", "5"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_are_safe_short_and_sorted():
    assert plan.safe_name({"seed": "1", "optimizer.lr": "0.1"}) == "optimizer.lr=0.1,seed=1"
    assert plan.safe_name({"dataset.root": "/a b/c"}) == "dataset.root=_a_b_c"
    long = plan.safe_name({"loss.weight": "[" + "0.1," * 60 + "]"})
    assert len(long) <= 120 and long != plan.safe_name({"loss.weight": "[" + "0.1," * 61 + "]"})


def test_names_that_clash_get_a_hash(tmp_path):
    jobs = [Job([], {"seed": 1, "dataset": {"root": root}}, {"dataset.root": root}) for root in ("a/b", "a b")]
    plan.place_jobs(jobs, tmp_path)
    assert jobs[0].name == "dataset.root=a_b" and jobs[1].name.startswith("dataset.root=a_b-")
    same = [Job([], {"seed": 1}, {"seed": "1"}) for _ in range(2)]
    assert len(plan.unique(same)) == 1


def test_an_identity_leaves_out_what_cannot_change_a_result():
    base = {
        "seed": 1,
        "optimizer": {"lr": 0.1},
        "checkpoint": {"keep": 2},
        "name": "a",
        "dataloader": {"num_workers": 0},
    }
    same = {**base, "checkpoint": {"keep": 5}, "name": "b", "dataloader": {"num_workers": 3}}
    other = {**base, "optimizer": {"lr": 0.2}}
    identities = [Job([], config, {}).identity for config in (base, same, other)]
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.slow
def test_two_sweeps_at_once_on_one_name_run_every_job_once(cli):
    words = ["-m", "seed=1,2,3,4", "sweep.name=shared", *WORDS]
    both = [cli.start(*words) for _ in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    place = cli.cwd / "outputs" / "sweeps" / "shared"
    assert sorted(process.returncode for process in both) == [0, 2], outputs
    assert any("another process is running it" in output for output in outputs)
    assert states(place) == {f"seed={seed}": "done" for seed in (1, 2, 3, 4)}
    for seed in (1, 2, 3, 4):
        assert (place / f"seed={seed}" / "runner.log").read_text().count("examples: ") == 1
        assert len((place / f"seed={seed}" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("choice", "package", "extra"),
    [
        ("hydra/launcher=ray", "ray", "ray"),
        ("hydra/launcher=submitit_local", "submitit", "slurm"),
        ("hydra/launcher=submitit_slurm", "submitit", "slurm"),
        ("hydra/sweeper=optuna", "optuna", "optuna"),
    ],
)
def test_an_engine_that_is_not_installed_names_the_line_that_installs_it(choice, package, extra, monkeypatch, capsys):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == package else real(name, *a))
    line = refused(["-m", "seed=1,2", choice], monkeypatch, capsys)
    assert f"{choice}: needs {package}" in line and f'pip install -e ".[{extra}]"' in line


def refused(words, monkeypatch, capsys):
    """The one line that a command gets, which leaves nothing behind."""
    from runner.__main__ import main

    monkeypatch.setattr(sys, "argv", ["runner", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert not list(Path.cwd().rglob("run.json")) and not list(Path.cwd().rglob("sweep.json"))
    return line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:1"], ["127.0.0.1:1", "no Ray cluster answers"]),
        (["hydra/launcher=ray", "hydra.launcher.address=here"], ["address=here", "HOST:PORT"]),
        (["hydra/launcher=ray", "hydra.launcher.cpus=1000"], ["hydra.launcher.cpus=1000", "no node has so many"]),
        (["hydra/launcher=ray", "hydra.launcher.cpus=0"], ["hydra.launcher.cpus=0", "at least 1"]),
        (["hydra/launcher=ray", "hydra.launcher.gpus=-1"], ["hydra.launcher.gpus=-1"]),
        (["hydra/launcher=ray", "hydra.launcher.adress=x"], ["hydra.launcher.adress"]),
        (["hydra/launcher=submitit_local", "hydra.launcher.jobs=0"], ["hydra.launcher.jobs=0"]),
        (["hydra/launcher=submitit_local", "hydra.launcher.timeout=0.5"], ["hydra.launcher.timeout=0.5", "whole"]),
        (["hydra/launcher=submitit_local", "hydra.launcher.parameters={typo: 1}"], ["hydra.launcher", "typo"]),
        (["hydra/launcher=submitit_slurm"], ["submitit_slurm", "no SLURM here", "submitit_local"]),
        (["hydra/launcher=slurm"], ["hydra/launcher=slurm", "submitit_slurm"]),
    ],
    ids=lambda value: value[-1],
)
def test_an_engine_that_cannot_work_is_refused_in_one_line(words, parts, monkeypatch, capsys):
    for package in ("ray", "submitit"):
        if package in words[0]:
            pytest.importorskip(package)
    monkeypatch.setenv("PATH", "/nowhere")
    line = refused(["-m", "seed=1,2", *words], monkeypatch, capsys)
    assert all(part in line for part in parts), line


@pytest.mark.slow
def test_what_listens_but_is_no_ray_cluster_is_refused_within_half_a_minute(monkeypatch, capsys):
    pytest.importorskip("ray")
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        address = f"hydra.launcher.address=127.0.0.1:{server.getsockname()[1]}"
        line = refused(["-m", "seed=1,2", "hydra/launcher=ray", address], monkeypatch, capsys)
        assert address in line and time.monotonic() - began < 90


@pytest.mark.parametrize("key", identity.LATER)
def test_a_key_that_came_later_changes_no_identity_while_it_says_what_was_so_before(key):
    old = {"dataset": {"root": "data"}, "seed": 1}
    group, _, name = key.partition(".")

    def with_it(config, value):
        return {**config, group: {**config.get(group, {}), name: value} if name else value}

    assert plan.result_config(with_it(old, identity.LATER[key])) == plan.result_config(old)
    assert plan.result_config(with_it({}, ["x"])) != {}
