"""Randomness from (seed, what it is for, epoch, ...), and the generators' state.

Contract: nothing in a run draws from a generator whose state depends on anything but the seed, the epoch and
the position in the epoch. So a run repeats bit for bit, and a resumed one needs no replay.
"""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from runner.errors import InputError


def derive(seed: int, *path: int | str) -> int:
    """A 63-bit number from the seed and a path such as ("epoch", 3): the first bytes of their SHA-256."""
    digest = hashlib.sha256(repr((seed, *path)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(value: int) -> None:
    """Seeds the global generators of python, numpy and torch (all devices)."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def seed_cpu(value: int) -> None:
    """As seed_everything, but leaves other devices alone: cheap enough (10 µs) to be called for each sample."""
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.default_generator.manual_seed(value)


@contextmanager
def isolated_cpu(value: int) -> Iterator[None]:
    """As isolated, of the CPU's generators alone: cheap enough (60 µs) for each batch."""
    before = rng_state(torch.device("cpu"))
    seed_cpu(value)
    try:
        yield
    finally:
        set_rng_state(before, torch.device("cpu"))


def rng_state(device: torch.device) -> dict[str, Any]:
    """The state of every global generator that a run on `device` draws from: tensors and plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts back what rng_state gave. A state saved on another kind of device leaves this device's as it is."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


_owner: int | None = None  # the thread that trains a run in this process
_lock = threading.Lock()


@contextmanager
def alone() -> Iterator[None]:
    """The process's generators for one run: they are global, and another thread's draws would change its figures.

    Raises:
        InputError: another thread trains a run; or this one does, and has not ended it.
    """
    global _owner
    if not _lock.acquire(blocking=False):
        raise InputError(
            "a run is being trained in this process: random generators are the whole process's, so a second one would"
            " change its figures; run it afterwards, or in a process of its own"
        )
    _owner = threading.get_ident()
    try:
        yield
    finally:
        _owner = None
        _lock.release()


@contextmanager
def isolated(value: int, device: torch.device) -> Iterator[None]:
    """Runs its body with generators seeded by `value`, and leaves them as they were before.

    Raises:
        InputError: another thread trains a run, whose generators these are.
    """
    if _owner not in (None, threading.get_ident()):
        raise InputError("a run is being trained in another thread, whose random generators this would change")
    before = rng_state(device)
    seed_everything(value)
    try:
        yield
    finally:
        set_rng_state(before, device)
