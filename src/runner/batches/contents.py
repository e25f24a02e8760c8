"""What is known of a dataset's content, small enough for a record.

Contract: nothing is drawn and nothing stays changed. The same data gives the same in another process, at another place
on disk and with another thread count. What another processor may compute to other last digits is kept apart.
"""

import collections
import contextlib
import copy
import datetime
import decimal
import hashlib
import json
import mmap
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from runner.batches.own_state import generators_in
from runner.seeding import isolated
from runner.values import flatten

WHOLE = 2**28  # bytes of an array that are read as a whole; of a longer one, pieces
PIECES = 2**26  # bytes that these pieces hold together, and those of all files
PIECE = 2**14
MOST_SIZES = 100_000  # files whose size is asked for
MOST_READ = 1000  # files whose content is looked at
MOST_NAMED = 100  # files that a record names one by one
FEW = 50  # classes, folders and wrapped datasets that are listed one by one
EXAMPLES = 8
LONGEST = 2**20  # entries of a list that are looked at
A_TEXT = 100  # characters; what is shorter is a name, a mode, a mark of one's own
DEPTH = 5  # of datasets that wrap others
ARRAYS = ("numpy", "torch", "pandas", "polars", "PIL")  # whose objects hold their data in memory
CPU = torch.device("cpu")
BYTES = (bytes, bytearray, memoryview)
CONTAINERS = (list, tuple, dict, set, frozenset, collections.deque, str, os.PathLike, *BYTES)


def known_of(dataset: Any) -> dict[str, Any]:
    """Its class, the number of examples, its classes, and digests: of each attribute that holds data (`values`, and
    `computed` of floating numbers), of the files that these name, or else hold in a folder (`files`: folder -> their
    number, and a digest of names, sizes and content, of which much is sampled), and of a few examples.
    """
    kind = type(dataset)
    known: dict[str, Any] = {"class": f"{kind.__module__}.{kind.__qualname__}", "count": None, "classes": None}
    is_map_style = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    held = list(leaves("", dataset, set()))
    with contextlib.suppress(Exception):  # whoever needs what cannot be told says so
        known["count"] = len(dataset) if is_map_style else None
        if isinstance(classes := getattr(dataset, "classes", None), (list, tuple)):
            known["classes"] = [str(c) for c in classes] if len(classes) <= FEW else Digest().of(classes)
    folders = [os.fspath(value) for _, value in held if is_path(value) and os.path.isdir(value)]
    values: dict[str, str] = {}
    computed: dict[str, str] = {}
    files: dict[str, str] = {}
    for name, value in held:
        base, named = files_in(value, folders)
        for short, path in named.items():
            files[short if files.get(short, path) == path else f"{name}/{short}"] = path
        if is_path(value) or (isinstance(value, str) and len(value) < A_TEXT):
            continue
        digest = Digest(base)
        with contextlib.suppress(Exception):  # what cannot be read says nothing
            found = digest.of(value)
            (computed if digest.is_computed else values)[name] = found
    is_known = kind.__module__.startswith(("torchvision.datasets.", "runner.")) or kind is TensorDataset
    if not files and not is_known:  # it looks into its folders when it is asked
        files = {name: path for folder in folders for name, path in files_below(folder)}
    if is_map_style and known["count"] and not is_known and (few := of_examples(dataset, known["count"])) is not None:
        computed["examples"] = few
    return {**known, "values": values, "computed": computed, **of_files(files)}


