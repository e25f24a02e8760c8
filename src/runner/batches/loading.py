"""Batches: which examples, in which order, made into tensors.

Contract: the order of epoch e is a permutation from (seed, e), a position in it is a count of batches, and what is
random in a sample follows from (seed, e, index). A loader is asked for whole batches by (epoch, indices), so it has
no state: any number of workers gives the same tensors, and a resumed epoch skips indices, not data.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from runner.augment import Augmentations
from runner.batches.memory import Store, Unfit, free_bytes, is_deterministic, name_of
from runner.data import Part
from runner.errors import InputError
from runner.processes import STOP_SIGNALS, die_with_parent
from runner.seeding import derive, rng_state, seed_cpu, set_rng_state

IGNORED_SIGNALS = (*STOP_SIGNALS, signal.SIGUSR2)  # by loader workers; the last one is what SLURM sends
CPU = torch.device("cpu")
GIB = 2**30
PLACEMENTS = ("auto", "memory", "workers")
WORKERS_ONLY = ("num_workers", "pin_memory", "collate_fn", "persistent_workers", "prefetch_factor")


@dataclass(frozen=True)
class BatchIndex:
    """One batch, asked for: the epoch (from 0) and the examples' indices in the dataset."""

    epoch: int
    indices: list[int]


class EpochOrder(Sampler[BatchIndex]):
    """The batches of one epoch, from batch `start` on; `epoch` and `start` are set before each iteration."""

    def __init__(self, part: Part, batch_size: int, shuffle: bool, drop_last: bool, seed: int, limit: int | None):
        self.part, self.batch_size, self.shuffle, self.seed = part, batch_size, shuffle, seed
        whole, rest = divmod(len(part), batch_size)
        self.num_batches = whole + (1 if rest and not drop_last else 0)
        if limit is not None:
            self.num_batches = min(self.num_batches, limit)
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return self.num_batches - self.start

    def indices(self, epoch: int) -> Tensor:
        """The part's indices in the epoch's order, int64 on the CPU."""
        if not self.shuffle:
            return self.part.indices
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        return self.part.indices[torch.randperm(len(self.part), generator=generator)]

    def rows(self, batch: int) -> slice:
        """Where the batch lies in `indices`."""
        return slice(batch * self.batch_size, (batch + 1) * self.batch_size)

    def __iter__(self) -> Iterator[BatchIndex]:
        order = self.indices(self.epoch)
        for batch in range(self.start, self.num_batches):
            yield BatchIndex(self.epoch, order[self.rows(batch)].tolist())


