"""Which examples make a batch: an order that follows from (seed, epoch), and its batches one by one.

Contract: the order of epoch e is a permutation from (seed, e), a position in it is a count of batches, and what is
random in a sample follows from (seed, e, index). A loader is asked for whole batches by (epoch, indices), so it has
no state: any number of workers gives the same tensors, and a resumed epoch skips indices, not data.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from runner.augment import Augmentations
from runner.batches.memory import is_deterministic
from runner.batches.parts import Part
from runner.batches.samples import collated, read
from runner.errors import InputError
from runner.seeding import derive, rng_state, seed_cpu, set_rng_state

CPU = torch.device("cpu")


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

    def num_examples(self, start: int = 0) -> int:
        """Examples of the batches from `start` on."""
        return max(0, min(self.num_batches * self.batch_size, len(self.part)) - start * self.batch_size)

    def rows(self, batch: int) -> slice:
        """Where the batch lies in `indices`."""
        return slice(batch * self.batch_size, (batch + 1) * self.batch_size)

    def __iter__(self) -> Iterator[BatchIndex]:
        order = self.indices(self.epoch)
        for batch in range(self.start, self.num_batches):
            yield BatchIndex(self.epoch, order[self.rows(batch)].tolist())


class BatchDataset(Dataset[Any]):
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
            made = collated(read(self.dataset, batch.indices))
            if not self.augment:
                return made
            data, *rest = images_first(made)
            draws = self.augment.table(batch.epoch, CPU)[batch.indices]
            data, targets = self.augment(data, rest[0] if rest else None, draws, batch.epoch)
            return data, *([targets] if rest else []), *rest[1:]
        before = rng_state(CPU)
        try:
            samples = read(self.dataset, batch.indices, partial(self._seeded_sample, batch.epoch))
            seed_cpu(derive(self.seed, "collate", batch.epoch, batch.indices[0]))
            return (self.collate_fn or collated)(samples)
        finally:
            set_rng_state(before, CPU)

    def _seeded_sample(self, epoch: int, index: int) -> Any:
        seed_cpu(derive(self.seed, "sample", epoch, index))
        sample = self.dataset[index]
        if not self.augment:
            return sample
        draws = self.augment.table(epoch, CPU)[index : index + 1]
        data, *rest = images_first(sample)
        targets, on_targets = rest[0] if rest else None, self.augment.on_targets
        targets = torch.as_tensor(targets).unsqueeze(0) if on_targets else targets
        data, targets = self.augment(data.unsqueeze(0), targets, draws, epoch)
        return data.squeeze(0), *([targets.squeeze(0) if on_targets else targets] if rest else []), *rest[1:]


def images_first(sample: Any) -> Any:
    """A sample or batch, where its first part is a tensor.

    Raises:
        InputError: it is something else, which no augmentation can be done to.
    """
    if not isinstance(sample, (tuple, list)) or not sample or not isinstance(sample[0], Tensor):
        raise InputError(
            f"dataset.augment: is done to the image of (image, target), and these samples are {type(sample).__name__}"
        )
    return sample
