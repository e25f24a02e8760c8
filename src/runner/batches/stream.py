"""Batches of an iterable dataset, in its own order, that go on after a resume where they stood.

Contract: the dataset (or the iterator that it gives) has state_dict() and load_state_dict(), as torchdata's
StatefulDataLoader asks for: the state after n samples leads to sample n + 1 of an iteration that begins afterwards,
also of a dataset that was made anew. Batches are made in this process and none ahead, so the state at a batch is the
dataset's own. Random numbers of the global generators are seeded for each batch.
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import default_collate

from runner.batches.nested import equal, parts_of
from runner.batches.parts import Stream
from runner.errors import InputError
from runner.seeding import derive, isolated_cpu

PLAIN = (bool, int, float, str, bytes, type(None), torch.Tensor)
END = object()
LONGEST = 20_000  # examples of an evaluated stream that has no length and no limit
SIZES = (1, 2, 7, 20, 70, 200, 700, 2000, 7000, 20000)  # of the batches that a new stream is looked at in
SECONDS, MOST_BYTES = 0.5, 2**26  # in which they are read, and what they may hold; LEAST of them in any case
LEAST, AGAIN = 3, 64  # samples of a second pass


def batches_of(length: int | None, batch_size: int, limit: int | None, drop_last: bool = False) -> int | None:
    """Batches of an epoch: of a whole pass, where the length is known, and at most `limit`; None: nothing tells."""
    if length is None:
        return limit
    whole = length // batch_size + (length % batch_size > 0 and not drop_last)
    return whole if limit is None else min(whole, limit)


class StreamLoader:
    """A Loader of an iterable dataset.

    Trained on, the next epoch goes on behind the last one, and a stream that ends begins again; where its length is
    known and no limit cuts it, an epoch is a pass. Evaluated, it is read from its beginning to its end, each time.

    Args:
        limit: batches of an epoch at most; None: those of the whole stream.
        is_restarted: the stream is evaluated.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        limit: int | None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        seed: int = 0,
        is_restarted: bool = False,
        drop_last: bool = False,
    ) -> None:
        self.dataset, self.batch_size, self.beginning = stream.dataset, batch_size, stream.beginning
        self.collate_fn, self.seed, self.is_restarted = collate_fn or default_collate, seed, is_restarted
        self.is_unknown = stream.length is None and limit is None  # how long it is: evaluated ones only
        length = LONGEST if self.is_unknown else stream.length
        self.num_batches = batches_of(length, batch_size, limit, drop_last) or 0
        most = self.num_batches * batch_size
        self.num_samples = most if length is None else min(most, length)  # of an epoch, or so many at most
        self.taken = 0  # batches since the run began
        self.place: tuple[Any] | None = None  # the state that was loaded, until a sample was read
        self._load(self.beginning)

    def __len__(self) -> int:
        return self.num_batches

    def num_examples(self, start: int = 0) -> int:
        return self.num_samples - start * self.batch_size

    def examples(self, count: int) -> Any:
        """The first `count` samples from here; the stream is put back."""
        kept = self.state_dict()
        try:
            return self.batch(count)
        finally:
            self.load_state_dict(kept)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        if self.is_restarted:
            self.load_state_dict({"taken": 0, "dataset": self.beginning})
        for number in range(start, self.num_batches):
            batch = self.batch(min(self.batch_size, self.num_examples(number)))
            if batch is END:
                return
            self.taken += 1
            yield batch
        if self.is_unknown and self._sample() is not END:
            raise InputError(
                f"trainer.limit_eval_batches=null: {type(self.dataset).__name__} is evaluated, and had not ended after"
                f" {LONGEST:,} examples; set the batches that are evaluated, or give it a __len__"
            )

    def close(self) -> None:
        """Nothing runs."""

    def batch(self, count: int) -> Any:
        """The next `count` samples, of an evaluated stream at most those up to its end; END: there is none."""
        with isolated_cpu(derive(self.seed, "stream", self.taken)):
            samples: list[Any] = []
            while len(samples) < count and (sample := self._sample()) is not END:
                samples.append(sample)
            return self.collate_fn(samples) if samples else END

    def _sample(self) -> Any:
        place, self.place = self.place, None
        if (sample := next(self._samples, END)) is not END:
            return sample
        if place is not None and place[0] is self.beginning:
            raise InputError(f"dataset: {type(self.dataset).__name__} gives no sample")
        if self.is_restarted:
            return END
        self._load(self.beginning)
        return self._sample()

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "dataset": self._state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = state["taken"]
        self._load(state["dataset"])

    def _state(self) -> Any:
        """A copy: some datasets give their own, which they go on writing. One that takes its state when an iteration
        begins gives an older one before.
        """
        if self.place is not None:
            return copy.deepcopy(self.place[0])
        owner: Any = self._samples if hasattr(self._samples, "state_dict") else self.dataset
        return copy.deepcopy(owner.state_dict())

    def _load(self, state: Any) -> None:
        self.place = (state,)
        self._samples: Any = None  # a generator that was left in its middle ends before
        with isolated_cpu(derive(self.seed, "stream")):
            self._samples = iter(self.dataset)
            if self._samples is self.dataset or not hasattr(self._samples, "load_state_dict"):
                self.dataset.load_state_dict(copy.deepcopy(state))
                self._samples = iter(self.dataset)
            if hasattr(self._samples, "load_state_dict"):
                self._samples.load_state_dict(copy.deepcopy(state))


