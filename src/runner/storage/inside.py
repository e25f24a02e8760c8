"""What is ours in a run's folder is a plain file or folder: a link might lead out of it, a FIFO never answers."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from runner.errors import InputError


def refuse_links(folder: Path, names: tuple[str, ...]) -> None:
    """Refuses links and special files among `names` in a folder, and below those of them that are folders. The folder
    itself may be reached by a link.

    Raises:
        InputError: names the first.
    """
    for path in entries(folder, names):
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if stat.S_ISLNK(mode):
            raise InputError(f"{path}: is a link, which might lead out of the run's folder; it is not followed")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"{path}: is no regular file (a FIFO, socket or device); it is not opened")


def refuse_link(folder: Path, of: str) -> None:
    """Refuses a folder inside another one that is a link.

    Args:
        of: whose folder the other one is.
    """
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link, which might lead out of the {of}'s folder; it is not followed")


def unfollowed(path: str, flags: int) -> int:
    """open()'s opener for what is written: refused (ELOOP) where the file has become a link since it was looked at."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def unlink_in(folder: Path, name: str) -> None:
    """Deletes a file of a folder, which must be no link at this very moment."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.unlink(name, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def entries(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    for name in names:
        path = folder / name
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from sorted(path.iterdir())
