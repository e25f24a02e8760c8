"""Whether two datasets of a run, opened each for itself, hold the same examples.

A dataset that lies in memory (torchvision's `data`, this project's `images`, a TensorDataset) is compared row by row,
an ImageFolder by its files, any other by a few samples at the same places.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch.utils.data import TensorDataset

from runner.batches.nested import equal
from runner.batches.parts import Part, Parts
from runner.errors import InputError
from runner.seeding import derive, isolated

log = logging.getLogger("runner")

LIKELY = 0.01  # this share of an official part in the training set is worth a line; single copies are in many sets
REPEATED = 0.1  # rows that a set repeats itself, above which equal rows say nothing: a table of few values
MOST_BYTES = 2**30  # of a dataset whose rows are compared
MOST_FILES = 50_000
FILES = 200  # of a part, whose content is looked for among the other's files of the same size
MOST_READ = 2000  # of those
SAMPLES = 16


def check_shared(cfg: Any, parts: Parts) -> None:
    """Compares the training set and the validation and test sets that are none of its examples, each with each.

    Raises:
        InputError: two parts are the same examples as a whole.
    """
    given = {name: part for name, part in parts.all.items() if isinstance(part, Part) and not part.is_held_out}
    names = [name for name in ("train", "val", "test") if name in given]
    pairs: list[tuple[str, str]] = [(one, other) for i, one in enumerate(names) for other in names[i + 1 :]]
    pairs += [("train", name) for name in parts.more if name in given]  # val and test may well be among them
    for one, other in pairs:
        compare(cfg, key_of(parts, one), given[one].dataset, key_of(parts, other), given[other].dataset)


def key_of(parts: Parts, name: str) -> str:
    return f"evaluate.{name}" if name in parts.more else name


def compare(cfg: Any, one: str, left: Any, other: str, right: Any) -> None:
    if left is right or not len(left) or not len(right):
        return
    if are_the_same(left, right):
        way_out = f"leave dataset.{other} out"
        way_out += f" (null), and dataset.{other}_size holds others out" if "." not in other else ""
        raise InputError(
            f"dataset.{one} and dataset.{other} give the same {len(right):,} examples, so figures on dataset.{other}"
            f" would say nothing; {hint(cfg, one, other) or way_out}"
        )
    share, looked_at = shared(left, right)
    if share > LIKELY:
        log.warning(
            "dataset.%s: %d of %d examples that were looked at are in dataset.%s too: figures on them are too good",
            other,
            round(share * looked_at),
            looked_at,
            one,
        )


def hint(cfg: Any, one: str, other: str) -> str:
    """The key that is the likely reason."""
    for name, wrong in ((one, False), (other, True)):
        node = OmegaConf.select(cfg.dataset, name)
        if one == "train" and hasattr(node, "get") and node.get("train") is wrong:
            return f"dataset.{name}.train={str(wrong).lower()} must be {str(not wrong).lower()}"
    return ""


def are_the_same(left: Any, right: Any) -> bool:
    """Whether every example is the same, at the same place."""
    if len(left) != len(right):
        return False
    files = [files_of(d) for d in (left, right)]
    if files[0] is not None and files[1] is not None:
        return [named(path) for path in files[0]] == [named(path) for path in files[1]]
    if isinstance(left, TensorDataset) and isinstance(right, TensorDataset):
        return equal(left.tensors, right.tensors)
    rows = [rows_of(d) for d in (left, right)]
    if rows[0] is not None and rows[1] is not None:
        return bool(np.array_equal(rows[0], rows[1]))
    places = sorted({round(i * (len(left) - 1) / (SAMPLES - 1)) for i in range(SAMPLES)})
    try:  # under other seeds: examples that are drawn each time differ
        return all(equal(*(sample(dataset, i, number) for number, dataset in enumerate((left, right)))) for i in places)
    except Exception:
        return False  # the probe says what is wrong with it


def sample(dataset: Any, index: int, number: int) -> Any:
    with isolated(derive(0, "same examples", number), torch.device("cpu")):
        return dataset[index]


def files_of(dataset: Any) -> list[str] | None:
    """The file of each example of torchvision's DatasetFolder, or of what refines it and reads as it does; None: it is
    another dataset, whatever its attributes are called.
    """
    known = {(c.__module__, c.__name__): c for c in type(dataset).__mro__}
    folder = known.get(("torchvision.datasets.folder", "DatasetFolder"))
    if folder is None or getattr(type(dataset), "__getitem__", None) is not getattr(folder, "__getitem__", None):
        return None
    return [os.fspath(path) for path, _ in dataset.samples]


def rows_of(dataset: Any) -> np.ndarray[Any, Any] | None:
    """A 64-bit number of each example's data, (N,), where the dataset holds them all as one array."""
    is_known = type(dataset).__module__.startswith(("torchvision.datasets.", "runner."))
    held: Any = dataset.tensors[0] if isinstance(dataset, TensorDataset) and dataset.tensors else None
    for name in ("data", "images") if is_known else ():
        held = getattr(dataset, name, None) if held is None else held
    if isinstance(held, torch.Tensor):
        held = held.detach().cpu().numpy() if held.dtype is not torch.bfloat16 else None
    if not isinstance(held, np.ndarray) or held.dtype.hasobject or len(held) != len(dataset):
        return None
    if not held.size or held.nbytes > MOST_BYTES:
        return None
    rows = np.ascontiguousarray(held).reshape(len(held), -1).view(np.uint8)
    weights = (
        np.random.Generator(np.random.PCG64(0)).integers(0, 2**63, -(-rows.shape[1] // 8), dtype=np.uint64) * 2 + 1
    )
    if rows.shape[1] % 8:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
    words: np.ndarray[Any, Any] = rows.view(np.uint64)
    return words @ weights  # modulo 2**64


def named(path: str) -> tuple[str, str]:
    folder, name = os.path.split(path)
    return os.path.realpath(folder), name


def shared(left: Any, right: Any) -> tuple[float, int]:
    """(the share of right's examples that left has too, of how many that was found)."""
    rows = [rows_of(d) for d in (left, right)]
    if rows[0] is not None and rows[1] is not None:
        if len(np.unique(rows[0])) < (1 - REPEATED) * len(rows[0]):
            return 0.0, 0
        return float(np.isin(rows[1], rows[0]).mean()), len(rows[1])
    files = [[Path(path) for path in files_of(d) or ()] for d in (left, right)]
    if not all(0 < len(f) <= MOST_FILES for f in files):
        return 0.0, 0
    try:
        return shared_files(*files)
    except OSError:
        return 0.0, 0


def shared_files(left: list[Path], right: list[Path]) -> tuple[float, int]:
    by_size: dict[int, list[Path]] = {}
    for path in left:
        by_size.setdefault(path.stat().st_size, []).append(path)
    right = [right[i] for i in np.unique(np.linspace(0, len(right) - 1, min(FILES, len(right))).round().astype(int))]
    digests: dict[Path, bytes] = {}

    def digest(path: Path) -> bytes:
        if path not in digests:
            digests[path] = hashlib.sha256(path.read_bytes()).digest()
        return digests[path]

    found = 0
    for path in right:
        alike = by_size.get(path.stat().st_size, []) if len(digests) < MOST_READ else []
        found += any(digest(other) == digest(path) for other in alike)
    return found / len(right), len(right)
