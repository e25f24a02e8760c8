"""What a checkpoint holds, as plain values: every file that is written is one that torch reads with weights_only=True.

Contract: plain are numbers, text, bytes and tensors, torch's dtypes, devices and sizes, and lists, tuples, sets and
dicts of them, by their exact types. Numpy's numbers and arrays, subclasses of the plain types, enums, paths, dates and
the like are written as plain values that say the same; under KINDS the file says what each was, and reading it gives
that again. Nothing of a file is run for it. What cannot be made again is refused.
"""

import copy
import datetime
import decimal
import enum
import fractions
import pathlib
import sys
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runner.errors import InputError

KINDS = "kinds"  # the key of a file's notes: (path, kind, what else it takes to make one)
OF_TORCH = (torch.dtype, torch.device, torch.Size, Tensor, nn.Parameter)
SIMPLE = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray, *OF_TORCH))
MAPPINGS = (dict, OrderedDict, Counter)  # that torch reads
BASES = (dict, list, tuple, set, frozenset, str, bytes, int, float)  # whose subclasses are made again
FACTORIES: dict[str, Any] = {one.__name__: one for one in (bool, int, float, complex, str, list, tuple, set, dict)}
# Written as the one, and made again by the other.
OTHERS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    set: (list, set),
    frozenset: (list, frozenset),
    range: (lambda given: [given.start, given.stop, given.step], lambda said: range(*said)),
    slice: (lambda given: [given.start, given.stop, given.step], lambda said: slice(*said)),
    **{kind: (lambda given: given.isoformat(), kind.fromisoformat) for kind in (datetime.date, datetime.time)},
    datetime.datetime: (lambda given: given.isoformat(), datetime.datetime.fromisoformat),
    datetime.timedelta: (lambda t: [t.days, t.seconds, t.microseconds], lambda said: datetime.timedelta(*said)),
    **{kind: (str, kind) for kind in (decimal.Decimal, fractions.Fraction, uuid.UUID, type(pathlib.Path()))},
}
NAMED = {kind.__name__: made for kind, (_, made) in OTHERS.items()}


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """The same, of plain values alone; what is plain already is not copied.

    Raises:
        InputError: names what cannot be made plain, and where it is.
    """
    notes: list[tuple[Any, ...]] = []
    try:
        made = _plain(state, (), notes)
    except RecursionError as error:
        raise InputError("it holds itself, which no checkpoint can hold") from error
    return {**made, KINDS: notes} if notes else made


def restored(state: dict[str, Any]) -> dict[str, Any]:
    """What plain() was given; `state` is changed. From the first one on whose class is not imported yet, the notes stay
    in it, for a second call.

    Raises:
        Exception: of any kind, where the notes are not as plain() writes them.
    """
    notes = state.pop(KINDS, [])
    for number, (path, kind, detail) in enumerate(notes):
        if kind in ("enum", "subclass") and _found(*detail) is None:
            state[KINDS] = notes[number:]
            break
        owner: Any = state
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = _made(kind, detail, owner[path[-1]])
    return state


def _plain(value: Any, path: tuple[Any, ...], notes: list[tuple[Any, ...]]) -> Any:
    kind = type(value)
    if kind in SIMPLE:
        return value
    if kind in MAPPINGS and all(type(key) in SIMPLE or _is_plain(key) for key in value):
        return _changed(value, value.items(), path, notes)
    if kind is list:
        return _changed(value, enumerate(value), path, notes)
    if kind in (tuple, set) and _is_plain(value):
        return value
    if isinstance(value, Tensor):
        if kind.__torch_dispatch__ is Tensor.__torch_dispatch__:
            return value.as_subclass(Tensor)
        raise _refused(value, path)
    note, detail, said = _described(value, path)
    said = _plain(said, path, notes)
    notes.append((path, note, detail))  # behind those of what it holds
    return said


def _changed(value: Any, items: Iterable[tuple[Any, Any]], path: tuple[Any, ...], notes: list[tuple[Any, ...]]) -> Any:
    """A list or dict whose entries are plain: itself where they were."""
    entries = [(key, _plain(entry, (*path, key), notes)) for key, entry in items if type(entry) not in SIMPLE]
    if entries := [(key, entry) for key, entry in entries if entry is not value[key]]:
        value = copy.copy(value)  # of a state_dict with its _metadata
        for key, entry in entries:
            value[key] = entry
    return value


