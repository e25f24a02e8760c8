"""What lies in a run's directory, and who may write there.

Contract: a directory with a run.json holds a run, and no start ever overwrites it. A kernel lock (fcntl.lockf: it
ends with the process, and forked workers do not inherit it) says that a process is writing; the text in the lock
file only says which. A lease (runner.lease) keeps other hosts out where the lock does not reach them.
"""

import errno
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

from runner.errors import Held, InputError
from runner.storage.files import write_atomically
from runner.storage.lease import Lease, Taken, other_holder

# What a run writes; only the first three are there (and git.diff, and an empty checkpoints/) when a start dies early.
OURS = (
    ".hydra",
    "runner.log",
    "run.lock",
    "run.lease",
    "git.diff",
    "checkpoints",
    "metrics.jsonl",
    "steps.jsonl",
    "run.json",
)
# Lock files that this process holds: the kernel's lock, which closing any descriptor of the file would free, and the
# lease against other hosts.
_held: dict[Path, tuple[int, Lease]] = {}


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def resume_command(path: Path) -> str:
    return f"python -m runner resume {shlex.quote(str(path))}"


def strict_json(value: Any) -> Any:
    """The value as strict JSON takes it: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(item) for item in value]
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
        self.lease_file = path / "run.lease"
        self.before: set[Path] | None = None  # what was there when a start claimed it; None: the folder was not

    def claim(self) -> None:
        """Takes the directory for a new run, before anything is written there.

        Raises:
            InputError: it holds a run or another program's files, somebody is writing there, or nobody can.
        """
        try:
            self.before = set(self.path.rglob("*")) if self.path.exists() else None
            self.path.mkdir(parents=True, exist_ok=True)
            self.check_free()
            self.lock()
        except OSError as error:
            raise InputError(f"hydra.run.dir={self.path}: cannot be written ({error.strerror})") from error
        try:
            self.check_free()
        except InputError:
            self.release()
            raise

    def check_free(self) -> None:
        """Refuses a folder that holds a run, or files of ours that no start of ours has left."""
        if self.run_json.exists():
            running = f" (and is running: {self.lock_file.read_text().strip()})" if is_locked(self) else ""
            raise InputError(
                f"hydra.run.dir={self.path}: already holds a run{running}, which is never overwritten;"
                f" choose another folder, or continue it: {resume_command(self.path)}"
            )
        found = [name for name in OURS if (self.path / name).exists()]
        written = self.metrics.path.exists() or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))
        planned = self.lock_file.exists() or (self.path / "job.json").exists()  # by a start of ours, or by a sweep
        if found and (written or not planned):
            raise InputError(
                f"hydra.run.dir={self.path}: holds {', '.join(found)} of something else, which would be overwritten;"
                " choose another folder"
            )

    def lock(self) -> None:
        """Takes the lock, and writes host and pid into it for people to read.

        Raises:
            InputError: another process has it; named by host and pid.
        """
        path = self.lock_file.resolve()
        if path in _held:
            raise Held(f"{self.path}: this process is already running it")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                os.close(descriptor)
                raise
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(descriptor)
            raise Held(f"{self.path}: another process is running it ({holder})") from error
        if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:
            os.close(descriptor)  # its last holder removed the file meanwhile: the lock of a file without a name
            return self.lock()
        try:
            lease = Lease(self.lease_file)
        except Taken as taken:
            os.close(descriptor)
            raise Held(f"{self.path}: a process of another host is running it ({taken})") from taken
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"host {socket.gethostname()}, pid {os.getpid()}\n".encode(), 0)
        _held[path] = descriptor, lease

    def release(self) -> None:
        """Gives the lock back. The lock file stays: removing it would let two processes lock two files."""
        held = _held.pop(self.lock_file.resolve(), None)
        if held is not None:
            descriptor, lease = held
            lease.release()
            os.close(descriptor)

    def discard(self) -> None:
        """Removes what a start wrote that ended before it became a run. What was there before stays."""
        if self.run_json.exists():
            return
        before = self.before or set()
        for path in (self.log, self.git_diff, *(self.path / ".hydra").glob("*.yaml"), self.lock_file, self.lease_file):
            if path not in before:
                path.unlink(missing_ok=True)
        for folder in (self.path / ".hydra", self.checkpoints, self.path if self.before is None else None):
            if folder is not None and folder not in before and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write_run(self, record: Mapping[str, Any]) -> None:
        write_atomically(self.run_json, (json.dumps(strict_json(record), indent=2) + "\n").encode())

    def read_run(self) -> dict[str, Any]:
        """What run.json says.

        Raises:
            InputError: there is none, or it is not one.
        """
        try:
            record = json.loads(self.run_json.read_text())
        except FileNotFoundError as error:
            raise InputError(f"{self.path}: holds no run (there is no {self.run_json.name})") from error
        except NotADirectoryError as error:
            raise InputError(f"{self.path}: is a file; give the folder of a run") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{self.run_json}: cannot be read ({error})") from error
        if not isinstance(record, dict) or "state" not in record:
            raise InputError(f"{self.run_json}: is not a run's record")
        return record


def is_locked(run_dir: RunDir) -> bool:
    """Whether a process is running in the directory now."""
    path = run_dir.lock_file.resolve()
    if path in _held or other_holder(run_dir.lease_file) is not None:
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
            file.write((json.dumps(strict_json(row)) + "\n").encode())
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
        """The whole lines, up to the first that is no row: a power cut may leave anything behind the durable ones."""
        lines = []
        for line in self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []:
            try:
                json.loads(line)
            except ValueError:
                break
            lines.append(line)
        return lines
