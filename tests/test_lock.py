"""The kernel's lock on a file: whatever else the process does with the file, and whoever outlives it."""

import os
import shutil
import subprocess
import sys

import pytest

from runner.storage import lock

TRY = """
import sys
from pathlib import Path
from runner.storage import lock
try:
    lock.take(Path(sys.argv[1]), "second")
    print("taken")
except lock.Busy as busy:
    print("busy:", busy)
"""
LEAVE_A_CHILD = """
import os, signal, sys, time
from pathlib import Path
from runner.storage import lock
lock.take(Path(sys.argv[1]), "first")
child = os.fork()
if child == 0:
    os.close(1)  # the pipe to the test
    os.close(2)
    time.sleep(600)
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def another_process(path):
    return subprocess.run([sys.executable, "-c", TRY, str(path)], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="needs locks of an open file")
def test_reading_and_copying_the_file_in_the_same_process_does_not_give_it_up(tmp_path):
    path = tmp_path / "run.lock"
    lock.take(path, "first\n")
    assert path.read_text() == "first\n"
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    assert lock.is_taken(path)
    assert another_process(path) == "busy: first\n"
    lock.give_back(path)
    assert another_process(path) == "taken\n"


def test_a_process_that_has_it_is_refused_a_second_time(tmp_path):
    lock.take(tmp_path / "run.lock", "first\n")
    with pytest.raises(lock.Busy, match="this process"):
        lock.take(tmp_path / "run.lock", "second\n")
    lock.give_back(tmp_path / "run.lock")
    lock.give_back(tmp_path / "run.lock")


def test_a_forked_child_does_not_keep_it_beyond_its_parents_death(tmp_path):
    path = tmp_path / "run.lock"
    words = [sys.executable, "-c", LEAVE_A_CHILD, str(path)]
    child = int(subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout)
    try:
        assert another_process(path) == "taken\n"
    finally:
        os.kill(child, 9)
