"""The same few batches in every epoch: those of the first one, trained on and evaluated (trainer.overfit_batches)."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from runner.batches.loaders import Loader
from runner.batches.order import EpochOrder
from runner.batches.parts import Overfit, Part, Parts
from runner.batches.settings import LoaderSettings
from runner.batches.stream import StreamLoader


class SameBatches:
    """A Loader that gives another one's first epoch in every epoch: order, augmentation and random transforms stay as
    that epoch has them. A stream goes on behind what was read, so its batches are kept.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader
        self.kept: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def num_examples(self, start: int = 0) -> int:
        return self.loader.num_examples(start)

    def examples(self, count: int) -> Any:
        return self.loader.examples(count)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        if not isinstance(self.loader, StreamLoader):
            return self.loader.batches(0, start)
        if self.kept is None:
            self.kept = list(self.loader.batches())
        return (copy.deepcopy(batch) for batch in self.kept[start:])  # whoever takes one may change it

    def close(self) -> None:
        self.loader.close()


def overfit(parts: Parts, loading: LoaderSettings, seed: int, limit: int | None) -> tuple[Overfit, LoaderSettings]:
    """The parts of a run on the first `limit` batches of its first epoch, and how they are loaded: the examples of
    these batches, in that order.
    """
    part = parts.train
    if isinstance(part, Part):
        order = EpochOrder(part, loading.batch_size, loading.shuffle, loading.drop_last, seed, limit)
        count = order.num_examples() or len(part)  # 0: the loader says that drop_last leaves no batch
        part, loading = Part(part.dataset, order.indices(0)[:count]), replace(loading, shuffle=False)
    return Overfit(part, None, None, known=parts.known), loading
