"""What lies in a run's directory, and who may write there.

Contract: a directory with a run.json holds a run, and no start ever overwrites it. A kernel's lock (storage/lock.py)
says that a process is writing; the text in the lock file only says which. A lease (storage/lease.py) keeps other hosts
out where the lock does not reach them.
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.errors import Held, InputError
from runner.storage import lock
from runner.storage.files import make_directory, not_a_file, read_regular
from runner.storage.inside import refuse_links
from runner.storage.lease import Lease, Taken, host, other_holder
from runner.storage.record_schema import BadRecord, RunRecord, RunToOpen, read_record, write_record
from runner.storage.rows import Rows, strict_json
from runner.terminal.words import folder_word, pasted

LABELS = "labels.jsonl"
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
    "sample.txt",
    "tensorboard",
    LABELS,
)
OF_SWEEPS = (
    *("job.json", "sweep.json", "summary.csv", "summary_long.csv", "summary.json", "study.journal", "study.json"),
    *(".submitit", "points.csv", "pruning.json", "history.jsonl"),
)
FOLDERS = (".hydra", "checkpoints", ".submitit", "tensorboard")
_leases: dict[Path, Lease] = {}  # that this process holds, by file
os.register_at_fork(after_in_child=_leases.clear)


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="milliseconds")


def resume_command(path: Path, trust: Sequence[str] = ()) -> str:
    """What to type to continue a run or a sweep; `trust`: what it needs that does not lie beside the command."""
    flags = ["--trust", ",".join(trust)] if trust else []
    return pasted(["python", "-m", "runner", "resume", folder_word(path), *flags])


class RunDir:
    """A run's directory, as a place for its files.

    config, overrides and hydra in .hydra/; runner.log; run.json; metrics.jsonl; steps.jsonl; git.diff; sample.txt;
    checkpoints/.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_json = path / "run.json"
        self.metrics = Rows(path / "metrics.jsonl", "step")
        self.steps = Rows(path / "steps.jsonl", "step")
        self.log = path / "runner.log"
        self.git_diff = path / "git.diff"
        self.sample = path / "sample.txt"
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
            make_directory(self.path)
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
            running = f" (and is running: {_text(self.lock_file)})" if is_locked(self) else ""
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
        """Takes the folder: the kernel's lock, with host and pid in it, and the lease against other hosts.

        Raises:
            Held: another process has it, named by host and pid.
            InputError: one of the files that it would write is a link, is none, or is another user's.
        """
        self.refuse_links()
        self.check_kinds()
        try:
            lock.take(self.lock_file, f"host {host()}, pid {os.getpid()}\n")
        except lock.Busy as busy:
            who = "this process is already" if str(busy) == "this process" else "another process is"
            raise Held(f"{self.path}: {who} running it ({busy})") from busy
        try:
            _leases[Path(os.path.realpath(self.lease_file))] = Lease(self.lease_file)
        except Taken as taken:
            lock.give_back(self.lock_file)
            raise Held(f"{self.path}: a process of another host is running it ({taken})") from taken
        except BaseException:
            lock.give_back(self.lock_file)
            raise

    def refuse_links(self) -> None:
        """Refuses what might lead out of the folder; see runner.storage.inside."""
        refuse_links(self.path, (*OURS, *OF_SWEEPS))

    def check_kinds(self) -> None:
        """Refuses what would hold a writer up, or take its lines for good: a pipe, a device or a folder for a file.

        Raises:
            InputError: names it, also where it is another user's.
        """
        for name in (*OURS, *OF_SWEEPS):
            path = self.path / name
            try:
                mode = path.stat().st_mode
                wanted = os.R_OK | os.W_OK
                if name in FOLDERS:
                    if not stat.S_ISDIR(mode):
                        raise InputError(f"{path}: must be a folder")
                    wanted |= os.X_OK
                elif not stat.S_ISREG(mode):
                    raise not_a_file(path, mode)
                if not os.access(path, wanted):
                    raise InputError(f"{path}: cannot be written (Permission denied)")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise InputError(f"{path}: cannot be written ({error.strerror})") from error

    def release(self) -> None:
        """Gives the folder back, if this process has it."""
        if (lease := _leases.pop(Path(os.path.realpath(self.lease_file)), None)) is not None:
            lease.release()
        lock.give_back(self.lock_file)

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
        """Replaces run.json."""
        write_record(self.run_json, strict_json(record))

    def read_run(self, is_to_be_opened: bool = False) -> dict[str, Any]:
        """What run.json says; to be opened: with all that it takes to build the run again.

        Raises:
            InputError: there is none, or it is not one.
        """
        try:
            return read_record(self.run_json, RunToOpen if is_to_be_opened else RunRecord)
        except FileNotFoundError as error:
            raise no_run(self.path) from error
        except BadRecord as error:
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"{self.path}: is a file; give the folder of a run") from error
            raise


def no_run(path: Path) -> InputError:
    return InputError(f"{path}: holds no run (there is no run.json)")


def is_locked(run_dir: RunDir) -> bool:
    """Whether a process is running in the directory now."""
    is_other = not lock.is_mine(run_dir.lock_file) and other_holder(run_dir.lease_file) is not None
    return is_other or lock.is_taken(run_dir.lock_file)


def _text(path: Path) -> str:
    """What a small file of ours says to people; nothing where it cannot be read."""
    try:
        return read_regular(path).decode(errors="replace").strip()
    except OSError:
        return ""


def holder(run_dir: RunDir) -> int | None:
    """The process that says it is running in the directory, if one is and it is on this machine."""
    found = re.fullmatch(r"host (\S+), pid (\d+)", _text(run_dir.lock_file))
    return int(found[2]) if found and found[1] == host() and is_locked(run_dir) else None
