"""Examples, read one after the other and stacked; and what is said of one that cannot be."""

import contextlib
import os
import re
import traceback
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset, default_collate

from runner.errors import InputError

BROKEN = (OSError, EOFError, SyntaxError, UnicodeError, zlib.error)  # what reading a broken file raises, Pillow's too


def read(dataset: Any, indices: Sequence[int], sample_of: Callable[[int], Any] | None = None) -> list[Any]:
    """The samples of some indices.

    Args:
        sample_of: reads one; None: dataset[index].

    Raises:
        InputError: one cannot be read, with its file, or a transform of torchvision's does not take it.
        What the dataset's own code raises.
    """
    samples, index, read_one = [], 0, sample_of or dataset.__getitem__
    try:
        for index in indices:
            samples.append(read_one(index))
    except InputError:
        raise
    except Exception as error:
        if (said := unreadable(dataset, index, error)) is None:
            raise
        raise InputError(f"dataset: {said}") from error
    return samples


def collated(samples: list[Any]) -> Any:
    """A batch, by torch's default_collate.

    Raises:
        InputError: the samples cannot be stacked.
    """
    try:
        return default_collate(samples)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"dataset: the samples of a batch differ, or are no tensors ({reason}); give them one shape by a transform,"
            " or make the batch yourself: dataloader.collate_fn={_target_: your.function}, dataloader.eval_collate_fn"
        ) from error


def unreadable(dataset: Any, index: int, error: Exception) -> str | None:
    """What is wrong with an example, in one line: its file, or the transform that refused it; None: the fault may be
    the code's.
    """
    dataset, index = origin(dataset, index)
    path, reason = file_of(dataset, index), " ".join(str(error).split()) or type(error).__name__
    place = path or f"example {index} of {type(dataset).__name__}"
    is_broken = isinstance(error, BROKEN)
    if not is_broken and (step := refusing(error)) is not None:
        return f"{place}: {step}: {reason}"
    if not is_broken and path is not None and callable(loader := getattr(dataset, "loader", None)):
        try:
            loader(path)
        except Exception:
            is_broken = True
    if isinstance(error, OSError) and error.strerror:
        path, reason = path or error.filename, error.strerror
        place = path or place
    elif is_broken and path is not None:
        reason = what_it_is(path) or re.sub(r" <_io\..*>", "", reason)
    return f"{place}: cannot be read ({reason})" if is_broken else None


def what_it_is(path: str) -> str | None:
    """What a file is that is no picture, where its first bytes tell."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(64).lstrip()
        return "it is empty" if not start else "it is HTML or XML" if start.startswith(b"<") else None
    return None


def origin(dataset: Any, index: int) -> tuple[Any, int]:
    """The dataset that an example lies in, and its index there, below torch's Subset and ConcatDataset."""
    if isinstance(dataset, Subset):
        return origin(dataset.dataset, int(dataset.indices[index]))
    if isinstance(dataset, ConcatDataset):
        for part in dataset.datasets:
            if index < len(part):  # type: ignore[arg-type]
                return origin(part, index)
            index -= len(part)  # type: ignore[arg-type]
    return dataset, index


def file_of(dataset: Any, index: int) -> str | None:
    """The file of an example, where an attribute of the dataset lists one an example, as torchvision's `samples`."""
    for held in vars(dataset).values() if hasattr(dataset, "__dict__") else ():
        if isinstance(held, (list, tuple)) and len(held) == len(dataset):
            entry = held[index][0] if isinstance(held[index], (list, tuple)) and held[index] else held[index]
            if isinstance(entry, (str, os.PathLike)) and os.path.lexists(entry):
                return os.fspath(entry)
    return None


def refusing(error: Exception) -> str | None:
    """torchvision's transform in which an error came up, with its arguments, told by the traceback; None: in none."""
    for frame in traceback.TracebackException.from_exception(error, capture_locals=True).stack:
        step = (frame.locals or {}).get("self", "Compose(")
        if "/torchvision/transforms/" in frame.filename and not step.startswith("Compose("):
            return " ".join(step.split())
    return None
