"""What lies in a run's directory, and who may write there.

Contract: a directory with a run.json holds a run, and no start ever overwrites it. A kernel lock (fcntl.lockf: it
ends with the process, and forked workers do not inherit it) says that a process is writing; the text in the lock
file only says which.
"""

import fcntl
import json
import math
import os
import re
import shlex
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.files import write_atomically

STATES = ("running", "done", "failed", "interrupted")
_held: dict[Path, int] = {}  # lock files that this process holds; closing any descriptor of one would free it


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def resume_command(path: Path) -> str:
    return f"python -m runner resume {shlex.quote(str(path))}"


def plain(value: Any) -> Any:
    """The value as strict JSON takes it: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


class RunDir:
    """A run's directory, as a place for its files.

    config, overrides and hydra in .hydra/; runner.log; run.json; metrics.jsonl; steps.jsonl; git.diff; checkpoints/.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_json = path / "run.json"
        self.metrics = Rows(path / "metrics.jsonl")
        self.steps = Rows(path / "steps.jsonl")
        self.log = path / "runner.log"
        self.git_diff = path / "git.diff"
        self.checkpoints = path / "checkpoints"
        self.lock_file = path / "run.lock"
        self.is_new = False  # whether claim() made the folder

    def claim(self) -> None:
        """Takes the directory for a new run, before anything is written there.

        Raises:
            InputError: it holds a run, another process is writing there, or it cannot be written.
        """
        try:
            self.is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock()
        except OSError as error:
            raise InputError(f"hydra.run.dir={self.path}: cannot be written ({error.strerror})") from error
        if self.run_json.exists():
            self.release()
            raise InputError(
                f"hydra.run.dir={self.path}: already holds a run, which is never overwritten; choose another folder,"
                f" or continue it: {resume_command(self.path)}"
            )

    def lock(self) -> None:
        """Takes the lock, and writes host and pid into it for people to read.

        Raises:
            InputError: another process has it; named by host and pid.
        """
        path = self.lock_file.resolve()
        if path in _held:
            raise InputError(f"{self.path}: this process is already running it")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(descriptor)
            raise InputError(f"{self.path}: another process is running it ({holder})") from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"host {socket.gethostname()}, pid {os.getpid()}\n".encode(), 0)
        _held[path] = descriptor

    def release(self) -> None:
        """Gives the lock back. The lock file stays: removing it would let two processes lock two files."""
        descriptor = _held.pop(self.lock_file.resolve(), None)
        if descriptor is not None:
            os.close(descriptor)

    def discard(self) -> None:
        """Removes what a start wrote that ended before it became a run. A folder that was there before stays."""
        if self.run_json.exists():
            return
        for path in (self.log, self.lock_file, *(self.path / ".hydra").glob("*.yaml")):
            path.unlink(missing_ok=True)
        for folder in (self.path / ".hydra", self.checkpoints, self.path if self.is_new else None):
            if folder is not None and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write_run(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.run_json, (json.dumps(plain(record), indent=2) + "\n").encode())

    def read_run(self) -> dict[str, Any]:
        """What run.json says.

        Raises:
            InputError: there is none, or it is not one.
        """
        try:
            record = json.loads(self.run_json.read_text())
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: holds no run (there is no {self.run_json.name})") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{self.run_json}: cannot be read ({error})") from error
        if not isinstance(record, dict) or "state" not in record:
            raise InputError(f"{self.run_json}: is not a run's record")
        return record


def is_locked(run_dir: RunDir) -> bool:
    """Whether a process is running in the directory now."""
    path = run_dir.lock_file.resolve()
    if path in _held:
        return True
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder(run_dir: RunDir) -> int | None:
    """The process that says it is running in the directory, if one is and it is on this machine."""
    try:
        text = run_dir.lock_file.read_text()
    except OSError:
        return None
    found = re.fullmatch(r"host (\S+), pid (\d+)\n", text)
    return int(found[2]) if found and found[1] == socket.gethostname() and is_locked(run_dir) else None


class Rows:
    """A .jsonl file: one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any], durable: bool = True) -> None:
        """Adds a row; durable: it outlives a power cut once this returns."""
        with open(self.path, "ab") as file:
            file.write((json.dumps(plain(row)) + "\n").encode())
            file.flush()
            if durable:
                os.fsync(file.fileno())

    def sync(self) -> None:
        """Makes all rows durable."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All rows; a last line that a crash cut off is left out. No file: no rows."""
        return [json.loads(line) for line in self._lines()]

    def cut_back(self, key: str, last: int) -> None:
        """Keeps the rows up to and with row[key] == last, byte for byte."""
        lines = self._lines()
        kept = [line for line in lines if json.loads(line)[key] <= last]
        content = b"".join(line + b"\n" for line in kept)
        if self.path.exists() and self.path.read_bytes() != content:
            write_atomically(self.path, content)

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