def _is_plain(value: Any) -> bool:
    return type(value) in SIMPLE or (type(value) in (tuple, set) and all(map(_is_plain, value)))


def _described(value: Any, path: tuple[Any, ...]) -> tuple[str, Any, Any]:
    """(kind, detail, what says the same) of what is not plain."""
    kind = type(value)
    if kind in OTHERS:
        return kind.__name__, None, OTHERS[kind][0](value)
    if kind is tuple:
        return "tuple", None, list(value)
    if kind is deque:
        return "deque", value.maxlen, list(value)
    if kind is defaultdict and (value.default_factory is None or value.default_factory in FACTORIES.values()):
        return "defaultdict", value.default_factory and value.default_factory.__name__, dict(value)
    if kind in MAPPINGS:  # with keys that are not plain
        return "pairs", kind.__name__, [list(pair) for pair in value.items()]
    if kind in (np.ndarray, np.memmap) and value.dtype.kind in "biufcmMSU" and value.dtype.itemsize:
        detail, array = (value.dtype.str, list(value.shape)), np.array(value, order="C")
        if value.dtype.kind in "SU":
            return "array", detail, array.ravel().tolist()
        array = array.view(np.int64) if value.dtype.kind in "mM" else array.astype(value.dtype.newbyteorder("="))
        if array.dtype.itemsize <= 8 or array.dtype == np.complex128:
            return "array", detail, torch.from_numpy(array)
    if isinstance(value, np.generic) and value.dtype.kind in "mM":
        return "number", value.dtype.str, int(value.view(np.int64))
    if isinstance(value, np.generic) and type(value.item()) in SIMPLE:
        return "number", value.dtype.str, value.item()
    of = (kind.__module__, kind.__qualname__)
    if _found(*of) is kind:
        if isinstance(value, enum.Enum):
            return "enum", of, value.value
        is_bare = not getattr(value, "__dict__", None) and not hasattr(kind, "n_sequence_fields")  # torch.return_types
        if is_bare and kind is not defaultdict:  # one whose factory is a function
            for base in BASES:
                if isinstance(value, base):
                    return "subclass", of, _as_base(base, value)
    raise _refused(value, path)


def _as_base(base: type, value: Any) -> Any:
    """An instance of a subclass as one of its base, however the subclass looks at itself."""
    if base is dict:
        return dict(dict.items(value))
    is_list = base in (list, tuple, set, frozenset)
    return list(base.__iter__(value)) if is_list else base.__getnewargs__(value)[0]  # type: ignore[attr-defined]


def _refused(value: Any, path: tuple[Any, ...]) -> InputError:
    name = type(value).__name__ + (f" of {value.dtype}" if isinstance(value, np.ndarray) else "")
    return InputError(
        f"{'.'.join(map(str, path)) or 'it'} holds {'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}, which no"
        " checkpoint can hold: it takes numbers, text, tensors, arrays, and lists and dicts of them"
    )


def _found(module: str, name: str) -> Any:
    """A class of a module that is loaded. Nothing is imported for a file."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def _made(kind: str, detail: Any, said: Any) -> Any:
    if kind in NAMED:
        return NAMED[kind](said)
    if kind == "tuple":
        return tuple(said)
    if kind == "deque":
        return deque(said, detail)
    if kind == "defaultdict":
        return defaultdict(detail and FACTORIES[detail], said)
    if kind == "pairs":
        return {one.__name__: one for one in MAPPINGS}[detail](dict(map(tuple, said)))
    if kind == "array":
        dtype, shape = np.dtype(detail[0]), tuple(detail[1])
        if dtype.kind in "SU":
            return np.array(said, dtype).reshape(shape)
        array = said.numpy().reshape(shape).copy()
        return array.view(dtype) if dtype.kind in "mM" else array.astype(dtype)
    if kind == "number":
        dtype = np.dtype(detail)
        return np.int64(said).view(dtype) if dtype.kind in "mM" else dtype.type(said)
    cls: Any = _found(*detail)
    if kind == "enum" and issubclass(cls, enum.Enum):
        return cls(said)
    base: Any = next(base for base in BASES if issubclass(cls, base))
    if base not in (dict, list, set):
        return base.__new__(cls, said)
    made = base.__new__(cls)
    (base.extend if base is list else base.update)(made, said)
    return made
