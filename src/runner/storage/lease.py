"""One owner for a folder on a disk that several hosts share, also where the disk's locks do not reach across hosts.

Contract: the owner holds a file `run.lease` that names its host and process, made by link(2), which is atomic on NFS
too, and touches it every few seconds. A lease of another host that was not touched for STALE_SECONDS is taken over;
one of this host never holds anybody up: here the kernel's lock, which is taken first, says who is alive.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import time
from pathlib import Path

from runner.storage.files import read_regular
from runner.terminal.printable import say

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class Taken(Exception):
    """Another host holds the lease; says which, and since when it was not heard of."""


def host() -> str:
    """This machine's name, as socket.gethostname() has it, whose import costs a listing 2 ms."""
    return os.uname().nodename


def _age(path: Path, by_disk: bool) -> float:
    """Seconds since the file was touched; by the disk's own clock, which takes a write, or by this host's."""
    if not by_disk:
        return time.time() - path.stat().st_mtime
    probe = path.with_name(f".{path.name}.{os.urandom(16).hex()}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def text_of(path: Path) -> str:
    """What a lease says, in one line; bytes that are no text are shown as such."""
    return " ".join(read_regular(path)[:1000].decode(errors="backslashreplace").split())


def other_holder(path: Path, by_disk: bool = False) -> tuple[str, float] | None:
    """(who, seconds since it was heard of) where a process of another host holds the lease now, else None."""
    try:
        text = text_of(path)
        if not re.fullmatch(r"host \S+, pid \d+, [0-9a-f]+", text):  # nobody's: it holds nobody up
            return None
        if text.split(",")[0] == f"host {host()}":
            return None
        age = _age(path, by_disk)
    except OSError:
        return None
    return (text, age) if age < STALE_SECONDS else None


def _link(source: Path, path: Path) -> None:
    """A second name for source, unless there is such a file; on a disk without such names, a new file as exclusive."""
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        with open(path, "x") as file:
            file.write(source.read_text())


class Lease:
    """A lease that is held from construction to release().

    Raises:
        Taken: another host holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = f"host {host()}, pid {os.getpid()}, {os.urandom(16).hex()}"
        self._take()
        import threading

        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        mine = self.path.with_name(f".{self.path.name}.{os.urandom(16).hex()}")
        mine.write_text(self.text + "\n")
        try:
            while True:
                try:
                    _link(mine, self.path)
                    return
                except FileExistsError:
                    self._clear()
        finally:
            mine.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Moves a dead owner's lease away. Of several that find it dead, each moves only the one that it has read."""
        with contextlib.suppress(FileNotFoundError):
            seen = self.path.stat().st_ino, read_regular(self.path)
            if (held := other_holder(self.path, by_disk=True)) is not None:
                who, age = held
                raise Taken(f"{who.rsplit(',', 1)[0]}, heard of {age:.0f} s ago")
            aside = self.path.with_name(f".{self.path.name}.{os.urandom(16).hex()}")
            os.rename(self.path, aside)
            if (aside.stat().st_ino, read_regular(aside)) != seen:  # it was somebody else's by then
                with contextlib.suppress(FileExistsError):
                    os.link(aside, self.path)
            aside.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                text = text_of(self.path)
                if text == self.text:
                    os.utime(self.path)
            except OSError:
                continue
            if text and text != self.text:  # this host slept so long that another one took the folder over
                say(f"{self.path}: now held by {text}; this process ends at once", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)

    def is_mine(self) -> bool:
        try:
            return text_of(self.path) == self.text
        except OSError:
            return False

    def release(self) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            if self.is_mine():
                self.path.unlink()
