"""Sweeps on others' engines: Ray on two nodes, submitit; a job that dies, and one that is preempted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runner.cli.verify import differences
from runner.storage.run_dir import RunDir

pytestmark = pytest.mark.slow

SIX = ["-m", "seed=1,2,3", "scheduler=step,cosine", "dataset=digits", "trainer.epochs=2", "device.threads=1"]
SIX += ["model._target_=dying.Net", "checkpoint.every_batches=10"]
NAMES = sorted(f"scheduler={scheduler},seed={seed}" for scheduler in ("cosine", "step") for seed in (1, 2, 3))

# The first process that has trained 100 batches kills itself, once.
DYING = """
import os, signal
from runner.models import Net as Official

class Net(Official):
    calls = 0
    def forward(self, x):
        if self.training:
            Net.calls += 1
            if Net.calls == 100:
                try:
                    os.close(os.open({marker!r}, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)
"""

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def two_nodes():
    """The address of a Ray cluster of two nodes with a CPU each."""
    pytest.importorskip("ray", reason="the optional extra [ray]")
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process.stdout.readline().strip()
    with process:  # closes its pipes, which ends the cluster
        pass


@pytest.fixture
def by_us(cli):
    """The sweep by our own launcher, undisturbed; the next process that trains will die."""
    marker = cli.cwd / "died"
    marker.touch()
    (cli.cwd / "dying.py").write_text(DYING.format(marker=str(marker)))
    done = cli(*SIX, "sweep.name=ours", timeout=300)
    assert done.returncode == 0, done.stderr
    marker.unlink()
    return cli.cwd / "outputs" / "sweeps" / "ours"


def assert_same_sweep(one, two):
    assert sorted(p.name for p in two.iterdir() if (p / "run.json").exists()) == NAMES
    for name in NAMES:
        assert list(differences(RunDir(one / name), RunDir(two / name))) == []
    for path in ("summary.json", "summary.csv"):
        assert (one / path).read_text() == (two / path).read_text()


def resumed(place):
    return sorted(len(json.loads((place / name / "run.json").read_text())["resumed"]) for name in NAMES)


def test_ray_on_two_nodes_gives_the_same_folders_bits_and_summary_and_runs_a_dead_job_again(cli, by_us, two_nodes):
    done = cli(*SIX, "sweep.name=ray", "hydra/launcher=ray", f"hydra.launcher.address={two_nodes}", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    place = cli.cwd / "outputs" / "sweeps" / "ray"
    assert_same_sweep(by_us, place)
    assert resumed(place) == [0, 0, 0, 0, 0, 1]  # Ray ran it again, and it went on
    deaths = [json.loads((place / name / "job.json").read_text())["deaths"] for name in NAMES]
    assert sorted(len(found) for found in deaths) == [0, 0, 0, 0, 0, 1]


def test_a_death_without_a_retry_is_one_failure_and_the_sweep_goes_on(cli, by_us):
    pytest.importorskip("ray", reason="the optional extra [ray]")
    words = [*SIX, "sweep.name=local_ray", "hydra/launcher=ray", "hydra.launcher.init={num_cpus: 2}"]
    done = cli(*words, "sweep.retries=0", timeout=300)
    assert done.returncode == 1 and "1 of 6 jobs failed" in done.stderr, done.stdout + done.stderr
    place = cli.cwd / "outputs" / "sweeps" / "local_ray"
    again = cli("resume", str(place), timeout=300)
    assert again.returncode == 0 and "5 of them finished before" in again.stdout, again.stdout + again.stderr
    assert_same_sweep(by_us, place)


def test_submitit_gives_the_same_folders_bits_and_summary_and_a_death_is_one_failure(cli, by_us):
    pytest.importorskip("submitit", reason="the optional extra [slurm]")
    words = [*SIX, "sweep.name=submitit", "hydra/launcher=submitit_local"]
    done = cli(*words, "sweep.retries=0", timeout=300)
    assert done.returncode == 1 and "1 of 6 jobs failed" in done.stderr, done.stdout + done.stderr
    place = cli.cwd / "outputs" / "sweeps" / "submitit"
    again = cli(*words, timeout=300)
    assert again.returncode == 0 and "5 of them finished before" in again.stdout, again.stdout + again.stderr
    assert_same_sweep(by_us, place)


SLOW = """
import time
from runner.models import MLP

class Slow(MLP):
    def forward(self, x):
        time.sleep(0.02 if self.training else 0)
        return super().forward(x)
"""


def wait_for_rows(path, count):
    deadline = time.monotonic() + 120
    while not path.exists() or len(path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


def test_a_preempted_job_saves_inside_its_epoch_is_queued_again_and_goes_on_exactly(cli):
    pytest.importorskip("submitit", reason="the optional extra [slurm]")
    (cli.cwd / "slow.py").write_text(SLOW)
    words = ["-m", "seed=choice(1)", "model=mlp", "model._target_=slow.Slow", "trainer.epochs=2", "trainer.log_every=1"]
    words += ["device.threads=1", "hydra/launcher=submitit_local"]
    whole = cli(*words, "sweep.name=whole", timeout=300)
    assert whole.returncode == 0, whole.stderr
    process = cli.start(*words, "sweep.name=preempted")
    folder = cli.cwd / "outputs" / "sweeps" / "preempted" / "seed=1"
    wait_for_rows(folder / "steps.jsonl", 20)
    os.kill(int((folder / "run.lock").read_text().split()[-1]), signal.SIGUSR2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    (event,) = json.loads((folder / "run.json").read_text())["resumed"]
    assert event["epoch"] == 0 and event["batch"] >= 20
    assert list(differences(RunDir(folder.parents[1] / "whole" / "seed=1"), RunDir(folder))) == []
    logs = "".join(p.read_text() for p in Path(folder.parent, ".submitit").rglob("*.err"))
    assert "Caught signal SIGUSR2" in logs and "Bypassing" not in logs


def test_ctrl_c_lets_rays_jobs_save(cli):
    pytest.importorskip("ray", reason="the optional extra [ray]")
    (cli.cwd / "slow.py").write_text(SLOW)
    words = ["-m", "seed=1,2", "model=mlp", "model._target_=slow.Slow", "trainer.epochs=2", "trainer.log_every=1"]
    words += ["device.threads=1", "sweep.name=stopped", "hydra/launcher=ray", "hydra.launcher.init={num_cpus: 2}"]
    process = cli.start(*words)
    place = cli.cwd / "outputs" / "sweeps" / "stopped"
    for seed in (1, 2):
        wait_for_rows(place / f"seed={seed}" / "steps.jsonl", 10)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, output
    for seed in (1, 2):
        assert json.loads((place / f"seed={seed}" / "run.json").read_text())["state"] == "interrupted"
        assert (place / f"seed={seed}" / "checkpoints" / "last.pt").exists()
    again = cli("resume", str(place), timeout=300)
    assert again.returncode == 0, again.stderr
