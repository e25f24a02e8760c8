"""Checkpoint files: written so that no crash can harm one, and never trusted without their digest.

Contract:
- A file is torch's zip followed by a trailer: MAGIC and the SHA-256 of all bytes before it. torch.load reads it as
  it is, with weights_only=True; the trailer cannot disagree with its file, because one rename brings both.
- What is written is plain (storage/plain.py), so that it can be read.
- Write: a temporary file in the same directory, flush, fsync, rename, fsync the directory. An old file is only
  replaced or deleted once the new one is durable.
- Load: the digest first, then torch.load(weights_only=True), then the format version.
"""

import hashlib
import mmap
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import torch

from runner.storage.files import TEMPORARY, fsync_directory, make_directory, read_regular
from runner.storage.plain import plain, restored
from runner.values import Rule

FORMAT_VERSION = 1
MAGIC = b"\nrunner-sha256:"
TRAILER_LENGTH = len(MAGIC) + 64
SAVE_CHOICES = ("all", "best", "last", "none")


class Damaged(Exception):
    """A file that is not, or no longer, a whole checkpoint of ours. The message names it and says how."""


class _Writing:
    """The file object that torch.save writes to. torch turns an OSError into a RuntimeError without a cause."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_temporary(path: Path, state: dict[str, Any]) -> Path:
    """Writes a checkpoint durably beside `path`, under a temporary name, which it returns.

    Raises:
        OSError: the disk is full, say; the temporary file is gone again. InputError: it holds what no file can.
    """
    state = plain(state)
    temporary = path.with_name(path.name + TEMPORARY)
    writing = None
    temporary.unlink(missing_ok=True)  # never write into a file that may have a second name
    try:
        with open(temporary, "x+b") as file:
            writing = _Writing(file)
            torch.save(state, writing)  # type: ignore[arg-type]
            file.flush()
            file.write(MAGIC + _digest_while_syncing(file).encode())
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        if writing is not None and writing.error is not None:
            raise writing.error from error
        raise
    return temporary


def _digest_while_syncing(file: BinaryIO) -> str:
    """The SHA-256 of all that was written so far, worked out while the disk takes it: the two cost about the same."""
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(os.fsync, file.fileno())
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            digest = hashlib.sha256(content).hexdigest()
        synced.result()  # an error that only this fsync was told
    return digest


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes one checkpoint; `path` holds either what it held before or all of the new one."""
    os.replace(write_temporary(path, state), path)
    fsync_directory(path.parent)


def load(path: Path) -> dict[str, Any]:
    """A checkpoint of ours, verified: every tensor on the CPU.

    Raises:
        Damaged: unreadable, truncated, changed, not ours, or of an unknown format version.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise Damaged(f"{path}: cannot be read ({error.strerror})") from error
    body, trailer = content[:-TRAILER_LENGTH], content[-TRAILER_LENGTH:]
    if not trailer.startswith(MAGIC):
        raise Damaged(f"{path}: not a whole checkpoint of the runner ({len(content)} bytes, without its digest)")
    if hashlib.sha256(body).hexdigest().encode() != trailer[len(MAGIC) :]:
        raise Damaged(f"{path}: damaged, its SHA-256 is not the one that was written")
    state = of_known_format(path, torch_load(path))
    try:
        return restored(state)
    except Exception as error:
        raise Damaged(f"{path}: cannot be read, its notes on values are not ours ({type(error).__name__})") from error


def of_known_format(path: Path, state: Any) -> dict[str, Any]:
    """The state that torch read from a file, where it is one of ours."""
    if not isinstance(state, dict) or "format_version" not in state:
        raise Damaged(f"{path}: not a checkpoint of the runner")
    if state["format_version"] != FORMAT_VERSION:
        raise Damaged(
            f"{path}: has format version {state['format_version']}, this runner reads version {FORMAT_VERSION}"
        )
    return state


def torch_load(path: Path, is_mapped: bool = False) -> Any:
    """What torch reads from a file, on the CPU; mapped, tensors stay on the disk until they are used.

    Raises:
        Damaged: it reads nothing, or would have to run code for it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about foreign files, which are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except pickle.UnpicklingError as error:
        raise Damaged(f"{path}: refused, it holds more than tensors and plain values") from error
    except Exception as error:  # on foreign bytes torch's unpickler raises whatever they lead it to
        raise Damaged(f"{path}: cannot be read as a torch file") from error


