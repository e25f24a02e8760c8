"""Datasets, and how one is parted: only what torch and torchvision have not got."""

import gzip
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from runner.errors import InputError
from runner.seeding import derive


@dataclass(frozen=True)
class Part:
    """The examples of a dataset that one part of the run sees, by their indices in it."""

    dataset: Any  # map-style: __getitem__ and __len__
    indices: Tensor  # int64, (N,)

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Parts:
    """What a run trains on, chooses its best epoch by, and is tested on. val or test may be missing."""

    train: Part
    val: Part | None
    test: Part | None

    @property
    def eval_split(self) -> str:
        """The part that is evaluated each epoch."""
        return "val" if self.val is not None else "test" if self.test is not None else "train"


def _read_digits() -> np.ndarray[Any, Any]:
    """scikit-learn's packaged file, 1797 rows of 64 pixels (0 to 16) and a label; its import would take a second."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            text = gzip.decompress(path.read_bytes())
            return np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits  # a scikit-learn that keeps the file elsewhere

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels]).astype(np.int64)


class Digits(Dataset[tuple[Tensor, int]]):
    """scikit-learn's 1,797 handwritten digits: images (1, 8, 8), pixels scaled to [0, 1] and normalized.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """

    is_deterministic = True

    def __init__(self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> None:
        table = torch.from_numpy(_read_digits())
        self.targets: list[int] = table[:, 64].tolist()
        self.images = ((table[:, :64].float() / 16 - mean[0]) / std[0]).view(-1, 1, 8, 8)
        self.classes = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


class Fake(Dataset[tuple[Tensor, int]]):
    """Synthetic images of any shape: a pattern for each class under unit noise. Sample i follows from (seed, i).

    The patterns are the same for every seed, so that a network trained on one Fake does well on another.
    """

    is_deterministic = True

    def __init__(self, size: int, shape: Sequence[int] = (1, 28, 28), num_classes: int = 10, seed: int = 0) -> None:
        if size < 1 or num_classes < 1:
            raise ValueError(f"size={size}, num_classes={num_classes}: both must be at least 1")
        self.size, self.shape, self.seed = size, tuple(shape), seed
        generator = torch.Generator().manual_seed(derive(0, "fake patterns"))
        self.patterns = torch.randn(num_classes, *self.shape, generator=generator)
        generator.manual_seed(derive(seed, "fake targets"))
        self.targets: list[int] = torch.randint(num_classes, (size,), generator=generator).tolist()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(derive(self.seed, "fake image", index))
        target = self.targets[index]
        return self.patterns[target] + torch.randn(self.shape, generator=generator), target


def image_folder(root: str | None, transform: Callable[[Any], Any] | None = None) -> Any:
    """torchvision's ImageFolder of `root`; None for a root of None (no such part)."""
    if root is None:
        return None
    from torchvision.datasets import ImageFolder

    made = ImageFolder(root, transform=transform)
    if len(parts := {"train", "val", "valid", "validation", "test"} & set(made.classes)) > 1:
        raise InputError(
            f"dataset.root={root}: its folders are parts, not classes ({', '.join(sorted(parts))});"
            f" choose dataset.root={root}/train and dataset.test_root={root}/test"
        )
    return made


def integer_targets(dataset: Any) -> Tensor | None:
    """The dataset's `targets` (as torchvision names them) where they are one integer an example, else None."""
    targets = getattr(dataset, "targets", None)
    if targets is None:
        return None
    try:
        tensor = torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None
    fits = tensor.dim() == 1 and len(tensor) == len(dataset)
    return tensor.long() if fits and not tensor.is_floating_point() and not tensor.is_complex() else None


def count_classes(dataset: Any) -> int | None:
    """The number of classes: len(dataset.classes), else the highest integer target + 1, else None."""
    if hasattr(dataset, "classes"):
        return len(dataset.classes)
    targets = integer_targets(dataset)
    return None if targets is None else int(targets.max()) + 1


def hold_out(part: Part, size: float, purpose: str) -> tuple[Part, Part]:
    """Parts a Part into (kept, held out): at random, but the same for every seed; stratified by integer targets.

    Args:
        size: a float is a fraction of the part (rounded), an int a number of examples.
        purpose: "test" or "val": names the key in errors, and makes the two draws independent.

    Raises:
        InputError: a size that is negative or leaves nothing on one of the sides.
    """
    total = len(part)
    count = round(size * total) if isinstance(size, float) else size
    if (isinstance(size, float) and not 0 <= size < 1) or not 0 < count < total:
        raise InputError(
            f"dataset.{purpose}_size={size}: must hold out at least one and fewer than all of the {total} examples"
            f" (a fraction below 1.0, or a count of 1 to {total - 1}; 0: none)"
        )
    generator = torch.Generator().manual_seed(derive(0, "hold out", purpose))
    order = torch.randperm(total, generator=generator)
    targets = integer_targets(part.dataset)
    if targets is None:
        held = order[:count]
    else:
        # Each class in turn spreads its examples evenly over [0, 1); the lowest `count` keys hold out the same
        # share of every class, to within one example.
        labels = targets[part.indices][order]
        keys = torch.empty(total, dtype=torch.float64)
        for label in set(labels.tolist()):
            of_class = (labels == label).nonzero().squeeze(1)
            keys[of_class] = (torch.arange(len(of_class), dtype=torch.float64) + 0.5) / len(of_class)
        held = order[keys.argsort(stable=True)[:count]]
    is_held = torch.zeros(total, dtype=torch.bool)
    is_held[held] = True
    return Part(part.dataset, part.indices[~is_held]), Part(part.dataset, part.indices[is_held])


def split(train: Any, test: Any, test_size: float = 0, val_size: float = 0) -> Parts:
    """Makes the parts of a run from a training set and, where there is one, an official test set.

    Raises:
        InputError: see hold_out.
    """
    rest = Part(train, torch.arange(len(train)))
    test_part = None if test is None else Part(test, torch.arange(len(test)))
    if test_part is None and test_size != 0:
        rest, test_part = hold_out(rest, test_size, "test")
    val_part = None
    if val_size != 0:
        rest, val_part = hold_out(rest, val_size, "val")
    return Parts(rest, val_part, test_part)
