"""A kernel's lock on a file: it says that a process is writing in the folder, and ends with the process.

Contract: where the kernel has locks of an open file (Linux: F_OFD_SETLK), the lock is one, so that reading or copying
the file in the same process does not give it up, as it does with POSIX's own locks (lockf), which stand in elsewhere.
A forked child shares the open file and would keep the lock beyond the parent's death: it closes it at once.
"""

import errno
import fcntl
import os
import struct
from pathlib import Path

BUSY = (errno.EACCES, errno.EAGAIN)
# Descriptors of the files that this process holds, by path.
_held: dict[Path, int] = {}


class Busy(Exception):
    """Another process holds the lock. The message is what it has written into the file."""


def _try(descriptor: int) -> None:
    """Locks the whole file, or raises an OSError of BUSY."""
    if hasattr(fcntl, "F_OFD_SETLK"):
        whole = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # struct flock, see fcntl(2)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, whole)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _whole(path: Path) -> Path:
    return Path(os.path.realpath(path.parent), path.name)  # a lock that is a link is not followed


def take(path: Path, text: str) -> None:
    """Takes the lock of a file, and writes `text` into it for people to read.

    Raises:
        Busy: another process has it, or this one.
        OSError: the file cannot be opened.
    """
    path = _whole(path)
    if path in _held:
        raise Busy("this process")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        _try(descriptor)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
        os.close(descriptor)
        if error.errno not in BUSY:
            raise
        raise Busy(holder) from error
    if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:
        os.close(descriptor)  # its last holder removed the file meanwhile: the lock of a file without a name
        take(path, text)
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
    _held[path] = descriptor


def give_back(path: Path) -> None:
    """Gives the lock back, if this process has it. The file stays: without it two processes could lock two files."""
    descriptor = _held.pop(_whole(path), None)
    if descriptor is not None:
        os.close(descriptor)


def is_mine(path: Path) -> bool:
    return _whole(path) in _held


def is_taken(path: Path) -> bool:
    """Whether any process holds the lock now."""
    if is_mine(path):
        return True
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except PermissionError:
        return _is_taken_by_another_user(path)
    except OSError:
        return False
    try:
        _try(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_taken_by_another_user(path: Path) -> bool:
    """As is_taken, for a file that may only be read: the kernel is asked for a lock without taking it."""
    if not hasattr(fcntl, "F_OFD_GETLK"):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        whole = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found = struct.unpack("hhqqi0q", fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, whole))
        return bool(found[0] != fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _forget() -> None:
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
