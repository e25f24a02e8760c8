"""Nested batches, a task with state of its own and a stream, for the campaign of benchmarks/kill9.py."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from runner.tasks import Step


@dataclasses.dataclass
class Pair:
    """A batch of pairs of images."""

    images: dict[str, Tensor]
    about: tuple[Tensor, list[str]]


class Pairs(Dataset[Any]):
    """Two images of noise, as a nested sample; what is random in it draws from the global generator."""

    def __init__(self, size: int = 90) -> None:
        self.images = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        other = (index * 7 + 3) % len(self.images)
        images = {"left": self.images[index] + 0.1 * torch.rand(1, 8, 8), "right": self.images[other]}
        return {"images": images, "is_same": index % 3 == other % 3, "name": str(index)}


def collate(samples: list[dict[str, Any]]) -> Pair:
    images = {side: torch.stack([sample["images"][side] for sample in samples]) for side in ("left", "right")}
    same = torch.tensor([float(sample["is_same"]) for sample in samples])
    return Pair(images, (same, [sample["name"] for sample in samples]))


class Contrastive(nn.Module):
    """Near where the pair is of one kind, apart by a learned margin where not; and away from a queue of codes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.margin = nn.Parameter(torch.tensor(4.0))
        self.register_buffer("queue", torch.zeros(16, 4))
        self.register_buffer("at", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, batch: Pair) -> Step:
        left, right = self.model(batch.images["left"]), self.model(batch.images["right"])
        same, _ = batch.about
        distance = (left - right).square().sum(1).add(1e-6).sqrt()
        loss = (same * distance.square() + (1 - same) * (self.margin - distance).relu().square()).mean()
        if self.training:
            loss = loss + 0.01 * (left @ self.queue.clone().T + torch.rand(16)).logsumexp(1).mean()
            with torch.no_grad():
                self.queue[int(self.at) % 16] = left.mean(0)
                self.at += 1
        return Step(loss, len(same), {"distance": distance}, (same,))


class Numbers(IterableDataset[Any]):
    """A stream of images with noise of the global generator and classes of its own one."""

    def __init__(self, size: int = 100) -> None:
        self.size, self.at = size, 0
        self.generator = torch.Generator().manual_seed(2)

    def __iter__(self) -> Iterator[Any]:
        while self.at < self.size:
            self.at += 1
            target = int(torch.randint(4, (), generator=self.generator))
            yield torch.full((1, 8, 8), target / 4) + torch.rand(1, 8, 8), target
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]
        self.generator.set_state(state["generator"])
