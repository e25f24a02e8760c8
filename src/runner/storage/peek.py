"""What a checkpoint file says of itself, and whether it is whole: without its tensors in memory.

Contract: what is peeked at tells which file to take, no more. Of it only the CRC-32 of the plain values is checked, so
what is taken must be loaded (which checks the digest), and what is relied on must be verified.
"""

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from runner.storage.checkpoint import MAGIC, TRAILER_LENGTH, Damaged, of_known_format, torch_load
from runner.storage.files import open_regular
from runner.terminal.progress import bar

PIECE = 2**20  # bytes


def peek(path: Path) -> dict[str, Any]:
    """A checkpoint's plain values, with tensors that stay on the disk, in a few milliseconds.

    Raises:
        Damaged: unreadable, truncated, changed in these values, not ours, or of an unknown format version.
    """
    try:
        with open_regular(path) as file:
            _measure(path, file)
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if name.endswith("/data.pkl"):
                        archive.read(name)  # raises where the CRC-32 is another
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, RuntimeError, EOFError) as error:
        raise Damaged(f"{path}: damaged, its values do not have the CRC-32 that was written") from error
    return of_known_format(path, torch_load(path, is_mapped=True))


def verify(path: Path) -> str:
    """The SHA-256 of a checkpoint, which is the one that was written with it; read a piece at a time.

    Raises:
        Damaged: unreadable, truncated, changed, or not ours.
    """
    try:
        with open_regular(path) as file:
            left, trailer = _measure(path, file)
            digest, buffer = hashlib.sha256(), memoryview(bytearray(PIECE))
            with bar(f"hashing {path.name}", left) as hashed:
                while left and (count := file.readinto(buffer[: min(left, PIECE)])):
                    digest.update(buffer[:count])
                    left -= count
                    hashed.add(count)
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror})") from error
    if left or digest.hexdigest().encode() != trailer[len(MAGIC) :]:
        raise Damaged(f"{path}: damaged, its SHA-256 is not the one that was written")
    return digest.hexdigest()


def _measure(path: Path, file: BinaryIO) -> tuple[int, bytes]:
    """(the bytes before the trailer, the trailer) of an open file, which is left at its beginning."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TRAILER_LENGTH))
    trailer = file.read()
    file.seek(0)
    if not trailer.startswith(MAGIC):
        raise Damaged(f"{path}: not a whole checkpoint of the runner ({size} bytes, without its digest)")
    return size - TRAILER_LENGTH, trailer
