"""Batches of any nesting: dicts, lists, tuples, named tuples and dataclasses of tensors and plain values."""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.errors import InputError


def mapped(function: Callable[[Tensor], Any], batch: Any, other: Callable[[Any], Any] = lambda value: value) -> Any:
    """The same nesting with function(tensor) for each tensor, and other(value) for each value that holds nothing."""
    if isinstance(batch, Tensor):
        return function(batch)
    if (parts := parts_of(batch)) is None:
        return other(batch)
    return rebuilt(batch, [mapped(function, part, other) for _, part in parts])


def parts_of(batch: Any) -> list[tuple[str, Any]] | None:
    """(name, value) of what a container holds; None for what is none."""
    if isinstance(batch, Mapping):
        return [(str(key), value) for key, value in batch.items()]
    if isinstance(batch, (list, tuple)):
        return [(str(index), value) for index, value in enumerate(batch)]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, (type, nn.Module)):
        return [(field.name, getattr(batch, field.name)) for field in dataclasses.fields(batch)]
    return None


def rebuilt(batch: Any, parts: Sequence[Any]) -> Any:
    """A container of the same kind that holds other parts."""
    if type(batch) in (list, tuple):
        return type(batch)(parts)
    if isinstance(batch, tuple):
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    made = copy.copy(batch)
    if isinstance(batch, Mapping):
        for key, part in zip(batch, parts, strict=True):
            made[key] = part
    elif isinstance(batch, list):
        made[:] = parts
    else:
        for field, part in zip(dataclasses.fields(batch), parts, strict=True):
            object.__setattr__(made, field.name, part)  # a frozen one is copied, too
    return made


def tensors_in(batch: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of every tensor in a batch."""
    if isinstance(batch, Tensor):
        yield path, batch
    for name, part in parts_of(batch) or ():
        yield from tensors_in(part, f"{path}.{name}" if path else name)


def moved(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """A batch on the device; copies from pinned memory do not wait. What moves itself by a method `to` is asked to.

    Args:
        channels_last: images (N, C, H, W) are laid out as NHWC.
    """
    if isinstance(batch, Tensor):
        batch = batch.to(device, non_blocking=True)
        is_image = channels_last and batch.dim() == 4 and batch.is_floating_point()
        return batch.to(memory_format=torch.channels_last) if is_image else batch
    if callable(to := getattr(batch, "to", None)) and not isinstance(batch, type):
        return to(device)
    if (parts := parts_of(batch)) is None:
        return batch
    return rebuilt(batch, [moved(part, device, channels_last) for _, part in parts])


def length(batch: Any) -> int:
    """The examples of a batch: the first dimension that its tensors have in common, those of no dimension left out.

    Raises:
        InputError: there is none, or more than one.
    """
    sizes = {name: tensor.shape[0] for name, tensor in tensors_in(batch) if tensor.dim()}
    if not sizes:
        raise InputError(f"a batch of {type(batch).__name__} has no tensor with a dimension of examples")
    first, size = next(iter(sizes.items()))
    for name, other in sizes.items():
        if other != size:
            raise InputError(
                f"its tensors differ in their first dimension: {size} ({first or 'batch'}) and {other} ({name})"
            )
    return size


def pieces(batch: Any, count: int, least: int = 2) -> list[Any]:
    """A batch cut along its examples into up to `count` batches of sizes that differ by one at most.

    Every tensor and every list of plain values with one entry an example is cut; the rest is in every piece.

    Args:
        least: examples of a piece; batch norm takes no batch of one.

    Raises:
        InputError: see length().
    """
    size = length(batch)
    count = min(count, size // least)
    if count <= 1:
        return [batch]
    bounds = [0]
    for piece in range(count):
        bounds.append(bounds[-1] + size // count + (piece < size % count))
    return [cut(batch, start, stop, size) for start, stop in itertools.pairwise(bounds)]


def cut(batch: Any, start: int, stop: int, size: int) -> Any:
    """The examples start to stop of a batch of `size`."""
    if isinstance(batch, Tensor):
        return batch[start:stop] if batch.dim() else batch
    if (parts := parts_of(batch)) is None:
        return batch
    is_listed = isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields") and len(batch) == size
    if is_listed and all(parts_of(part) is None and not isinstance(part, Tensor) for _, part in parts):
        return batch[start:stop]
    return rebuilt(batch, [cut(part, start, stop, size) for _, part in parts])


def joined(parts: Sequence[Any]) -> Any:
    """What several pieces gave as that of the whole batch, the inverse of pieces(): tensors one behind the other.

    Raises:
        InputError: they do not go together.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        try:
            return torch.cat(list(parts)) if first.dim() else torch.stack(list(parts))
        except RuntimeError as error:
            raise InputError(f"task: the outputs of two pieces of a batch do not go together; {error}") from error
    inner = [parts_of(part) for part in parts]
    if inner[0] is None or any(part is None or len(part) != len(inner[0]) for part in inner):
        return first
    if isinstance(first, (list, tuple)) and not any(True for _ in tensors_in(first)) and not hasattr(first, "_fields"):
        return type(first)(value for part in parts for value in part)
    return rebuilt(first, [joined([value for _, value in group]) for group in zip(*inner, strict=True)])


def equal(one: Any, other: Any) -> bool:
    """Whether two samples or batches are the same, to the last bit of every tensor."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and bool(np.array_equal(one, other))
    mine, others = parts_of(one), parts_of(other)
    if mine is not None and others is not None:
        both = zip(mine, others, strict=True) if len(mine) == len(others) else ()
        return len(mine) == len(others) and all(a == b and equal(x, y) for (a, x), (b, y) in both)
    compares: Any = type(one).__eq__
    if compares is object.__eq__:
        return type(one) is type(other)  # objects that cannot be compared
    return bool(one == other)
