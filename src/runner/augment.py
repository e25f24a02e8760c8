"""Random augmentations of image tensors, driven by a table of random numbers instead of a generator.

Contract: an augmentation takes images (N, C, H, W) and `draws` (N, num_draws), uniform in [0, 1), and what it does
to image i follows from row i alone. So a batch gives what its samples give one by one, in any process. Two attributes
change what it is given: with `knows_epoch` an example's draws are the same in every epoch, and the epoch (from 0) comes
behind them; with `on_targets` it takes and gives (images, targets).
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from runner.seeding import derive


class Augmentation(Protocol):
    """A transform of this module: num_draws random numbers a sample."""

    num_draws: int

    def __call__(self, *given: Any) -> Any: ...


class Augmentations:
    """Augmentations one after the other, and an epoch's table of random numbers, from (seed, epoch): a row a sample.
    Behind the numbers of the epoch stand those that are the same in every epoch, from the seed alone.

    Others than this module's are taken too, for one image (C, H, W) at a time.
    """

    def __init__(self, augment: Sequence[Any], num_samples: int, seed: int) -> None:
        self.augment, self.num_samples, self.seed = list(augment), num_samples, seed
        self.foreign = [a for a in self.augment if not hasattr(a, "num_draws")]
        own = [a for a in self.augment if hasattr(a, "num_draws")]
        self.num_draws = sum(a.num_draws for a in own if not getattr(a, "knows_epoch", False))
        self.num_kept = sum(a.num_draws for a in own) - self.num_draws
        self.on_targets = any(getattr(a, "on_targets", False) for a in own)
        self._table: tuple[int, Tensor] | None = None

    def __bool__(self) -> bool:
        return bool(self.augment)

    def table(self, epoch: int, device: torch.device) -> Tensor:
        """(num_samples, num_draws + num_kept) random numbers in [0, 1)."""
        if self._table is None or self._table[0] != epoch:
            seeds = (derive(self.seed, "augment", epoch), self.num_draws), (derive(self.seed, "augment"), self.num_kept)
            drawn = [
                torch.rand(self.num_samples, n, generator=torch.Generator().manual_seed(seed)) for seed, n in seeds
            ]
            self._table = epoch, torch.cat(drawn, dim=1).to(device)
        return self._table[1]

    def __call__(self, images: Tensor, targets: Any, draws: Tensor, epoch: int) -> tuple[Tensor, Any]:
        """Each augmentation on images (N, C, H, W), and their targets, with its columns of draws."""
        fresh, kept = 0, self.num_draws
        for augmentation in self.augment:
            if not hasattr(augmentation, "num_draws"):
                images = augmentation(images.squeeze(0)).unsqueeze(0)
                continue
            own: Augmentation = augmentation
            if getattr(own, "knows_epoch", False):
                last: tuple[Any, ...] = (draws[:, kept : kept + own.num_draws], epoch)
                kept += own.num_draws
            else:
                last = (draws[:, fresh : fresh + own.num_draws],)
                fresh += own.num_draws
            if getattr(own, "on_targets", False):
                images, targets = own(images, targets, *last)
            else:
                images = own(images, *last)
        return images, targets


def _flag(draws: Tensor, p: float) -> Tensor:
    return (draws < p).view(-1, 1, 1, 1)


def _check_probability(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p={p}: must be between 0 and 1")


class RandomHorizontalFlip:
    """Mirrors left and right with probability p."""

    num_draws = 1

    def __init__(self, p: float = 0.5) -> None:
        _check_probability(p)
        self.p = p

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        return torch.where(_flag(draws[:, 0], self.p), images.flip(-1), images)


class AlternatingFlip:
    """Mirrors left and right in every second epoch: about half of the images in even epochs, the others in odd ones.

    Source: K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498.
    """

    num_draws, knows_epoch = 1, True

    def __call__(self, images: Tensor, draws: Tensor, epoch: int) -> Tensor:
        is_even = _flag(draws[:, 0], 0.5)
        return torch.where(is_even if epoch % 2 == 0 else ~is_even, images.flip(-1), images)


class RandomCrop:
    """Pads by `padding` pixels of `fill` on each side and cuts a window of the image's own size from it."""

    num_draws = 2

    def __init__(self, padding: int = 4, fill: float = 0.0) -> None:
        if padding < 0:
            raise ValueError(f"padding={padding}: must not be negative")
        self.padding, self.fill = padding, fill

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        n, _, height, width = images.shape
        padded = F.pad(images, [self.padding] * 4, value=self.fill)
        shift = (draws * (2 * self.padding + 1)).long()
        rows = (shift[:, 0:1] + torch.arange(height, device=images.device)).view(n, 1, height, 1)
        columns = (shift[:, 1:2] + torch.arange(width, device=images.device)).view(n, 1, 1, width)
        sample = torch.arange(n, device=images.device).view(n, 1, 1, 1)
        channel = torch.arange(images.shape[1], device=images.device).view(1, -1, 1, 1)
        return padded[sample, channel, rows, columns]


class RandomAffine:
    """Rotates by up to +-degrees, shifts by up to +-translate of the size, scales within `scale`; bilinear."""

    num_draws = 4

    def __init__(self, degrees: float = 0.0, translate: float = 0.0, scale: tuple[float, float] = (1.0, 1.0)) -> None:
        if degrees < 0 or translate < 0 or not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f"degrees={degrees}, translate={translate}, scale={list(scale)}: degrees and translate must not be"
                " negative, scale must be two rising positive numbers"
            )
        self.degrees, self.translate, self.scale = degrees, translate, scale

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        n, _, height, width = images.shape
        signed = draws * 2 - 1
        angle = signed[:, 0] * math.radians(self.degrees)
        low, high = self.scale
        zoom = low + (high - low) * draws[:, 3]
        cos, sin = (torch.cos(angle) / zoom).view(n, 1, 1), (torch.sin(angle) / zoom).view(n, 1, 1)
        # Pixel centres in pixels from the image's centre; each output pixel looks up where it comes from.
        y = (torch.arange(height, device=images.device) - (height - 1) / 2).view(1, height, 1)
        x = (torch.arange(width, device=images.device) - (width - 1) / 2).view(1, 1, width)
        y = y - (signed[:, 1] * self.translate * height).view(n, 1, 1)
        x = x - (signed[:, 2] * self.translate * width).view(n, 1, 1)
        grid = torch.stack([(cos * x + sin * y) * (2 / width), (cos * y - sin * x) * (2 / height)], dim=-1)
        return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


class RandomErasing:
    """Sets a rectangle of `size` (a fraction of each side, from low to high) to `fill` with probability p."""

    num_draws = 5

    def __init__(self, p: float = 0.5, size: tuple[float, float] = (0.1, 0.4), fill: float = 0.0) -> None:
        _check_probability(p)
        if not 0 < size[0] <= size[1] <= 1:
            raise ValueError(f"size={list(size)}: must be two rising fractions above 0")
        self.p, self.size, self.fill = p, size, fill

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        n, _, height, width = images.shape
        low, high = self.size

        def inside(length: int, size: Tensor, place: Tensor) -> Tensor:
            extent = ((low + (high - low) * size) * length).ceil()
            start = (place * (length - extent + 1)).floor()
            position = torch.arange(length, device=images.device).view(1, length)
            return (position >= start.view(n, 1)) & (position < (start + extent).view(n, 1))

        rows = inside(height, draws[:, 1], draws[:, 2]).view(n, 1, height, 1)
        columns = inside(width, draws[:, 3], draws[:, 4]).view(n, 1, 1, width)
        return torch.where(_flag(draws[:, 0], self.p) & rows & columns, self.fill, images)