class Batches(Dataset[Any]):
    """A dataset of batches: takes a BatchIndex, gives what the collate function makes of its samples.

    This project's augmentations read their random numbers from a table made of (seed, epoch), by index. Whatever
    else may draw (a foreign dataset, transform or collate function) finds python's, numpy's and torch's generators
    seeded from (seed, epoch, index), and they are put back afterwards.
    """

    def __init__(
        self,
        dataset: Any,
        augment: Sequence[Any] = (),
        collate_fn: Callable[[list[Any]], Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset, self.collate_fn, self.seed = dataset, collate_fn, seed
        self.augment = Augmentations(augment, len(dataset), seed)
        self.is_deterministic = is_deterministic(dataset) and not self.augment.foreign and collate_fn is None

    def __getitem__(self, batch: BatchIndex) -> Any:
        if self.is_deterministic:
            data, target = default_collate([self.dataset[i] for i in batch.indices])
            if not self.augment:
                return data, target
            return self.augment(data, self.augment.table(batch.epoch, CPU)[batch.indices]), target
        before = rng_state(CPU)
        try:
            samples = [self._seeded_sample(batch.epoch, index) for index in batch.indices]
            seed_cpu(derive(self.seed, "collate", batch.epoch, batch.indices[0]))
            return (self.collate_fn or default_collate)(samples)
        finally:
            set_rng_state(before, CPU)

    def _seeded_sample(self, epoch: int, index: int) -> Any:
        seed_cpu(derive(self.seed, "sample", epoch, index))
        sample = self.dataset[index]
        if not self.augment:
            return sample
        draws = self.augment.table(epoch, CPU)[index : index + 1]
        return self.augment(sample[0].unsqueeze(0), draws).squeeze(0), *sample[1:]


def _as_it_is(batch: Any) -> Any:
    return batch


def _init_worker(worker_id: int) -> None:
    """Leaves signals to the main process, which asks the workers to end; and ends with it, however it dies."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
    die_with_parent()  # where it cannot, torch's own watchdog takes 5 s


@dataclass(frozen=True)
class Loading:
    """The `dataloader` group: where batches are made, eval_batch_size, and torch.utils.data.DataLoader's arguments.

    Args:
        placement: "memory" decodes the datasets once into tensors on the device; "workers" is torch's DataLoader;
            "auto" takes memory where that gives the same tensors and fits, and none of WORKERS_ONLY is given.
        memory_limit: GiB that "memory" may take; None: a quarter of what is free.

    Raises:
        ValueError: a value out of range, or settings that do not go together.
    """

    batch_size: int = 64
    eval_batch_size: int = 1000
    shuffle: bool = True
    drop_last: bool = False
    placement: str = "auto"
    memory_limit: float | None = None
    num_workers: int | None = None
    pin_memory: bool | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    persistent_workers: bool | None = None
    prefetch_factor: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0), ("prefetch_factor", 1)):
            value = getattr(self, name)
            if value is None and name in WORKERS_ONLY:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value}: must be a whole number of at least {least}")
        for name in ("pin_memory", "persistent_workers"):
            if not isinstance(getattr(self, name), (bool, type(None))):
                raise ValueError(f"{name}={getattr(self, name)}: must be true, false or null")
        for name in ("persistent_workers", "prefetch_factor"):
            if getattr(self, name) and not self.num_workers:
                raise ValueError(f"{name}={getattr(self, name)}: needs num_workers of at least 1")
        if self.placement not in PLACEMENTS:
            raise ValueError(f"placement={self.placement}: unknown; choices: {', '.join(PLACEMENTS)}")
        limit = self.memory_limit
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit < 0):
            raise ValueError(f"memory_limit={limit}: must be a number of GiB, or null for a quarter of what is free")
        if limit is not None and (self.placement == "workers" or self.for_workers):
            raise ValueError(
                f"memory_limit={limit}: is for data in memory, and {self.for_workers or 'placement=workers'}"
            )
        if self.placement == "memory" and self.for_workers:
            raise ValueError(f"placement=memory: {self.for_workers} is for placement=workers only")

    @property
    def for_workers(self) -> str | None:
        """The first setting that only torch's DataLoader knows, where one is given."""
        given = [name for name in WORKERS_ONLY if getattr(self, name) is not None]
        return f"{given[0]}={getattr(self, given[0])}" if given else None

    def place(self, parts: Sequence[Part], augment: Sequence[Any], device: torch.device) -> "Placement":
        """Where batches are made, and why.

        Raises:
            ValueError: placement=memory, where it is not possible.
        """
        datasets = list({id(part.dataset): part.dataset for part in parts}.values())
        try:
            if self.placement == "workers" or self.for_workers:
                raise Unfit(self.for_workers or "as asked for")
            unknown = [*(d for d in datasets if not is_deterministic(d)), *Augmentations(augment, 0, 0).foreign]
            if unknown:
                raise Unfit(f"{name_of(unknown[0])} may draw random numbers, or differ from one time to the next")
            free = free_bytes(device)
            limit = free / 4 if self.memory_limit is None else self.memory_limit * GIB
            stores = [stored(dataset, device) for dataset in datasets]
            size = sum(store.num_bytes for store in stores)
            sizes = f"{in_words(size)} of a limit of {in_words(limit)} ({in_words(free)} are free)"
            if size > limit:
                raise Unfit(f"the datasets do not fit: {sizes}")
        except Unfit as reason:
            if self.placement == "memory":
                raise ValueError(f"placement=memory: {reason}; choices: auto, workers") from reason
            return Placement("workers", str(reason), {})
        by_dataset = {id(dataset): store.open() for dataset, store in zip(datasets, stores, strict=True)}
        return Placement("memory", sizes, by_dataset)

    def training(
        self,
        part: Part,
        augment: Sequence[Any],
        seed: int,
        device: torch.device,
        limit: int | None,
        placement: "Placement | None" = None,
    ) -> "Loader":
        if self.drop_last and len(part) < self.batch_size:
            raise ValueError(f"batch_size={self.batch_size}: with drop_last no batch is left of {len(part)} examples")
        order = EpochOrder(part, self.batch_size, self.shuffle, self.drop_last, seed, limit)
        return self._loader(order, augment, seed, device, placement)

    def evaluation(
        self, part: Part, seed: int, device: torch.device, limit: int | None, placement: "Placement | None" = None
    ) -> "Loader":
        order = EpochOrder(part, self.eval_batch_size, False, False, seed, limit)
        return self._loader(order, (), derive(seed, "evaluation"), device, placement)

    def _loader(
        self,
        order: EpochOrder,
        augment: Sequence[Any],
        seed: int,
        device: torch.device,
        placement: "Placement | None",
    ) -> "Loader":
        if placement is None or placement.where == "workers":
            return WorkersLoader(self, Batches(order.part.dataset, augment, self.collate_fn, seed), order, device)
        dataset = order.part.dataset
        return MemoryLoader(placement.stores[id(dataset)], Augmentations(augment, len(dataset), seed), order)


def stored(dataset: Any, device: torch.device) -> Store:
    """A Store; a dataset whose first sample cannot be read is left to the workers, and to whoever asks it next."""
    try:
        return Store(dataset, device)
    except (Unfit, InputError):
        raise
    except Exception as error:
        raise Unfit(f"the first sample of {name_of(dataset)} gives {type(error).__name__}: {error}") from error


def in_words(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"


@dataclass(frozen=True)
class Placement:
    """Where a run's batches are made, and why; in memory, the store of each dataset by its id()."""

    where: str  # memory | workers
    reason: str
    stores: dict[int, Store]


class Loader(Protocol):
    """Batches from any position: `for batch in loader.batches(epoch, start)`."""

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        ...

    def examples(self, count: int) -> Any:
        """A batch of the part's first examples, made in this process."""
        ...

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The epoch's batches from `start` on, as (data, target) or whatever the collate function gives."""
        ...


class MemoryLoader:
    """A Loader that takes batches out of a Store, by index, on the device."""

    def __init__(self, store: Store, augment: Augmentations, order: EpochOrder) -> None:
        self.store, self.augment, self.order = store, augment, order

    def __len__(self) -> int:
        return self.order.num_batches

    def examples(self, count: int) -> Any:
        indices = self.order.part.indices[:count]
        return self._taken(indices, indices.to(self.store.device), 0)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        indices = self.order.indices(epoch)
        on_device = indices.to(self.store.device)  # once an epoch
        for batch in range(start, self.order.num_batches):
            rows = self.order.rows(batch)
            yield self._taken(indices[rows], on_device[rows], epoch)

    def _taken(self, indices: Tensor, on_device: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        self.store.fill(indices)
        images, targets = self.store.take(on_device)
        if self.augment:
            images = self.augment(images, self.augment.table(epoch, self.store.device)[on_device])
        return images, targets


class WorkersLoader:
    """A Loader that is torch's DataLoader over batches."""

    def __init__(self, settings: Loading, batches: Batches, order: EpochOrder, device: torch.device) -> None:
        self.order = order
        self._loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,  # the sampler names whole batches, and the dataset makes them
            sampler=order,
            collate_fn=_as_it_is,
            num_workers=settings.num_workers or 0,
            pin_memory=device.type == "cuda" if settings.pin_memory is None else settings.pin_memory,
            persistent_workers=bool(settings.persistent_workers),
            prefetch_factor=settings.prefetch_factor,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # its own: otherwise each iter() draws from the default one
        )

    def __len__(self) -> int:
        return self.order.num_batches

    def examples(self, count: int) -> Any:
        return self._loader.dataset[BatchIndex(0, self.order.part.indices[:count].tolist())]

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        self.order.epoch, self.order.start = epoch, start
        # A worker is born with the stop signals blocked, until it has chosen to ignore them: one that is sent to
        # the whole process group then cannot kill it in between.
        signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)
        try:
            iterator = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED_SIGNALS)
        yield from iterator
