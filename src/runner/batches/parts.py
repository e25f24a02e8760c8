"""The parts of a run's data: what it trains on, chooses by and is tested on, and what a dataset says of its labels."""

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from runner.errors import InputError
from runner.seeding import derive, isolated_cpu


@dataclass(frozen=True)
class Part:
    """The examples of a dataset that one part of the run sees, by their indices in it."""

    dataset: Any  # map-style: __getitem__ and __len__
    indices: Tensor  # int64, (N,)
    is_held_out: bool = False  # of the training set; False: all that a set of its own holds, or the training part

    def __len__(self) -> int:
        return len(self.indices)

    def spread(self, count: int) -> Tensor:
        """The indices of `count` examples (or all, where there are fewer), evenly spread over the part."""
        return self.indices[torch.linspace(0, len(self) - 1, min(count, len(self)), dtype=torch.float64).round().long()]


@dataclass(frozen=True)
class Stream:
    """A part that is an iterable dataset: read in its own order."""

    dataset: Any  # __iter__, and the state of runner.batches.stream
    is_held_out = False

    @cached_property
    def beginning(self) -> Any:
        """The state before the first example: asked for before anything is read."""
        with isolated_cpu(0):
            samples = iter(self.dataset)
        return copy.deepcopy((samples if hasattr(samples, "state_dict") else self.dataset).state_dict())

    @property
    def length(self) -> int | None:
        """The examples of a pass, where the dataset tells them by __len__."""
        try:
            return len(self.dataset)
        except (TypeError, NotImplementedError):
            return None


@dataclass(frozen=True)
class Parts:
    """What a run trains on, chooses its best epoch by, and is tested on. val or test may be missing.

    Args:
        more: what is evaluated each epoch beside val, by name.
        known: what is known of each dataset's content, by its key; see runner.batches.contents.
    """

    train: Any  # Part or Stream
    val: Any
    test: Any
    more: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, Any]:
        """Those that there are, by name."""
        official = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in {**official, **self.more}.items() if part is not None}

    def part(self, name: str) -> Any:
        """The part that is evaluated under a name; None: there is no such."""
        return self.all.get(name, getattr(self, name, None))

    @property
    def eval_split(self) -> str:
        """The part that is evaluated each epoch."""
        return "val" if self.val is not None else "test" if self.test is not None else "train"

    @property
    def final_split(self) -> str:
        """The part that the finished weights are looked at on."""
        return "test" if self.test is not None else self.eval_split


@dataclass(frozen=True)
class Overfit(Parts):
    """Training examples alone, that are evaluated too: of trainer.overfit_batches."""

    @property
    def eval_split(self) -> str:
        return "overfit"

    @property
    def overfit(self) -> Any:
        """What is evaluated under this name."""
        return self.train


