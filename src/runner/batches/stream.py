"""Batches of an iterable dataset, in its own order, that go on after a resume where they stood.

Contract: the dataset (or the iterator that it gives) has state_dict() and load_state_dict(), as torchdata's
StatefulDataLoader asks for: the state after n samples leads to sample n + 1. Batches are made in this process and none
ahead, so the state at a batch is the dataset's own. Random numbers of the global generators are seeded for each batch.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import default_collate

from runner.batches.nested import equal
from runner.batches.parts import Stream
from runner.errors import InputError
from runner.seeding import derive, rng_state, seed_cpu, set_rng_state

CPU = torch.device("cpu")
PLAIN = (bool, int, float, str, bytes, type(None), torch.Tensor)
LOOKED_AT = 3  # samples, of which a state must lead to the same


class StreamLoader:
    """A Loader of num_batches batches an epoch; the next epoch goes on behind the last one, and a stream that ends
    begins again.

    Args:
        is_restarted: every call of batches() begins at the stream's beginning: of an evaluated part.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        num_batches: int,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        seed: int = 0,
        is_restarted: bool = False,
    ) -> None:
        self.dataset, self.batch_size, self.num_batches = stream.dataset, batch_size, num_batches
        self.collate_fn, self.seed, self.is_restarted = collate_fn or default_collate, seed, is_restarted
        self.taken = 0  # batches since the run began
        self._samples: Iterator[Any] = iter(self.dataset)
        self.beginning = self._state()

    def __len__(self) -> int:
        return self.num_batches

    def num_examples(self, start: int = 0) -> int:
        return (self.num_batches - start) * self.batch_size

    def examples(self, count: int) -> Any:
        """The first `count` samples from here; the stream is put back."""
        kept = copy.deepcopy(self.state_dict())
        try:
            return self.batch(count)
        finally:
            self.load_state_dict(kept)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        if self.is_restarted:
            self.load_state_dict({"taken": 0, "dataset": self.beginning})
        for _ in range(start, self.num_batches):
            batch = self.batch(self.batch_size)
            self.taken += 1
            yield batch

    def close(self) -> None:
        """Nothing runs."""

    def batch(self, count: int) -> Any:
        before = rng_state(CPU)
        seed_cpu(derive(self.seed, "stream", self.taken))
        try:
            return self.collate_fn([self._sample() for _ in range(count)])
        finally:
            set_rng_state(before, CPU)

    def _sample(self) -> Any:
        for sample in self._samples:
            return sample
        self._load(self.beginning)
        for sample in self._samples:
            return sample
        raise InputError(f"dataset: {type(self.dataset).__name__} gives no sample")

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "dataset": self._state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        self._load(state["dataset"])

    def _state(self) -> Any:
        """A copy: some datasets give their own, which they go on writing."""
        owner: Any = self._samples if hasattr(self._samples, "state_dict") else self.dataset
        return copy.deepcopy(owner.state_dict())

    def _load(self, state: Any) -> None:
        state = copy.deepcopy(state)
        self._samples = iter(self.dataset)
        if hasattr(self._samples, "load_state_dict"):
            self._samples.load_state_dict(state)
        else:
            self.dataset.load_state_dict(state)
            self._samples = iter(self.dataset)


def check_stream(key: str, dataset: Any) -> None:
    """Holds an iterable dataset against what an exact resume needs of it.

    Raises:
        InputError: no state; one that a checkpoint cannot hold; or one that leads to other samples.
    """
    name = type(dataset).__name__
    samples = iter(dataset)
    owner: Any = samples if hasattr(samples, "state_dict") else dataset
    if not all(callable(getattr(owner, method, None)) for method in ("state_dict", "load_state_dict")):
        raise InputError(
            f"{key}: {name} is iterable and has no state_dict() and load_state_dict(), so a run on it could not be"
            " resumed exactly; give it both (as torchdata's StatefulDataLoader asks for), or make it map-style"
        )
    loader = StreamLoader(Stream(dataset), 1, 1, collate_fn=list)
    bad = foreign(loader.beginning)
    if bad is not None:
        raise InputError(
            f"{key}: the state_dict() of {name} holds a {bad}; a checkpoint holds numbers, text and tensors"
        )
    loader.examples(LOOKED_AT)  # says so where there is none
    runs = []
    for _ in range(2):  # from the beginning, and again from a state inside
        loader.load_state_dict({"taken": 0, "dataset": loader.beginning})
        whole = [loader.batch(1) for _ in range(2 * LOOKED_AT)]
        loader.load_state_dict({"taken": 0, "dataset": loader.beginning})
        first = [loader.batch(1) for _ in range(LOOKED_AT)]
        loader.load_state_dict(copy.deepcopy(loader.state_dict()))
        runs.append((whole, [*first, *(loader.batch(1) for _ in range(LOOKED_AT))]))
    loader.load_state_dict({"taken": 0, "dataset": loader.beginning})
    if not all(equal(whole, parted) for whole, parted in runs) or not equal(runs[0][0], runs[1][0]):
        raise InputError(
            f"{key}: the state_dict() of {name} does not lead to the samples that follow it: after load_state_dict()"
            " others come, so a resumed run would not be exact"
        )


def foreign(state: Any) -> str | None:
    """The kind of what is neither plain nor a container of plain values."""
    if isinstance(state, dict):
        kinds = [foreign(part) for pair in state.items() for part in pair]
    elif type(state) in (list, tuple):
        kinds = [foreign(part) for part in state]
    else:
        return None if isinstance(state, PLAIN) else type(state).__name__
    return next((kind for kind in kinds if kind is not None), None)
