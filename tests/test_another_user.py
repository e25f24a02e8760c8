"""What another user may not read or write, by the kernel's own refusal: in a process that gives its rights up."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from test_records import run_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NOBODY = """
import hashlib, hmac, os, sys
from pathlib import Path
from runner.terminal import notices
from runner.errors import InputError
from runner.storage import lease, records
from runner.storage.run_dir import RunDir, is_locked
folder = Path(sys.argv[1])
records.runs(folder)  # all that is imported on the way, while it can be
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
notices.take()
print([Path(row["path"]).name for row in records.runs(folder)])
print(*notices.take(), sep="\\n")
for act in (RunDir(folder / "good").lock, RunDir(folder / "shut").read_run, RunDir(folder / "new").claim):
    try:
        print(act())
    except InputError as error:
        print(error)
print(is_locked(RunDir(folder / "good")), is_locked(RunDir(folder / "held")))
"""


@pytest.fixture
def shared():
    """A folder that everybody can look into."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_anothers_runs_are_listed_as_far_as_they_can_be_read_and_never_written(shared):
    from runner.storage.run_dir import RunDir

    for name in ("good", "shut", "held"):
        run_in(shared / name)
    (shared / "shut" / "run.json").chmod(0o600)
    (shared / "closed").mkdir(mode=0o700)
    held = RunDir(shared / "held")
    held.lock()
    try:
        done = subprocess.run([sys.executable, "-c", NOBODY, str(shared)], capture_output=True, text=True, timeout=300)
    finally:
        held.release()
    assert done.returncode == 0, done.stderr
    shut = f"{shared / 'shut' / 'run.json'}: cannot be read (Permission denied)"
    assert done.stdout.splitlines() == [
        "['good', 'held']",
        f"{shared / 'closed'}: left out, cannot be read (Permission denied)",
        f"left out: {shut}",
        f"{shared / 'good' / 'run.json'}: cannot be written (Permission denied)",
        shut,
        f"hydra.run.dir={shared / 'new'}: cannot be written (Permission denied)",
        "False True",
    ]
    assert not (shared / "new").exists()
