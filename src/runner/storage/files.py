"""Durable writes: a file holds either its old content or all of the new one, also after a power cut."""

import os
from pathlib import Path

TEMPORARY = ".tmp"  # the ending of what a killed write leaves behind


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