def check_stream(key: str, dataset: Any, made_anew: Callable[[], Any], must_end: bool = False) -> Stream:
    """Holds an iterable dataset against what an exact resume needs of it: it is read, and its states are given to
    another one that is made anew, as a resume does.

    Args:
        must_end: it is evaluated as a whole.

    Returns:
        The other one, which stands at its beginning.

    Raises:
        InputError: no state; one that a checkpoint cannot hold; or one that leads to other samples.
    """
    name, samples = type(dataset).__name__, iter(dataset)
    owner: Any = samples if hasattr(samples, "state_dict") else dataset
    if not all(callable(getattr(owner, method, None)) for method in ("state_dict", "load_state_dict")):
        raise InputError(
            f"{key}: {name} is iterable and has no state_dict() and load_state_dict(), so a run on it could not be"
            " resumed exactly; give it both (as torchdata's StatefulDataLoader asks for), or make it map-style"
        )
    stream, bad = Stream(dataset), foreign(Stream(dataset).beginning)
    looks = looked_at(stream) if bad is None else []
    if bad := bad or next((kind for look in looks for _, state, _ in look if (kind := foreign(state))), None):
        raise InputError(
            f"{key}: the state_dict() of {name} holds a {bad}; a checkpoint holds numbers, text and tensors"
        )
    has_buffer = has_shuffle_buffer(dataset)
    del dataset, samples, owner, stream
    stream = Stream(made_anew())
    if has_buffer or not all(leads_on(looking(stream, number), look) for number, look in enumerate(looks)):
        raise InputError(
            f"{key}: the state_dict() of {name} does not lead to the samples that follow it: made anew, with the state"
            " loaded, it gives others (a shuffle buffer, a count of passes or a generator is not in the state?), so a"
            " resumed run would not be exact"
        )
    if must_end:
        for _ in StreamLoader(stream, 16, None, len, is_restarted=True).batches():
            pass
    return stream


Look = list[tuple[int, Any, Any]]  # of batches one behind the other: their size, the state before, what came


def looking(stream: Stream, number: int) -> StreamLoader:
    """What reads the look of a number: the first ends where the stream ends, the second begins again."""
    return StreamLoader(stream, 1, 1, list, is_restarted=number == 0)


def looked_at(stream: Stream) -> list[Look]:
    """Growing batches from the beginning on; and of a stream that was read to its end the whole, and what follows."""
    first = looking(stream, 0)
    looks, began, held = [Look()], time.monotonic(), 0
    for number, size in enumerate(SIZES):
        state, batch = first.state_dict(), first.batch(size)
        looks[0].append((size, state, batch))
        if batch is END or len(batch) < size:
            length = sum(len(batch) for *_, batch in looks[0] if batch is not END)
            looks.append([])
            second = looking(stream, 1)
            for size in (length, AGAIN):
                looks[1].append((size, second.state_dict(), second.batch(size)))
                second.taken += 1
            break
        first.taken += 1
        held += size * bytes_of(batch[0])
        # the next batch is three times as long as all before
        if number + 1 >= LEAST and 3 * max((time.monotonic() - began) / SECONDS, held / MOST_BYTES) > 1:
            break
    return looks


def bytes_of(sample: Any) -> int:
    """What a sample holds, roughly: its tensors, arrays and texts."""
    if (parts := parts_of(sample)) is not None:
        return sum(bytes_of(part) for _, part in parts)
    return int(getattr(sample, "nbytes", 0)) or sys.getsizeof(sample)


def leads_on(loader: StreamLoader, look: Look) -> bool:
    """Whether each state leads to the next two batches, also where a second stop lies between them; the second state
    to all; and at last the first one again.
    """
    for start in (*range(len(look)), 0):
        loader.load_state_dict(look[start][1])
        for size, _, batch in look[start : None if start == 1 else start + 2]:
            if not equal(loader.batch(size), batch):
                return False
            loader.taken += 1
            if start != 1:
                loader.load_state_dict(loader.state_dict())
    return True


def has_shuffle_buffer(thing: Any, depth: int = 12) -> bool:
    """Whether a stream of Hugging Face's datasets shuffles in a buffer, which is not in its state."""
    if type(thing).__name__ == "BufferShuffledExamplesIterable" and thing.buffer_size > 1:
        return True
    is_theirs = type(thing).__module__ == "datasets.iterable_dataset"
    inner = vars(thing).values() if is_theirs and hasattr(thing, "__dict__") else thing if type(thing) is list else ()
    return depth > 0 and any(has_shuffle_buffer(each, depth - 1) for each in inner)


def foreign(state: Any) -> str | None:
    """The kind of what is neither plain nor a container of plain values."""
    if isinstance(state, dict):
        kinds = [foreign(part) for pair in state.items() for part in pair]
    elif type(state) in (list, tuple):
        kinds = [foreign(part) for part in state]
    else:
        return None if isinstance(state, PLAIN) else type(state).__name__
    return next((kind for kind in kinds if kind is not None), None)
