"""Batches: which examples, in which order, made into tensors.

Contract: the order of epoch e is a permutation from (seed, e), a position in it is a count of batches, and what is
random in a sample follows from (seed, e, index). A loader is asked for whole batches by (epoch, indices), so it has
no state: any number of workers gives the same tensors, and a resumed epoch skips indices, not data.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from runner.augment import Augmentation
from runner.data import Part
from runner.processes import die_with_parent
from runner.seeding import derive, rng_state, seed_cpu, set_rng_state

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
CPU = torch.device("cpu")

# Transforms of torchvision (v1 and v2) that draw nothing.
DETERMINISTIC_TRANSFORMS = {
    *("ToTensor", "PILToTensor", "ToImage", "ToDtype", "ToPureTensor", "ConvertImageDtype"),
    *("Normalize", "Resize", "CenterCrop", "Pad", "Grayscale"),
}


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

    def __iter__(self) -> Iterator[BatchIndex]:
        order = self.part.indices
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive(self.seed, "order", self.epoch))
            order = order[torch.randperm(len(order), generator=generator)]
        for batch in range(self.start, self.num_batches):
            yield BatchIndex(self.epoch, order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist())


def _draws_nothing(transform: Any) -> bool:
    if transform is None:
        return True
    if type(transform).__name__ == "Compose":
        return all(_draws_nothing(part) for part in transform.transforms)
    return type(transform).__module__.startswith("torchvision.") and (
        type(transform).__name__ in DETERMINISTIC_TRANSFORMS
    )


def is_deterministic(dataset: Any) -> bool:
    """Whether dataset[i] is known to draw no random number: this project's datasets, torchvision's by transform."""
    if getattr(dataset, "is_deterministic", False):
        return True
    if not type(dataset).__module__.startswith("torchvision.datasets."):
        return False
    return all(_draws_nothing(getattr(dataset, name, None)) for name in ("transform", "target_transform"))


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
        self.dataset, self.augment, self.seed = dataset, list(augment), seed
        self.collate_fn = collate_fn
        self.own = all(hasattr(a, "num_draws") for a in self.augment)
        self.num_draws = sum(a.num_draws for a in self.augment if hasattr(a, "num_draws"))
        self.is_deterministic = is_deterministic(dataset) and self.own and collate_fn is None
        self._table: tuple[int, Tensor] | None = None

    def _draws(self, batch: BatchIndex) -> Tensor:
        """(len(batch), num_draws) random numbers in [0, 1)."""
        if self._table is None or self._table[0] != batch.epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, "augment", batch.epoch))
            self._table = (batch.epoch, torch.rand(len(self.dataset), self.num_draws, generator=generator))
        return self._table[1][batch.indices]

    def _augmented(self, images: Tensor, draws: Tensor) -> Tensor:
        """Applies every augmentation to images (N, C, H, W) with its columns of draws (N, num_draws)."""
        at = 0
        for augmentation in self.augment:
            if hasattr(augmentation, "num_draws"):
                own: Augmentation = augmentation
                images = own(images, draws[:, at : at + own.num_draws])
                at += own.num_draws
            else:
                images = augmentation(images.squeeze(0)).unsqueeze(0)
        return images

    def __getitem__(self, batch: BatchIndex) -> Any:
        if self.is_deterministic:
            data, target = default_collate([self.dataset[i] for i in batch.indices])
            return (self._augmented(data, self._draws(batch)) if self.augment else data), target
        before = rng_state(CPU)
        try:
            samples = [self._seeded_sample(batch, row) for row in range(len(batch.indices))]
            seed_cpu(derive(self.seed, "collate", batch.epoch, batch.indices[0]))
            return (self.collate_fn or default_collate)(samples)
        finally:
            set_rng_state(before, CPU)

    def _seeded_sample(self, batch: BatchIndex, row: int) -> Any:
        index = batch.indices[row]
        seed_cpu(derive(self.seed, "sample", batch.epoch, index))
        sample = self.dataset[index]
        if not self.augment:
            return sample
        draws = self._draws(batch)[row : row + 1] if self.num_draws else torch.empty(1, 0)
        return self._augmented(sample[0].unsqueeze(0), draws).squeeze(0), *sample[1:]


def _as_it_is(batch: Any) -> Any:
    return batch


def _init_worker(worker_id: int) -> None:
    """Leaves signals to the main process, which asks the workers to end; and ends with it, however it dies."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    die_with_parent()  # where it cannot, torch's own watchdog takes 5 s


@dataclass(frozen=True)
class Loading:
    """The `dataloader` group: torch.utils.data.DataLoader's arguments, and eval_batch_size.

    Raises:
        ValueError: a count out of range, or settings that torch's DataLoader refuses together.
    """

    batch_size: int = 64
    eval_batch_size: int = 1000
    shuffle: bool = True
    drop_last: bool = False
    num_workers: int = 0
    pin_memory: bool | None = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    persistent_workers: bool = False
    prefetch_factor: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("num_workers", 0), ("prefetch_factor", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name}={value}: must be a whole number of at least {least}")
        if not isinstance(self.pin_memory, (bool, type(None))):
            raise ValueError(f"pin_memory={self.pin_memory}: must be true, false or null (on CUDA only)")
        for name in ("persistent_workers", "prefetch_factor"):
            if getattr(self, name) and self.num_workers == 0:
                raise ValueError(f"{name}={getattr(self, name)}: needs num_workers of at least 1")

    def training(
        self, part: Part, augment: Sequence[Any], seed: int, device: torch.device, limit: int | None
    ) -> "Loader":
        if self.drop_last and len(part) < self.batch_size:
            raise ValueError(f"batch_size={self.batch_size}: with drop_last no batch is left of {len(part)} examples")
        order = EpochOrder(part, self.batch_size, self.shuffle, self.drop_last, seed, limit)
        return Loader(self, Batches(part.dataset, augment, self.collate_fn, seed), order, device)

    def evaluation(self, part: Part, seed: int, device: torch.device, limit: int | None) -> "Loader":
        order = EpochOrder(part, self.eval_batch_size, False, False, seed, limit)
        return Loader(self, Batches(part.dataset, (), self.collate_fn, derive(seed, "evaluation")), order, device)


class Loader:
    """torch's DataLoader over batches, from any position: `for batch in loader.batches(epoch, start)`."""

    def __init__(self, settings: Loading, batches: Batches, order: EpochOrder, device: torch.device) -> None:
        self.order = order
        pin = settings.pin_memory if settings.pin_memory is not None else device.type == "cuda"
        self._loader: DataLoader[Any] = DataLoader(
            batches,
            batch_size=None,  # the sampler names whole batches, and the dataset makes them
            sampler=order,
            collate_fn=_as_it_is,
            num_workers=settings.num_workers,
            pin_memory=pin,
            persistent_workers=settings.persistent_workers,
            prefetch_factor=settings.prefetch_factor,
            worker_init_fn=_init_worker,
            generator=torch.Generator(),  # its own: otherwise each iter() draws from the default one
        )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.order.num_batches

    def examples(self, count: int) -> Any:
        """A batch of the part's first examples, made in this process."""
        return self._loader.dataset[BatchIndex(0, self.order.part.indices[:count].tolist())]

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """The epoch's batches from `start` on, as (data, target) or whatever the collate function gives."""
        self.order.epoch, self.order.start = epoch, start
        # A worker is born with the stop signals blocked, until it has chosen to ignore them: one that is sent to
        # the whole process group then cannot kill it in between.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            iterator = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        yield from iterator
