"""Files: durable writes (the old content or all of the new one), and reads that nothing but a file can hold up."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

TEMPORARY = ".tmp"  # the ending of what a killed write leaves behind


KINDS = ((stat.S_ISDIR, "is a folder"), (stat.S_ISFIFO, "is a pipe"), (stat.S_ISSOCK, "is a socket"))


def open_regular(path: Path | str) -> BufferedReader:
    """Opens a file for reading. A pipe would make the reader wait for good, a device never end.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise not_a_file(path, mode)


def not_a_file(path: Path | str, mode: int) -> OSError:
    what = next((words for is_kind, words in KINDS if is_kind(mode)), "is a device")
    return OSError(errno.EINVAL, f"{what}, not a file", str(path))


def read_regular(path: Path | str) -> bytes:
    """All of a file, as open_regular opens it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise not_a_file(path, found.st_mode)
        pieces = [os.read(descriptor, found.st_size + 1)]  # of a small file all of it, in half open()'s time
        while pieces[-1]:
            pieces.append(os.read(descriptor, 2**20))
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Makes a directory and what is missing above it; durable when it returns: a folder's own fsync keeps its files,
    but not its name in the folder above.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync_directory(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces path's content as a whole or not at all; durable when it returns."""
    temporary = path.with_name(path.name + TEMPORARY)
    temporary.unlink(missing_ok=True)  # never write into a file that may have a second name
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)
