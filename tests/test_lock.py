"""The kernel's lock on a file: whatever else the process does with the file, and whoever outlives it."""

import errno
import fcntl
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


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_who_has_it_is_said_from_the_file_and_a_failure_is_no_busy_lock(tmp_path, monkeypatch):
    path = tmp_path / "run.lock"
    path.write_text("x" * 300)

    def refuse(error):
        def do(descriptor):
            raise OSError(error, "odd")

        return do

    before = set(os.listdir("/proc/self/fd"))
    for error in (errno.EACCES, errno.EAGAIN):
        monkeypatch.setattr(lock, "_try", refuse(error))
        with pytest.raises(lock.Busy) as busy:
            lock.take(path, "me\n")
        assert str(busy.value) == "x" * 200
    assert lock.is_taken(path)
    path.write_bytes(b"\xff \n")
    with pytest.raises(lock.Busy, match="^\ufffd$"):
        lock.take(path, "me\n")
    path.write_text(" \n")
    with pytest.raises(lock.Busy, match="^an unknown process$"):
        lock.take(path, "me\n")
    monkeypatch.setattr(lock, "_try", refuse(errno.ENOLCK))
    with pytest.raises(OSError, match="odd"):
        lock.take(path, "me\n")
    monkeypatch.undo()
    assert not lock.is_taken(path) and not lock.is_mine(path) and not lock.is_taken(tmp_path / "none")
    assert set(os.listdir("/proc/self/fd")) == before  # nothing is left open


def test_a_new_owner_writes_over_a_longer_name_and_the_file_is_for_others_to_read(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text("a much longer owner\n")
    lock.take(path, "me\n")
    assert path.read_text() == "me\n" and lock.is_mine(path) and lock.is_taken(path)
    (tmp_path / "folder").symlink_to(tmp_path)  # the same file by another way
    assert lock.is_mine(tmp_path / "folder" / "run.lock")
    with pytest.raises(lock.Busy, match="^this process$"):
        lock.take(tmp_path / "folder" / "run.lock", "again\n")
    lock.give_back(tmp_path / "folder" / "run.lock")
    assert not lock.is_mine(path) and not lock.is_taken(path)
    old = os.umask(0)
    lock.take(tmp_path / "new", "me\n")
    os.umask(old)
    lock.give_back(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(not hasattr(fcntl, "F_OFD_GETLK"), reason="needs locks of an open file")
def test_a_lock_of_another_users_file_is_seen_without_taking_it(tmp_path):
    path = tmp_path / "run.lock"
    path.touch()
    assert not lock._is_taken_by_another_user(path) and not lock._is_taken_by_another_user(tmp_path / "none")
    lock.take(path, "me\n")
    before = set(os.listdir("/proc/self/fd"))
    assert lock._is_taken_by_another_user(path)
    assert set(os.listdir("/proc/self/fd")) == before
    lock.give_back(path)
    os.mkfifo(tmp_path / "pipe")
    assert not lock._is_taken_by_another_user(tmp_path / "pipe")


def test_without_the_kernels_locks_of_open_files_posixs_stand_in(tmp_path, monkeypatch):
    asked = []
    monkeypatch.delattr(fcntl, "F_OFD_SETLK", raising=False)
    monkeypatch.delattr(fcntl, "F_OFD_GETLK", raising=False)
    monkeypatch.setattr(fcntl, "lockf", lambda descriptor, how: asked.append((os.fstat(descriptor).st_ino, how)))
    lock.take(tmp_path / "run.lock", "me\n")
    lock.give_back(tmp_path / "run.lock")
    assert asked == [((tmp_path / "run.lock").stat().st_ino, fcntl.LOCK_EX | fcntl.LOCK_NB)]
    assert not lock._is_taken_by_another_user(tmp_path / "run.lock")
