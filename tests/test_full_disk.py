"""A full disk: a clear error, what was saved stays whole, and after room is made the run ends in the same bits."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import runner
from runner.job.resuming import resume
from test_resume import WORDS, assert_equal_runs

# Fails every write to files of one name with ENOSPC from the n-th on: in the child of a test, nothing of it is shipped.
INJECT = """
import builtins, errno, io, os, sys
import runner.config.compose, runner.job
from runner.__main__ import main

name, count = sys.argv[1], int(sys.argv[2])
real_open, seen = io.open, 0

class Full(io.RawIOBase):
    def __init__(self, file):
        self.file = file
    def __getattr__(self, attribute):
        return getattr(self.file, attribute)
    def writable(self):
        return True
    def fileno(self):
        return self.file.fileno()
    def close(self):
        self.file.close()
    def flush(self):
        self.file.flush()
    def write(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

def opened(path, mode="r", *args, **kwargs):
    global seen
    file = real_open(path, mode, *args, **kwargs)
    if isinstance(path, (str, os.PathLike)) and name in os.path.basename(path) and set("wax") & set(mode):
        seen += 1
        if seen >= count:
            return Full(file)
    return file

builtins.open = opened
if name == "runner.log":
    import runner.job.logs
    real_emit, lines = runner.job.logs.RunLog.emit, 0
    class Broken:
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        def flush(self): pass
        def close(self): pass
    def emit(self, record):
        global lines
        lines += 1
        if lines >= count:
            self.stream = Broken()
        real_emit(self, record)
    runner.job.logs.RunLog.emit = emit
sys.argv = ["runner", *sys.argv[3:]]
main()
"""


@pytest.fixture
def whole(tmp_path):
    runner.run(WORDS, run_dir=tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("last.pt", 3), ("metrics.jsonl", 3)),
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in (("best.pt", 2), ("run.json", 3), ("steps.jsonl", 5))
        ),
        pytest.param("runner.log", 10, marks=pytest.mark.slow),
    ],
)
def test_no_room_for_one_kind_of_file(whole, tmp_path, name, count):
    (tmp_path / "inject.py").write_text(INJECT)
    words = [sys.executable, "inject.py", name, str(count), *WORDS, "quiet=false", "hydra.run.dir=run"]
    if name == "best.pt":  # beside a last.pt it is a further name of the same bytes: nothing is written under it
        falling = ["trainer.monitor=train/loss", "model.dropout=0.0", "dataset.augment=[]", "optimizer.lr=0.01"]
        words += ["checkpoint.save=best", *falling]  # each epoch is the best so far
        runner.run([*WORDS, *words[-5:]], run_dir=tmp_path / "whole_best")
        whole = tmp_path / "whole_best"
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert "python -m runner resume run" in done.stderr
    resume(Path("run"), [])
    assert_equal_runs(whole, "run")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_disk_that_is_really_full(whole, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"may not mount a tmpfs here ({mounted.stderr.strip()}); ENOSPC is injected instead")
    try:
        command = [sys.executable, "-m", "runner", *WORDS, f"hydra.run.dir={disk}/run"]
        filler = disk / "filler"
        outcomes = []
        for free in (40, 90, 140, 190, 240, 290, 340):  # kB: from hardly a run.json to all but the last checkpoint
            filler.write_bytes(os.urandom(1024 * (400 - free) - 4096))
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            outcomes.append(done.returncode)
            assert done.returncode in (0, 1, 2), done.stderr
            assert "Traceback" not in done.stderr, done.stderr
            if done.returncode:
                assert os.strerror(errno.ENOSPC) in done.stderr, done.stderr
            filler.unlink()
            if (disk / "run" / "run.json").exists():
                again = [sys.executable, "-m", "runner", "resume", f"{disk}/run"]
                resumed = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True)
                assert resumed.returncode == 0, resumed.stderr
                assert_equal_runs(whole, disk / "run")
            subprocess.run(["rm", "-rf", disk / "run"], check=True)
        assert 1 in outcomes, outcomes
    finally:
        subprocess.run(["umount", disk], check=True)
