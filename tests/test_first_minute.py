"""What a person sees in the first minute: nothing on stderr, a process that ends, any terminal, any folder's name."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import runner
from conftest import until
from runner.storage.run_dir import resume_command
from runner.terminal.printable import printable
from runner.terminal.words import folder_word, pasted

SMALL = ["device.threads=1", "trainer.epochs=1"]
WORKERS = [
    ["dataloader.num_workers=0"],
    *[[f"dataloader.num_workers={n}", f"dataloader.persistent_workers={p}"] for n in (1, 2) for p in ("true", "false")],
    ["dataloader.num_workers=1", "dataloader.pin_memory=false", "dataloader.prefetch_factor=4"],
]
LONGEST = 3.5  # seconds in which nobody does anything; a hang is for ever, or torch's 5 s for each worker
ENDINGS = ["done", "raised", "SIGINT", "SIGTERM", "SIGUSR1"]


def pairs(endings):
    """Each kind of workers with an ending, and persistent ones with every ending."""
    crossed = [(workers, endings[i % len(endings)]) for i, workers in enumerate(WORKERS)]
    return crossed + [(WORKERS[3], ending) for ending in endings if (WORKERS[3], ending) not in crossed]


SMALLEST = "device.threads=1 trainer.dry_run=true"
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


def work_of(pid):
    """What a family has done so far, or None where one of it waits for a processor or the disk: seconds, faults."""
    done = []
    for process in family(pid):
        try:
            states = [Path(f"/proc/{process.pid}/task/{one.id}/stat").read_text() for one in process.threads()]
            if any(state.rpartition(")")[2].split()[0] in "RD" for state in states):
                return None
            done.append((process.pid, *process.cpu_times()[:2]))
        except (psutil.Error, OSError):
            return None
    return sorted(done)


class Lines(threading.Thread):
    """Reads what a child prints, and hands each line to a function."""

    def __init__(self, child, tell):
        super().__init__(daemon=True)
        self.child, self.tell, self.count, self.last = child, tell, 0, ""

    def run(self):
        for line in self.child.stdout:
            self.last = line
            self.tell(line)
            self.count += 1


def ends_and_leaves_nobody(cli, words, ending):
    """Starts the command, ends it as said, and holds that it ends with all its children, and waits for nothing.

    Not the clock is read, which a busy machine lets run, but how often nobody of the family did anything or was about
    to: a hang is such a time, a slow disk is none.
    """
    (cli.cwd / "mine.py").write_text(MINE)
    if ending == "raised":
        words = [*words, "model._target_=mine.Failing", "~model.input_shape", "~model.num_classes"]
        words += ["+model.in_features=64", "+model.out_features=10"]
    elif ending != "done":
        words = [word for word in words if not word.startswith("trainer.epochs")] + ["trainer.epochs=500"]
    child = cli.start(*words, start_new_session=True)

    def tell(line):
        begun = line.split()[:1] == ["3/500"] or "0 of them finished before" in line
        if ending.startswith("SIG") and begun:
            if "3/500" not in line:  # a sweep: when one of its jobs trains
                until(lambda: list(cli.cwd.glob("outputs/sweeps/s/*/metrics.jsonl")) or child.poll() is not None)
            child.send_signal(getattr(signal, ending))

    lines = Lines(child, tell)
    lines.start()
    idle, count, before, deadline = 0.0, 0, None, time.monotonic() + 300
    while child.poll() is None or family(child.pid):  # a sweep's fork server sees that its parent has ended
        time.sleep(0.05)
        count, was, before, earlier = lines.count, count, work_of(child.pid), before
        idle = idle + 0.05 if count == was and before is not None and before == earlier else 0.0
        if idle > LONGEST or time.monotonic() > deadline:
            os.killpg(child.pid, signal.SIGKILL)
            pytest.fail(f"has not ended, and nobody of it does anything, after its last line: {lines.last}")
    lines.join()
    child.stdout.close()
    codes = {"done": 0, "raised": 1, "SIGKILL": -signal.SIGKILL} | {
        name: 128 + getattr(signal, name) for name in ENDINGS[2:]
    }
    assert child.returncode == codes[ending], lines.last


@pytest.mark.parametrize("ending", [pytest.param("done", marks=pytest.mark.slow), "SIGTERM"])
def test_a_run_with_persistent_workers_ends(cli, ending):
    ends_and_leaves_nobody(cli, [*SMALL, *WORKERS[3]], ending)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "ending"), pairs(ENDINGS))
def test_a_run_with_any_workers_ends(cli, workers, ending):
    ends_and_leaves_nobody(cli, [*SMALL, *workers], ending)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "ending"), pairs(["done", "raised", "SIGINT", "SIGTERM"]))
def test_a_sweep_with_any_workers_ends(cli, workers, ending):
    ends_and_leaves_nobody(cli, ["-m", "seed=1,2", "sweep.name=s", *SMALL, *workers], ending)
    if ending == "done":
        states = [json.loads(path.read_text())["state"] for path in cli.cwd.glob("outputs/sweeps/s/*/run.json")]
        assert states == ["done", "done"]


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["-m", "seed=1,2", "sweep.name=s"]], ids=["run", "sweep"])
def test_a_killed_command_leaves_no_process_behind_either(cli, words):
    ends_and_leaves_nobody(cli, [*words, *SMALL, *WORKERS[3]], "SIGKILL")


@pytest.mark.parametrize(
    "closed", [*(pytest.param(one, marks=pytest.mark.slow) for one in (">&-", "2>&-")), ">&- 2>&- <&-"]
)
def test_a_run_needs_no_stream(cli, closed):
    """Its numbers are taken all the same: nothing that is printed may end up in a file of the run's."""
    words = f"{sys.executable} -m runner trainer.dry_run=true hydra.run.dir=run {closed}"
    done = subprocess.run(["sh", "-c", words], cwd=cli.cwd, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((cli.cwd / "run" / "run.json").read_text())["state"] == "done"
    assert (cli.cwd / "run" / "run.lock").read_text().count("\n") == 1


def in_shell(cli, words, **env):
    """Words behind `python -m runner` with what a shell does with its streams."""
    line = f"{sys.executable} -m runner {words}"
    return subprocess.run(
        ["bash", "-c", line], cwd=cli.cwd, capture_output=True, text=True, timeout=300, env={**os.environ, **env}
    )


@pytest.mark.parametrize(
    "nowhere", ["> /dev/full", *(pytest.param(one, marks=pytest.mark.slow) for one in ("| true", "2>&1 | true"))]
)
def test_a_run_ends_as_it_would_where_nobody_can_read_of_it(cli, nowhere):
    done = in_shell(cli, f"{SMALLEST} hydra.run.dir=run {nowhere}; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((cli.cwd / "run" / "run.json").read_text())["state"] == "done"


@pytest.mark.slow
def test_a_sweep_and_each_verb_end_where_nobody_can_read_of_them(cli):
    both = "> /dev/full 2> /dev/full"
    assert in_shell(cli, f"-m {SMALLEST} seed=1,2 sweep.name=s {both}").returncode == 0
    jobs = sorted(path.parent for path in cli.cwd.glob("outputs/sweeps/s/*/run.json"))
    assert len(jobs) == 2 and (cli.cwd / "outputs/sweeps/s/summary.json").exists()
    for verb in (f"label {jobs[0].parent} {what}" for what in ("good", "--note x", "--archive")):
        assert in_shell(cli, f"{verb} | true; exit ${{PIPESTATUS[0]}}").returncode == 0
        assert in_shell(cli, f"{verb} {both}").returncode == 0
    for job in jobs:
        assert (job / "labels.jsonl").read_text().count("\n") == 3  # the second time says nothing new
    assert in_shell(cli, f"resume {jobs[0]} > /dev/full").returncode == 0
    assert in_shell(cli, f"report {jobs[0].parent} -o page.html > /dev/full").returncode == 0
    assert (cli.cwd / "page.html").read_text().rstrip().endswith("</html>")
    assert in_shell(cli, "-m seed=1,2 sweep.dry_run=true sweep.name=t > /dev/full").returncode == 1
    for verb in (
        "ls .",
        f"show {jobs[0]}",
        f"watch {jobs[0].parent} --once",
        "best . --archived",
        f"evaluate {jobs[0]}",
    ):
        full = in_shell(cli, f"{verb.replace(' --archived', '')} > /dev/full")
        if "best" not in verb:  # which finds none: all are archived
            assert (full.returncode, full.stderr.splitlines()[-1:]) == (
                1,
                ["error: [Errno 28] No space left on device"],
            )
        quiet = in_shell(cli, f"{verb.replace(' --archived', '')} | true; exit ${{PIPESTATUS[0]}}")
        assert "Traceback" not in quiet.stderr + full.stderr and "ignored" not in quiet.stderr + full.stderr


def test_a_wrong_word_ends_with_2_where_nobody_can_read_why(cli):
    assert in_shell(cli, "ls nosuch 2> /dev/full").returncode == 2
    assert in_shell(cli, "ls nosuch 2>&1 | true; exit ${PIPESTATUS[0]}").returncode == 2


ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.slow
def test_text_on_disk_is_right_in_a_locale_that_knows_only_ascii(cli):
    words = f"{SMALLEST} name=\"'ünï'\" hydra.run.dir=\"'läuf'\""
    done = in_shell(cli, words, **ASCII)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((cli.cwd / "läuf" / "run.json").read_text())["name"] == "ünï"
    for verb in ("resume läuf", "label läuf zäg", "ls . --where name=ünï", "show läuf --config"):
        shown = in_shell(cli, verb, **ASCII)
        assert (shown.returncode, shown.stderr) == (0, ""), verb
    swept = in_shell(cli, f"-m {SMALLEST} seed=1,2 sweep.name=s", **ASCII, PYTHONIOENCODING="ascii")
    assert (swept.returncode, swept.stdout.splitlines()[-1]) == (0, "outputs/sweeps/s")


@pytest.mark.parametrize("flags", ["-X utf8=0 -m runner", "-m runner"])
def test_the_command_starts_again_in_utf8_mode_once_at_most(cli, flags):
    done = subprocess.run(
        [sys.executable, *flags.split(), "ls", "nosuch"],
        cwd=cli.cwd,
        env={**os.environ, **ASCII},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (2, "error: nosuch: there is no such folder\n")


def test_somebodys_script_is_not_started_again(cli):
    script = "import sys; print('once'); sys.argv[1:] = ['--version']; from runner.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-"],
        input=script,
        cwd=cli.cwd,
        env={**os.environ, **ASCII},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split()[:2] == ["once", "runner"] and done.returncode == 0


class Text:
    """What takes text, and has no more of a file."""

    def __init__(self, fails=False):
        self.fails, self.text = fails, ""

    def write(self, text):
        if self.fails:
            raise OSError(28, "No space left on device")
        self.text += text
        return len(text)

    def flush(self):
        pass


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


ODD = {"none": lambda: None, "closed": closed, "text": Text, "full": lambda: Text(fails=True)}
ODD["ascii"] = lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_run_from_python_needs_no_stream_of_any_kind(name, kind, monkeypatch):
    stream = ODD[kind]()
    monkeypatch.setattr(sys, name, stream)
    record = runner.run(["device.threads=1", "trainer.dry_run=true", "name='ünï'"], run_dir="ünï")
    assert record["state"] == "done" and Path("ünï/run.json").exists()
    if isinstance(stream, Text) and name == "stdout" and not stream.fails:
        assert stream.text.endswith("ünï\n")


def test_a_working_directory_that_is_gone_is_one_line(cli):
    words = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m runner ls /"
    done = subprocess.run(["sh", "-c", words], cwd=cli.cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.startswith("error: the working directory is gone")


def test_a_working_directory_that_looks_like_an_interpolation_is_one_line(cli):
    cli.cwd = cli.cwd / "${x}"
    cli.cwd.mkdir()
    for words in (["seed=1"], ["-m", "seed=1,2"]):
        done = cli(*words)
        assert done.returncode == 2 and "${x}: Hydra takes ${ in the working directory's name" in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not list(cli.cwd.iterdir())


NAMES = [
    "plain",
    "-lead",
    "it's",
    'a "b" $c `d` \\e',
    "new\nline\t",
    "ünï",
    "bell\x07",
    os.fsdecode(b"\xff'x"),
    "~x",
    "a=b,c",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_command_can_be_pasted(name, tmp_path):
    printed = printable(pasted(["printf", "%s", folder_word(name)]))
    out = subprocess.run(["bash", "-c", printed], capture_output=True, timeout=60).stdout
    assert os.fsdecode(out).removeprefix("./" if name.startswith("-") else "") == name
    assert resume_command(Path(name)) == f"python -m runner resume {pasted([folder_word(name)])}"


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
