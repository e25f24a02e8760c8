"""Batches from any position of an epoch: out of memory, or by torch's DataLoader."""

import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from runner.augment import Augmentations
from runner.batches.memory import Store
from runner.batches.order import BatchDataset, BatchIndex, EpochOrder
from runner.errors import InputError
from runner.processes import STOP_SIGNALS, die_with_parent
from runner.torch_adapter import dead_workers, end_loader_workers

IGNORED_SIGNALS = (*STOP_SIGNALS, signal.SIGUSR2)  # by loader workers; the last one is what SLURM sends


class Loader(Protocol):
    """Batches from any position: `for batch in loader.batches(epoch, start)`."""

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        ...

    def num_examples(self, start: int = 0) -> int:
        """Examples of an epoch's batches from `start` on."""
        ...

    def examples(self, count: int) -> Any:
        """A batch of so many of the part's examples, evenly spread over it, made in this process."""
        ...

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The epoch's batches from `start` on, as (data, target) or whatever the collate function gives."""
        ...

    def close(self) -> None:
        """Ends what it has running; no batch is asked for afterwards."""
        ...


class MemoryLoader:
    """A Loader that takes batches out of a Store, by index, on the device."""

    def __init__(self, store: Store, augment: Augmentations, order: EpochOrder) -> None:
        self.store, self.augment, self.order = store, augment, order

    def __len__(self) -> int:
        return self.order.num_batches

    def num_examples(self, start: int = 0) -> int:
        return self.order.num_examples(start)

    def examples(self, count: int) -> Any:
        indices = self.order.part.spread(count)
        return next(self._taken(indices, 0, [slice(None)]))

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        size = self.order.batch_size
        rows = [slice(at * size, (at + 1) * size) for at in range(start, self.order.num_batches)]
        return self._taken(self.order.indices(epoch), epoch, rows)

    def _taken(self, indices: Tensor, epoch: int, rows: Sequence[slice]) -> Iterator[tuple[Any, Any]]:
        """(images, targets) of some rows of indices after the other: one generator, so that a batch costs no call."""
        store, on_device = self.store, indices.to(self.store.device)  # once an epoch
        is_filled = store.holds(indices)
        draws = self.augment.table(epoch, store.device) if self.augment else None
        for at in rows:
            if not is_filled:
                store.fill(indices[at])
            wanted = on_device[at]
            images = store.images.index_select(0, wanted)
            for step in store.steps:
                images = step(images)
            targets = store.targets.index_select(0, wanted)
            yield (images, targets) if draws is None else self.augment(images, targets, draws[wanted], epoch)

    def close(self) -> None:
        """Nothing runs."""


class WorkersLoader:
    """A Loader that is torch's DataLoader over batches."""

    def __init__(
        self,
        batches: BatchDataset,
        order: EpochOrder,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        prefetch_factor: int | None = None,
    ) -> None:
        self.source, self.order = batches, order
        self._iterator: Iterator[Any] | None = None
        self._begun = 0  # how often it was iterated
        self._loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,  # the sampler names whole batches, and the dataset makes them
            sampler=order,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            prefetch_factor=prefetch_factor,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # its own: otherwise each iter() draws from the default one
        )

    def __len__(self) -> int:
        return self.order.num_batches

    def num_examples(self, start: int = 0) -> int:
        return self.order.num_examples(start)

    def examples(self, count: int) -> Any:
        return self._loader.dataset[BatchIndex(0, self.order.part.spread(count).tolist())]

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The workers live until the last batch is there, also while the batches are asked for in between. An
        iteration that another one has cut off, for there are workers for one only, goes on from its position.
        """
        while start < len(self):
            self._begun += 1
            begun = self._begun
            for batch in self._iterate(epoch, start):
                start += 1
                if start == len(self) and not self._loader.persistent_workers:
                    self.close()
                yield batch
                if self._begun != begun:
                    break
            else:
                return

    def _iterate(self, epoch: int, start: int) -> Iterator[Any]:
        if not self._loader.persistent_workers:
            self.close()  # of an epoch that was left in the middle
        self.order.epoch, self.order.start = epoch, start
        # torch would raise an error of its own wherever this process is when a worker dies, in the middle of a write
        # too; without its handler the loader that waits for the worker finds it, within 5 s.
        is_main = threading.current_thread() is threading.main_thread()
        handler = signal.getsignal(signal.SIGCHLD) if is_main else None
        # A worker is born with the stop signals blocked, until it has chosen to ignore them: one that is sent to
        # the whole process group then cannot kill it in between.
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            self._iterator = iter(self._loader)
        finally:
            if handler is not None:
                signal.signal(signal.SIGCHLD, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
        try:
            yield from self._iterator
        except InputError as error:  # a worker's comes with the worker's traceback as its text
            line = str(error).strip().rpartition(f"{InputError.__module__}.{InputError.__name__}: ")[2]
            raise InputError(" ".join(line.split())) from error
        except (OSError, EOFError) as error:  # of a batch that a worker has begun to hand over
            if dead := dead_workers(self._iterator):
                ids = ", ".join(map(str, dead))
                raise RuntimeError(f"DataLoader worker (pid(s) {ids}) exited unexpectedly") from error
            raise

    def close(self) -> None:
        iterator, self._iterator = self._iterator, None
        end_loader_workers(iterator)


def _as_it_is(batch: Any) -> Any:
    return batch


def _init_worker(worker_id: int) -> None:
    """Leaves signals to the main process, which asks the workers to end; and ends with it, however it dies."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
    die_with_parent()  # where it cannot, torch's own watchdog takes 5 s
