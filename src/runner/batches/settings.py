"""The `dataloader` group: how batches are made, and where."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from runner.augment import Augmentations
from runner.batches.loaders import Loader, MemoryLoader, WorkersLoader
from runner.batches.memory import Store, Unfit, free_bytes, jobs_at_once, may_draw, name_of
from runner.batches.order import BatchDataset, EpochOrder
from runner.batches.parts import Part, Stream
from runner.batches.stream import StreamLoader, batches_of
from runner.errors import InputError
from runner.seeding import derive
from runner.terminal import words
from runner.values import is_number

PLACEMENTS = ("auto", "memory", "workers")
WORKERS_ONLY = (
    *("num_workers", "pin_memory", "collate_fn", "eval_collate_fn", "persistent_workers", "prefetch_factor"),
)


@dataclass(frozen=True)
class Placement:
    """Where a run's batches are made, and why; in memory, the store of each dataset by its id()."""

    where: str  # memory | workers
    reason: str
    stores: dict[int, Store]


@dataclass(frozen=True)
class LoaderSettings:
    """The `dataloader` group: where batches are made, eval_batch_size, and torch.utils.data.DataLoader's arguments.

    Args:
        placement: "memory" decodes the datasets once into tensors on the device; "workers" is torch's DataLoader;
            "auto" takes memory where that gives the same tensors and fits, and none of WORKERS_ONLY is given.
        collate_fn: makes a batch of a list of training samples; eval_collate_fn: of samples that are evaluated.
        memory_limit: GiB that "memory" may take; None: a quarter of what is free, shared by a sweep's jobs at once.

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
    eval_collate_fn: Callable[[list[Any]], Any] | None = None
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
        if limit is not None and not (is_number(limit) and 0 <= limit < float("inf")):
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
        if not given:
            return None
        value = getattr(self, given[0])
        return f"{given[0]}={name_of(value) if callable(value) else value}"

    def differs(self, key: str) -> bool:
        """Whether a part ("dataset.val") has another collate function than the training part."""
        return key != "dataset.train" and self.collate_fn is not self.eval_collate_fn

    def place(self, parts: Sequence[Part | Stream], augment: Sequence[Any], device: torch.device) -> Placement:
        """Where batches are made, and why.

        Raises:
            ValueError: placement=memory, where it is not possible.
        """
        streams = [part for part in parts if isinstance(part, Stream)]
        if streams:
            return self.for_streams(streams[0], parts)
        datasets = list({id(part.dataset): part.dataset for part in parts}.values())
        try:
            if self.placement == "workers" or self.for_workers:
                raise Unfit(self.for_workers or "as asked for")
            drawing = (may_draw(dataset) for dataset in datasets)
            unknown = [*(thing for thing in drawing if thing is not None), *Augmentations(augment, 0, 0).foreign]
            if unknown:
                raise Unfit(f"{name_of(unknown[0])} may draw random numbers, or differ from one time to the next")
            free = free_bytes(device)
            jobs = jobs_at_once(device)
            limit = free / 4 / jobs if self.memory_limit is None else self.memory_limit * words.GIB
            stores = [stored(dataset, device) for dataset in datasets]
            size = sum(store.num_bytes for store in stores)
            among = f", among {jobs} jobs at once" if jobs > 1 else ""
            sizes = f"{words.size(size)} of a limit of {words.size(limit)} ({words.size(free)} are free{among})"
            if size > limit:
                raise Unfit(f"the datasets do not fit: {sizes}")
        except Unfit as reason:
            if self.placement == "memory":
                raise ValueError(f"placement=memory: {reason}; choices: auto, workers") from reason
            return Placement("workers", str(reason), {})
        by_dataset = {id(dataset): store.open() for dataset, store in zip(datasets, stores, strict=True)}
        return Placement("memory", sizes, by_dataset)

    def for_streams(self, stream: Stream, parts: Sequence[Any]) -> Placement:
        """Where a part is a stream, all are read in this process.

        Raises:
            ValueError: a setting that has no meaning then.
        """
        name = name_of(stream.dataset)
        if isinstance(parts[0], Stream) and self.shuffle:
            raise ValueError(f"shuffle=true: {name} is iterable and comes in its own order; set it to false")
        if self.placement == "memory":
            raise ValueError(f"placement=memory: {name} is iterable; choices: auto, workers")
        for key in ("num_workers", "memory_limit"):
            if getattr(self, key):
                raise ValueError(f"{key}={getattr(self, key)}: {name} is iterable and read in the run's own process")
        return Placement("workers", f"{name} is iterable", {})

    def training(
        self,
        part: Part | Stream,
        augment: Sequence[Any],
        seed: int,
        device: torch.device,
        limit: int | None,
        placement: Placement | None = None,
    ) -> Loader:
        if isinstance(part, Stream):
            if augment:
                raise InputError(
                    f"dataset.augment: is drawn by an example's index, and {name_of(part.dataset)} is iterable: its own"
                    " random transforms belong into it"
                )
            if batches_of(part.length, self.batch_size, limit, self.drop_last) is None:
                raise InputError(
                    f"trainer.limit_batches=null: {name_of(part.dataset)} is iterable and has no length: give the"
                    " batches of an epoch"
                )
            return StreamLoader(part, self.batch_size, limit, self.collate_fn, seed, drop_last=self.drop_last)
        if self.drop_last and len(part) < self.batch_size:
            raise ValueError(f"batch_size={self.batch_size}: with drop_last no batch is left of {len(part)} examples")
        order = EpochOrder(part, self.batch_size, self.shuffle, self.drop_last, seed, limit)
        augment = [*getattr(part.dataset, "own_augmentations", ()), *augment]  # a dataset's own come first
        return self._loader(order, augment, self.collate_fn, seed, device, placement)

    def evaluation(
        self,
        part: Part | Stream,
        seed: int,
        device: torch.device,
        limit: int | None,
        placement: Placement | None = None,
    ) -> Loader:
        if isinstance(part, Stream):
            return StreamLoader(
                part, self.eval_batch_size, limit, self.eval_collate_fn, derive(seed, "evaluation"), is_restarted=True
            )
        order = EpochOrder(part, self.eval_batch_size, False, False, seed, limit)
        return self._loader(order, (), self.eval_collate_fn, derive(seed, "evaluation"), device, placement)

    def _loader(
        self,
        order: EpochOrder,
        augment: Sequence[Any],
        collate_fn: Callable[[list[Any]], Any] | None,
        seed: int,
        device: torch.device,
        placement: Placement | None,
    ) -> Loader:
        if placement is None or placement.where == "workers":
            return WorkersLoader(
                BatchDataset(order.part.dataset, augment, collate_fn, seed),
                order,
                num_workers=self.num_workers or 0,
                pin_memory=device.type == "cuda" and self.pin_memory is not False,
                persistent_workers=bool(self.persistent_workers),
                prefetch_factor=self.prefetch_factor,
            )
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