class Checkpoints:
    """The `checkpoint` group, and the files in a run's checkpoints/ directory.

    Raises:
        ValueError: an unknown `save`, or a count out of range.
    """

    def __init__(
        self,
        save: str = "all",
        every: int | None = None,
        every_batches: int | None = None,
        every_minutes: float | None = None,
        keep: int = 2,
        state_dict: bool = False,
        whole_model: bool = False,
    ) -> None:
        if save not in SAVE_CHOICES:
            raise ValueError(f"save={save}: unknown; choices: {', '.join(SAVE_CHOICES)}")
        for name, value in (("every", every), ("every_batches", every_batches)):
            Rule(int | None, least=1).check(name, value)
        Rule(int, least=1).check("keep", keep)
        Rule(float | None, above=0).check("every_minutes", every_minutes)
        inside: list[tuple[str, float | None]] = [("every_batches", every_batches), ("every_minutes", every_minutes)]
        useless = {"none": [("every", every), *inside], "best": inside}.get(save, [])
        for name, setting in useless:
            if setting is not None:
                raise ValueError(f"{name}={setting}: saves nothing with checkpoint.save={save}")
        self.save, self.every, self.keep = save, every, keep
        self.every_batches, self.every_minutes = every_batches, every_minutes
        self.state_dict, self.whole_model = state_dict, whole_model
        self.directory: Path | None = None  # None: nothing is written
        self.owner: Mapping[str, Any] = {}  # whose each checkpoint is: see storage/identity.py
        self.is_tried = False  # whether a state of this run has been read back
        self.written = time.monotonic()  # when the last one was; at first, when there was nothing to lose

    @property
    def saves_last(self) -> bool:
        return self.directory is not None and self.save in ("all", "last")

    @property
    def saves_best(self) -> bool:
        return self.directory is not None and self.save in ("all", "best")

    def saves_between(self, eval_every: int, num_batches: int) -> bool:
        """Whether states between two evaluations are to be written.

        Args:
            eval_every: steps between two evaluations. num_batches: in an epoch.
        """
        epoch_is_not_evaluated = self.every is not None and self.every * num_batches % eval_every != 0
        return epoch_is_not_evaluated or self.every_batches is not None or self.every_minutes is not None

    def is_due(self, batch: int, epoch: int | None = None) -> bool:
        """Whether the state after so many batches of an epoch is to be written.

        Args:
            epoch: how many epochs are completed, where the batch was the last of one.
        """
        if self.every is not None and epoch is not None and epoch % self.every == 0:
            return True
        if self.every_batches is not None and batch % self.every_batches == 0:
            return True
        return self.every_minutes is not None and time.monotonic() - self.written >= self.every_minutes * 60

    def open(self, directory: Path, owner: Mapping[str, Any] | None = None) -> None:
        """Takes a run's directory, and removes what a killed write left there."""
        make_directory(directory)
        for leftover in directory.glob(f"*{TEMPORARY}"):
            if not leftover.is_dir():
                leftover.unlink()
        self.directory, self.owner = directory, owner or {}

    def path(self, name: str) -> Path:
        assert self.directory is not None
        return self.directory / f"{name}.pt"

    def names(self, epoch: int, batch: int, is_evaluated: bool, is_best: bool) -> list[str]:
        """The names that a state is due after so many epochs, and batches of the next one."""
        if self.directory is None:
            return []
        is_due = self.every is not None and self.save != "none" and batch == 0 and epoch % self.every == 0
        names = [f"epoch_{epoch:04d}"] if is_due else []
        names += ["best"] if is_evaluated and is_best and self.saves_best else []
        return names + (["last"] if self.saves_last else [])

    def write(self, state: dict[str, Any], is_evaluated: bool, is_best: bool) -> None:
        """Writes the state once, and gives it each name that it is due. best.pt comes before last.pt: a crash in
        between leaves a last.pt that leads to this same best again, never one that knows of a best that is not there.
        """
        names = self.names(state["epoch"], state.get("progress", {}).get("batch", 0), is_evaluated, is_best)
        self.written = time.monotonic()
        if self.directory is None or not names:
            return
        temporary = write_temporary(self.path(names[-1]), {**state, **self.owner})
        if not self.is_tried:
            load(temporary)  # once: a state that cannot be loaded is an error now, not when it is needed
            self.is_tried = True
        for name in names[:-1]:
            _link(temporary, self.path(name))
        previous = self._set_aside() if names[-1] == "last" else None
        os.replace(temporary, self.path(names[-1]))
        fsync_directory(self.directory)
        if previous is not None:
            self._rotate(previous)

    def adopt(self, path: Path) -> None:
        """Makes a file the newest: last.pt, as if it had just been written under that name."""
        last = self.path("last")
        if not self.saves_last or path == last:
            return
        previous = self._set_aside()
        _link(path, last)
        fsync_directory(last.parent)
        if previous is not None:
            self._rotate(previous)

    def _set_aside(self) -> Path | None:
        """A second name for last.pt, that it keeps when the new one takes its place."""
        last = self.path("last")
        if self.keep < 2 or not last.exists():
            return None
        previous = self.path("last-1").with_name("previous.pt" + TEMPORARY)
        _copy_name(last, previous)
        return previous

    def _rotate(self, previous: Path) -> None:
        for age in range(self.keep - 1, 1, -1):
            if self.path(f"last-{age - 1}").exists():
                _move(self.path(f"last-{age - 1}"), self.path(f"last-{age}"))
        _move(previous, self.path("last-1"))


def _copy_name(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a filesystem without hard links
        shutil.copyfile(source, target)
        with open(target, "rb") as file:
            os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    """Gives a durable file a further name, in place of whatever had it."""
    temporary = target.with_name(target.name + TEMPORARY)
    _copy_name(source, temporary)
    _move(temporary, target)


def _move(source: Path, target: Path) -> None:
    """Renames, also where both are names of one file: rename(2) then does nothing and leaves the old name."""
    os.replace(source, target)
    source.unlink(missing_ok=True)