def integer_targets(dataset: Any) -> Tensor | None:
    """The integer label of every example, int64 (N,), where the dataset tells: by `targets` or `labels`, as a Subset or
    ConcatDataset of such ones, or as the second of a TensorDataset's two tensors. None: it does not, or has others.
    """
    for name in ("targets", "labels"):
        if (held := getattr(dataset, name, None)) is not None:
            return integers(held, len(dataset))
    if isinstance(dataset, Subset):
        inner = integer_targets(dataset.dataset)
        return None if inner is None else inner[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [integer_targets(part) for part in dataset.datasets]
        known = [part for part in parts if part is not None]
        return torch.cat(known) if len(known) == len(parts) else None
    tensors = getattr(dataset, "tensors", None)
    return integers(tensors[-1], len(dataset)) if isinstance(tensors, tuple) and len(tensors) == 2 else None


def below(dataset: Any) -> list[Any]:
    """A dataset, or those that a Subset or ConcatDataset is made of."""
    if isinstance(dataset, (Subset, ConcatDataset)):
        inner = [dataset.dataset] if isinstance(dataset, Subset) else dataset.datasets
        return [one for each in inner for one in below(each)]
    return [dataset]


def stray_target(dataset: Any, classes: int) -> int | None:
    """The highest label of a dataset where it is no class of so many, and the example itself says so too."""
    labels = integer_targets(dataset)
    if labels is None or not len(labels) or int(labels.max()) < classes:
        return None
    most, index = int(labels.max()), int(labels.argmax())
    with isolated_cpu(0), contextlib.suppress(Exception):
        return most if int(dataset[index][1]) == most else None  # a target_transform, or labels of something else
    return None


def class_names(dataset: Any) -> list[str] | None:
    """The names of the classes in their order, where `classes` is a list of them; of a Subset or ConcatDataset those of
    its datasets, where all have the same. None: there are none, or `classes` is something else.
    """
    held = [dataset] if hasattr(dataset, "classes") else below(dataset)
    found = [listed_names(getattr(one, "classes", None)) for one in held]
    return found[0] if all(names == found[0] for names in found) else None


def listed_names(given: Any) -> list[str] | None:
    given = given.tolist() if isinstance(given, (np.ndarray, Tensor)) else given
    return [str(name) for name in given] if isinstance(given, (list, tuple, dict, range, str)) else None


def integers(values: Any, count: int) -> Tensor | None:
    """`count` integers as a tensor (count,); None where the values are something else."""
    try:
        is_array = hasattr(values, "__array__") and not isinstance(values, Tensor)  # pandas', too
        tensor = torch.as_tensor(np.asarray(values) if is_array else values).cpu()
    except (TypeError, ValueError, RuntimeError):
        return None
    fits = tensor.dim() == 1 and len(tensor) == count
    return tensor.long() if fits and not tensor.is_floating_point() and not tensor.is_complex() else None


def count_classes(dataset: Any) -> int | None:
    """The number of classes: by `classes` (names or a number), else the highest integer target + 1, else None."""
    if (names := class_names(dataset)) is not None:
        return len(names)
    counts = {count for one in below(dataset) if isinstance(count := getattr(one, "classes", None), int)}
    if len(counts) == 1 and (count := counts.pop()) > 1:
        return count
    if is_stream(dataset):
        return None
    targets = integer_targets(dataset)
    return None if targets is None or not len(targets) else int(targets.max()) + 1


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
        by_class = labels.argsort(stable=True)
        sizes = torch.unique_consecutive(labels[by_class], return_counts=True)[1]
        nth = torch.arange(total) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # of its class, from 0
        keys = torch.empty(total, dtype=torch.float64)
        keys[by_class] = (nth.double() + 0.5) / sizes.repeat_interleave(sizes)
        held = order[keys.argsort(stable=True)[:count]]
    is_held = torch.zeros(total, dtype=torch.bool)
    is_held[held] = True
    return Part(part.dataset, part.indices[~is_held]), Part(part.dataset, part.indices[is_held])


def is_stream(dataset: Any) -> bool:
    """Whether a dataset is iterable only: with or without a length, but without examples by index."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__iter__"):
        return isinstance(dataset, IterableDataset)
    if getattr(type(dataset), "__getitem__", None) in (None, Dataset.__getitem__) or not hasattr(dataset, "__len__"):
        return True
    try:
        with isolated_cpu(0):
            dataset[0]
    except NotImplementedError:
        return True
    except Exception:
        return False  # the probe says what is wrong with it
    return False


def whole(dataset: Any) -> Part | Stream:
    if isinstance(dataset, Stream):
        return dataset
    return Stream(dataset) if is_stream(dataset) else Part(dataset, torch.arange(len(dataset)))


def trained_on(part: Part | Stream) -> Part | Stream:
    """The training part as it is trained on: a dataset may give another one for it, by `as_trained_on(indices)`."""
    if isinstance(part, Stream) or not hasattr(part.dataset, "as_trained_on"):
        return part
    return replace(part, dataset=part.dataset.as_trained_on(part.indices))


def split(
    train: Any, test: Any, test_size: float = 0, val_size: float = 0, val: Any = None, plain: Any = None
) -> Parts:
    """Makes the parts of a run from a training set and, where there are some, official validation and test sets.

    Args:
        plain: the same examples as train's, as they are evaluated (without what is done to training images only);
            what is held out of train is taken from it. None: train itself.

    Raises:
        InputError: see hold_out; a val_size beside val; a plain of another length than train.
    """
    if val is not None and val_size != 0:
        raise InputError(
            f"dataset.val_size={val_size}: dataset.val is given (dataset.val_root gives it too), so nothing is"
            " held out for validation; set dataset.val_size=0"
        )
    if plain is not None and len(plain) != len(train):
        raise InputError(
            f"dataset.transform_train: with it dataset.train has {len(train)} examples, without it {len(plain)}"
        )
    rest, val_part, test_part = (None if d is None else whole(d) for d in (train, val, test))
    assert rest is not None
    for key, size in (("test_size", test_size if test is None else 0), ("val_size", val_size)):
        if isinstance(rest, Stream) and size != 0:
            raise InputError(f"dataset.{key}={size}: nothing can be held out of an iterable dataset.train; set it to 0")
    if test_part is None and test_size != 0:
        rest, held = hold_out(rest, test_size, "test")  # type: ignore[arg-type]
        test_part = Part(train if plain is None else plain, held.indices, is_held_out=True)
    if val_size != 0:
        rest, held = hold_out(rest, val_size, "val")  # type: ignore[arg-type]
        val_part = Part(train if plain is None else plain, held.indices, is_held_out=True)
    return Parts(rest, val_part, test_part)
