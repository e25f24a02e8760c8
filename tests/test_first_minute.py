"""What a person sees in the first minute: nothing on stderr, a process that ends, any terminal, any folder's name."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

SMALL = ["device.threads=1", "trainer.epochs=1"]
WORKERS = [
    ["dataloader.num_workers=0"],
    *[[f"dataloader.num_workers={n}", f"dataloader.persistent_workers={p}"] for n in (1, 2) for p in ("true", "false")],
    ["dataloader.num_workers=1", "dataloader.pin_memory=false", "dataloader.prefetch_factor=4"],
]
LONGEST = 5.0  # seconds from the last line to the end; bare torch takes about one on a busy machine, a hang for ever
ENDINGS = ["done", "raised", "SIGINT", "SIGTERM", "SIGUSR1"]
MINE = """
import torch

class Failing(torch.nn.Linear):
    calls = 0
    def forward(self, x):
        Failing.calls += 1
        if Failing.calls == 30:
            raise RuntimeError("on purpose")
        return super().forward(x.flatten(1))
"""


@pytest.mark.slow
def test_the_default_run_says_nothing_on_stderr_and_ends_with_its_folder(cli):
    done = cli(*SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    assert (cli.cwd / done.stdout.splitlines()[-1] / "run.json").exists()
    quiet = cli(*SMALL, "--quiet", "hydra.run.dir=quiet")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    swept = cli("-m", "seed=1,2", "trainer.dry_run=true", "sweep.name=two")
    assert (swept.returncode, swept.stderr) == (0, "")


def family(pid):
    """The process and all that came from it, by its session, which no child leaves; less those that have ended."""
    living = [process for process in psutil.process_iter(["status"]) if process.info["status"] != psutil.STATUS_ZOMBIE]
    return [process for process in living if sid(process) == pid]


def sid(process):
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


def ends_and_leaves_nobody(cli, words, ending):
    """Starts the command, ends it as said, and holds that it ends soon after its last line, with all its children."""
    (cli.cwd / "mine.py").write_text(MINE)
    if ending == "raised":
        words = [*words, "model._target_=mine.Failing", "~model.input_shape", "~model.num_classes"]
        words += ["+model.in_features=64", "+model.out_features=10"]
    elif ending != "done":
        words = [word for word in words if not word.startswith("trainer.epochs")] + ["trainer.epochs=500"]
    child = cli.start(*words, start_new_session=True)
    last = time.monotonic()
    for line in child.stdout:
        last = time.monotonic()
        begun = line.split()[:1] == ["3/500"] or "0 of them finished before" in line
        if ending.startswith("SIG") and begun:
            time.sleep(0 if "3/500" in line else 12)  # a sweep's first job then trains
            child.send_signal(getattr(signal, ending))
    try:
        child.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        pytest.fail(f"has not ended a minute after its last line: {line}")
    took = time.monotonic() - last
    child.stdout.close()
    assert child.returncode == {"done": 0, "raised": 1}.get(ending) or ending.startswith("SIG"), line
    if ending.startswith("SIG"):
        assert child.returncode == 128 + getattr(signal, ending), line
    assert took < LONGEST
    while family(child.pid) and time.monotonic() - last < took + LONGEST:
        time.sleep(0.05)  # a sweep's fork server sees that its parent has ended
    assert not family(child.pid)


@pytest.mark.parametrize("ending", [pytest.param("done", marks=pytest.mark.slow), "SIGTERM"])
def test_a_run_with_persistent_workers_ends(cli, ending):
    ends_and_leaves_nobody(cli, [*SMALL, *WORKERS[3]], ending)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("workers", WORKERS, ids=" ".join)
def test_a_run_with_any_workers_ends(cli, workers, ending):
    ends_and_leaves_nobody(cli, [*SMALL, *workers], ending)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["done", "raised", "SIGINT", "SIGTERM"])
@pytest.mark.parametrize("workers", WORKERS, ids=" ".join)
def test_a_sweep_with_any_workers_ends(cli, workers, ending):
    ends_and_leaves_nobody(cli, ["-m", "seed=1,2", "sweep.name=s", *SMALL, *workers], ending)
    if ending == "done":
        states = [json.loads(path.read_text())["state"] for path in cli.cwd.glob("outputs/sweeps/s/*/run.json")]
        assert states == ["done", "done"]


@pytest.mark.parametrize(
    "closed", [*(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-")), ">&- 2>&- <&-"]
)
def test_a_run_needs_no_stream(cli, closed):
    """Its numbers are taken all the same: nothing that is printed may end up in a file of the run's."""
    words = f"{sys.executable} -m runner trainer.dry_run=true hydra.run.dir=run {closed}"
    done = subprocess.run(["sh", "-c", words], cwd=cli.cwd, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((cli.cwd / "run" / "run.json").read_text())["state"] == "done"
    assert (cli.cwd / "run" / "run.lock").read_text().count("\n") == 1


@pytest.mark.slow
def test_what_the_terminal_cannot_show_is_printed_as_replacements(cli):
    words = ["trainer.dry_run=true", "hydra.run.dir='ünï'", "name='ünï'"]
    done = cli(*words, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr, done.stdout.splitlines()[-1]) == (0, "", "?n?")
    for verb in (["ls", "."], ["show", "ünï"], ["best", "."], ["evaluate", "ünï"]):
        shown = cli(*verb, PYTHONIOENCODING="ascii")
        assert (shown.returncode, shown.stderr) == (0, ""), verb
    assert json.loads((cli.cwd / "ünï" / "run.json").read_text())["name"] == "ünï"
    wrong = cli("name=ünï", PYTHONIOENCODING="ascii")
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1 and "quotes" in wrong.stderr


@pytest.mark.slow
def test_an_apostrophe_in_a_folders_name_is_a_sign_like_any_other(cli):
    place = cli.cwd / 'it\'s "mine"'
    place.mkdir()
    cli.cwd = place
    assert cli("-m", "seed=1,2", "trainer.dry_run=true", "sweep.name=s").returncode == 0
    (place / "outputs/sweeps/s/seed=2,trainer.dry_run=True/run.json").unlink(missing_ok=True)
    again = cli("resume", str(place / "outputs/sweeps/s"))
    assert again.returncode == 0, again.stderr
    assert len(list(place.glob("outputs/sweeps/s/*/run.json"))) == 2
    assert not (place.parent / "outputs").exists()
    assert cli("trainer.dry_run=true", "hydra.run.dir=run").returncode == 0
    assert cli("evaluate", str(place / "run")).returncode == 0
    refused = cli("resume", str(place / "run"), "optimizer.lr=3")
    assert refused.returncode == 2 and "init_from='" in refused.stderr.replace('"\'"', "'")