def leaves(name: str, thing: Any, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of all that may be data in a dataset, in those that it wraps, and in what they hold."""
    if id(thing) in seen or depth > DEPTH:
        return
    seen.add(id(thing))
    if isinstance(thing, CONTAINERS) or is_array(thing):
        if isinstance(thing, (list, tuple)) and 0 < len(thing) <= FEW and is_holder(thing[0]):
            for number, each in enumerate(thing):
                yield from leaves(f"{name}.{number}".lstrip("."), each, seen, depth + 1)
        else:
            yield name or "itself", thing
    elif is_holder(thing):
        for key, value in list(vars(thing).items()):
            yield from leaves(f"{name}.{key}".lstrip("."), value, seen, depth + 1)
    elif isinstance(path := getattr(thing, "filename", getattr(thing, "name", None)), str) and os.path.isfile(path):
        yield name, path  # an open file


def is_array(thing: Any) -> bool:
    return type(thing).__module__.split(".")[0] in ARRAYS and any(
        hasattr(thing, name) for name in ("__array__", "__array_interface__")
    )


def is_holder(thing: Any) -> bool:
    """Whether its attributes may be data: an object of no library of Python's own, and nothing that is called."""
    top = type(thing).__module__.split(".")[0]
    is_foreign = top not in sys.stdlib_module_names or top in ("__main__", "types")
    return (
        is_foreign and isinstance(getattr(thing, "__dict__", None), dict) and not (callable(thing) or is_array(thing))
    )


def is_path(value: Any) -> bool:
    """Whether it is a file's or a folder's name, or looks like one."""
    if not isinstance(value, (str, os.PathLike)):
        return False
    text = os.fspath(value)
    is_short = isinstance(text, str) and len(text) < 4096 and "\n" not in text and "\0" not in text
    return is_short and (os.sep in text or os.path.exists(text))


def files_in(value: Any, folders: Iterable[str]) -> tuple[str, dict[str, str]]:
    """The files that a value names, by themselves or in one of the folders: their common folder, {name: path}."""
    if is_path(value):
        return "", {os.path.basename(value): os.fspath(value)} if os.path.isfile(value) else {}
    words = [os.fspath(word) for word in words_in(value)]
    for folder in ("", *folders):
        if any(os.path.isfile(os.path.join(folder, word)) for word in words[:EXAMPLES]):
            paths = [os.path.join(folder, word) for word in words]
            paths = [path for path, word in zip(paths, words, strict=True) if os.sep in word or os.path.isfile(path)]
            above = {os.path.dirname(path) for path in paths}
            is_one = "" not in above and len({os.path.isabs(path) for path in above}) == 1
            base = os.path.join(os.path.commonpath(above), "") if is_one else ""
            return base, {path.removeprefix(base): path for path in paths}
    return "", {}


def files_below(folder: str) -> Iterator[tuple[str, str]]:
    """(name, path) of the files in a folder and below it, hidden ones left out; none of a folder that the command
    works in, which may hold anything, such as its own runs.
    """
    here = os.path.join(os.path.realpath(""), "")
    if not here.startswith(os.path.join(os.path.realpath(folder), "")):
        for above, inside, names in os.walk(folder):
            inside[:] = sorted(name for name in inside if name[0] not in "._")
            paths = [os.path.join(above, name) for name in sorted(names) if name[0] != "."]
            yield from ((os.path.relpath(path, folder), path) for path in paths)


def words_in(value: Any) -> Iterator[Any]:
    """Every text in lists, tuples, dicts, arrays and tables; of a list that begins with a number, none."""
    if (columns := columns_of(value)) is not None:
        value = columns
    elif not isinstance(value, torch.Tensor) and getattr(getattr(value, "dtype", None), "kind", "") in ("O", "U"):
        value = np.asarray(value).tolist()
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        if isinstance(item, (str, os.PathLike)):
            yield item
        elif isinstance(item, (int, float)) and isinstance(value, list):
            return
        else:
            yield from words_in(item)


def columns_of(thing: Any) -> dict[str, Any] | None:
    """The arrays of a table (pandas, polars); None: it is none."""
    if not (is_array(thing) and hasattr(thing, "columns") and hasattr(thing, "to_numpy")):
        return None
    return {str(column): thing[column].to_numpy() for column in thing.columns}


class Digest:
    """The SHA-256 of a value: of plain values as JSON, of arrays as their bytes.

    Args:
        base: a folder with a separator, which is left out where names of files begin with it: it may be elsewhere.
    """

    def __init__(self, base: str = "") -> None:
        self.base, self.is_computed = base, False  # whether it holds floating arrays

    def of(self, value: Any) -> str:
        if isinstance(value, (list, tuple)) and len(value) > LONGEST:
            value = [len(value), *spread(value, LONGEST)]
        text = json.dumps(value, default=self.plain, skipkeys=True)
        text = text.replace(f'"{json.dumps(self.base)[1:-1]}', '"') if self.base else text
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def plain(self, thing: Any) -> Any:
        """What stands for something that JSON has no word for."""
        if isinstance(thing, (set, frozenset)):
            return sorted(json.dumps(item, default=self.plain) for item in thing)
        if isinstance(thing, (*BYTES, mmap.mmap)):
            return of_array(np.frombuffer(thing, np.uint8))
        if isinstance(thing, (os.PathLike, datetime.date, decimal.Decimal)):
            return str(thing)
        if isinstance(thing, collections.deque):
            return list(thing)
        if (columns := columns_of(thing)) is not None:
            return columns
        if not is_array(thing):
            return vars(thing) if is_holder(thing) else None
        if isinstance(thing, torch.Tensor):
            is_half = thing.dtype is torch.bfloat16
            thing = (thing.detach().view(torch.int16) if is_half else thing.detach()).cpu().numpy()
            self.is_computed |= is_half
        array = np.asarray(thing)
        self.is_computed |= array.dtype.kind in "fc"
        return array.tolist() if array.dtype.hasobject else of_array(array)


def of_array(array: np.ndarray[Any, Any]) -> str:
    """Of its kind, its shape and its bytes; of a long one, of pieces that lie evenly in it."""
    found = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    if array.nbytes <= WHOLE:
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    else:
        rows = max(1, PIECE * len(array) // array.nbytes)
        count = max(2, PIECES // max(PIECE, array.nbytes // len(array)))
        for start in np.linspace(0, len(array) - rows, count).astype(np.int64):
            found.update(np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data)
    return found.hexdigest()[:16]


def known_files(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The same of each file that a key of the groups dataset, loss and task names, by the first key that names it."""
    by_path: dict[str, str] = {}
    for key, value in flatten({group: config.get(group) for group in ("dataset", "loss", "task")}).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, str) and not key.endswith("_target_") and os.path.isfile(path):
                by_path.setdefault(path, key)
    return {key: of_files({os.path.basename(path): path}) for path, key in by_path.items()}


def of_files(files: Mapping[str, str]) -> dict[str, Any]:
    """`files`, and `newest`: when one of them was last written, where not all of their content is known. Of few files
    each one's own digest is kept too.
    """
    by_folder: dict[str, list[str]] = {}
    for name in sorted(files):
        by_folder.setdefault(os.path.dirname(name), []).append(name)
    if len(by_folder) > FEW:
        by_folder = {"": sorted(files)}
    share = max(1, len(by_folder))
    allowed = PIECES // max(1, min(len(files), MOST_READ))  # bytes of a file
    found, newest, is_whole = {}, 0, True
    for folder, names in by_folder.items():
        own: dict[str, str] = {}
        digest = hashlib.sha256("\0".join(names).encode(errors="surrogateescape"))
        for name in spread(names, MOST_SIZES // share):
            with contextlib.suppress(OSError):
                facts = os.stat(files[name])
                digest.update(f"{name} {facts.st_size}".encode(errors="surrogateescape"))
                newest = max(newest, int(facts.st_mtime))
                is_whole &= facts.st_size <= allowed
        for name in spread(names, MOST_READ // share):
            with contextlib.suppress(OSError), open(files[name], "rb") as file:
                size, one = os.fstat(file.fileno()).st_size, hashlib.sha256()
                for start in (
                    range(0, size, PIECE) if size <= allowed else spread(range(0, size, PIECE), allowed // PIECE)
                ):
                    file.seek(start)
                    one.update(file.read(PIECE))
                digest.update(one.digest())
                own[os.path.basename(name)] = one.hexdigest()[:8]
        is_whole &= len(names) <= MOST_READ // share
        found[folder or "."] = [len(names), digest.hexdigest()[:16], *([own] if len(files) <= MOST_NAMED else [])]
    return {"files": found, "newest": None if is_whole else newest}


def spread(items: Any, count: int) -> Any:
    """At most so many of the items, evenly, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, max(count, 2))]


def of_examples(dataset: Any, count: int) -> str | None:
    """Of the numbers in a few examples, where reading them twice under two seeds gives the same and draws from no
    generator of their own. A copy is read: what it opens or counts, the dataset itself does not hold.
    """
    with contextlib.suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if any(generators_in(dataset, "")):
            return None
        once, again = (few(dataset, seed, spread(range(count), EXAMPLES)) for seed in range(2))
        return once if once == again else None
    return None


def few(dataset: Any, seed: int, indices: Iterable[int]) -> str:
    own = copy.copy(dataset)
    with isolated(seed, CPU):
        return Digest().of([numbers(own[index]) for index in indices])


def numbers(value: Any) -> Any:
    """An example without its texts: they may be names of files."""
    if isinstance(value, dict):
        return [numbers(item) for item in value.values()]
    if isinstance(value, (list, tuple)):
        return [numbers(item) for item in value]
    return None if isinstance(value, (str, os.PathLike)) else value
