"""The written shape of every record on disk, and the one way in which records are read and written.

Contract: a record is read whole or refused with one line that names file and key. What a shape does not name is kept
as it is; what an older version did not write has a default here. A record ends with a blank line of 32 spaces and tabs:
the bits of the CRC-32 of what stands before. Where it is another, or gone while the signature is there, that is said
(runner.notices). A file without both is of an older version, or by other hands.
"""

import json
import math
import sys
import types
import typing
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

from runner import notices
from runner.errors import InputError
from runner.storage import signature
from runner.storage.files import read_regular, write_atomically

BITS = {"0": " ", "1": "\t"}
UNSET: Any = object()  # the default of a key that a record may lack, and then goes on without
_shapes: dict[str, Any] = {}
_fits: dict[str, dict[str, "Check"]] = {}
Check = Callable[[Any], bool]
PLAIN: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,), float: (float, int), types.NoneType: (types.NoneType,)}


class Range(NamedTuple):
    """What a number may be, in an Annotated hint."""

    least: int
    most: float = math.inf


class BadRecord(InputError):
    """A record that cannot be read, or is none. The message names the file and the key."""


def shapes() -> dict[str, Any]:
    """The shapes by name: a type hint, or (type hint, default), by key."""
    if _shapes:
        return _shapes
    count: Any = Annotated[int, Range(0, 2**53)]
    number: Any = float | int | None
    words: Any = list[str]
    facts: Any = dict[str, Any]
    metrics: Any = dict[str, number]
    resumption: Any = {"at": str, "epoch": count, "batch": count, "command": (words, []), "code": (facts | None, None)}
    resumption = {**resumption, "changes": (words, [])}
    state: Any = Literal["running", "done", "failed", "interrupted"]
    mode: Any = Literal["min", "max"]

    # What a listing and a summary need of a run ...
    listed: Any = {
        "state": state,
        "epochs": count,
        "epochs_done": count,
        "config": facts,
        "best_epoch": (count | None, None),
        "best_value": number,
        "tags": (list[Any], []),
        "name": (Any, None),
        "seconds": (Annotated[float, Range(0)] | None, None),
        "test": (dict[str, metrics], {}),
        "best": (metrics, {}),
        "last": (metrics, {}),
        "modes": (dict[str, mode], {}),
        "known": (metrics, {}),
        "started": (str, ""),
        "ended": (str | None, None),
        "error": (str | None, None),
        "config_source": (facts, {}),
        "failure": (str | None, None),
        "id": (str | None, None),
        "command": (words | None, None),
        "resumed": (types.GenericAlias(list, resumption), []),
        "code": (facts | None, None),
        "own_code": (dict[str, dict[str, str]] | None, None),
        "git": (facts | None, None),
        "packages": (facts, {}),
        "placement": (str | None, None),
        "chosen_on": (str | None, None),
        "layers": (list[Any], []),
        "examples": (dict[str, count | None], {}),
        "device": (str, "cpu"),
        "config_yaml": (str | None, UNSET),
        "working_directory": (str, ""),
        "threads": (Annotated[int, Range(1)] | None, None),
    }
    never = {**listed, "monitor": (str | None, None), "mode": (str | None, None)}
    summed = {**listed, "monitor": str, "mode": mode}
    figures = {"best_epoch": count | None, "best": metrics, "last": metrics, "test": dict[str, metrics]}
    run = {**summed, **figures}  # a figure that is missing is not one that is null
    # ... and what it takes to open it again.
    whole = {"config_yaml": str, "device": str, "threads": Annotated[int, Range(1)]}
    whole = {**run, **whole, "working_directory": str, "best_epoch": count | None, "seconds": listed["seconds"]}
    job = {"identity": str, "overrides": words, "settings": dict[str, str], "deaths": (list[facts], [])}
    job |= {"seed": (Any, None), "setting": (facts | None, None), "choices": (dict[str, Any] | None, None)}
    sweep = {"arguments": words, "hydra": (words, []), "config_dir": str | None, "swept": words, "base": facts}
    sweep |= {"code": (facts | None, None), "working_directory": (str, ""), "command": (words, [])}
    sweep |= {"started": (str, ""), "own_code": (dict[str, dict[str, str]] | None, None), "jobs": (list[facts], [])}
    trial: Any = {"state": str, "value": (number, None), "params": (facts, {})}
    study = {"history": types.GenericAlias(list, trial), "importances": (metrics, {})}
    _shapes.update(summed=summed, run=run, whole=whole, never_began=never, job=job, sweep=sweep, study=study)
    return _shapes


def field(kind: Any) -> tuple[Any, Any]:
    """(type hint, default) of a key; without a default it is required."""
    return kind if isinstance(kind, tuple) else (kind, ...)


def check_of(hint: Any) -> Check:
    """What tells whether a value of JSON is of a type hint. A whole number is a number, and true is none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: True
    if isinstance(hint, Mapping):
        required = [key for key, kind in hint.items() if field(kind)[1] is ...]
        keys = {key: check_of(field(kind)[0]) for key, kind in hint.items()}
        return lambda value: (
            isinstance(value, dict)
            and all(key in value for key in required)
            and all(fits(value[key]) for key, fits in keys.items() if key in value)
        )
    if origin is Annotated:
        inner, (least, most) = check_of(parts[0]), parts[1]
        return lambda value: inner(value) and least <= value <= most
    if origin in (typing.Union, types.UnionType):
        kinds = frozenset(kind for part in parts for kind in PLAIN.get(part, ()))
        others = [check_of(part) for part in parts if part not in PLAIN]
        return lambda value: type(value) in kinds or any(fits(value) for fits in others)
    if origin is Literal:
        return lambda value: type(value) is str and value in parts
    if origin is list:
        item = check_of(parts[0])
        return lambda value: type(value) is list and all(map(item, value))
    if origin is dict:
        item = check_of(parts[1])
        return lambda value: type(value) is dict and all(map(item, value.values()))
    kinds = frozenset(PLAIN[hint])
    return lambda value: type(value) in kinds


def read(path: Path, name: str) -> dict[str, Any]:
    """The record in a file, in the named shape: "run", "whole" (a run to be opened again), "summed" (what a
    summary needs of one), "job", "sweep" or "study".

    Raises:
        FileNotFoundError: there is none.
        BadRecord: it cannot be read, is not JSON, or lacks a key or has a wrong one.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise BadRecord(f"{path}: cannot be read ({error.strerror or error})") from error
    record = parsed(path, content)
    if not isinstance(record, dict):
        raise BadRecord(f"{path}: is no record of ours: {kind_of(record)} instead of an object")
    is_signed = record.pop(signature.FIELD, None) is not None  # of the file, not of what it tells; see is_mine
    is_changed = not is_sealed(content) or (is_signed and not has_seal(content))  # written together
    shaped = "never_began" if name in ("run", "whole", "summed") and record.get("config_yaml", "") is None else name
    record = checked(path, record, shaped)
    if is_changed:
        how = "another" if has_seal(content) else "missing"
        notices.add(f"{path}: was changed since it was written (its CRC-32 is {how}); what it says may be wrong")
    return record


def is_mine(path: Path) -> bool:
    """Whether a record's file is as this user wrote it on this machine; see runner.storage.signature."""
    try:
        return signature.is_mine(parsed(path, read_regular(path)))
    except (OSError, InputError):
        return False


def parsed(path: Path, content: bytes) -> Any:
    """What the bytes of a JSON file hold."""
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise BadRecord(f"{path}: cannot be read (nested too deeply)") from error
    except ValueError as error:
        raise BadRecord(f"{path}: cannot be read ({error})") from error


def checked(path: Path, record: dict[str, Any], name: str) -> dict[str, Any]:
    """The record with the defaults of its shape.

    Raises:
        BadRecord: names the key that is missing or of a wrong kind.
    """
    shape = shapes()[name]
    if name not in _fits:
        _fits[name] = {key: check_of(field(kind)[0]) for key, kind in shape.items()}
    whole = dict(record)
    for key, fits in _fits[name].items():
        hint, default = field(shape[key])
        if key not in record:
            if default is ...:
                raise BadRecord(f"{path}: missing required field `{key}`")
            if default is not UNSET:
                whole[key] = default.copy() if isinstance(default, (dict, list)) else default
        elif not fits(record[key]):
            raise BadRecord(f"{path}: `{key}` is {shown(record[key])}: must be {in_words(hint)}")
    if name in ("run", "whole", "summed", "never_began"):
        check_finite(path, whole)
    return whole


def check_finite(path: Path, record: Mapping[str, Any]) -> None:
    """Refuses figures that no run of ours writes: what is not finite is null in a record."""
    figures = {key: record.get(key) for key in ("seconds", "best_value")}
    figures |= {f"{which}.{key}": value for which in ("best", "last") for key, value in record[which].items()}
    figures |= {f"test.{which}.{key}": v for which, values in record["test"].items() for key, v in values.items()}
    for key, value in figures.items():
        if value is not None and not abs(value) <= sys.float_info.max:
            raise BadRecord(f"{path}: {key} is {str(value)[:20]}: not a finite number")


def shown(value: Any) -> str:
    """The beginning of a value, as JSON has it; of a container only what it is."""
    text = kind_of(value) if isinstance(value, (list, dict)) else json.dumps(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def in_words(hint: Any) -> str:
    """A type hint of a shape, in JSON's words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in parts)
    if origin is Annotated:
        least, most = parts[1]
        return f"{in_words(parts[0])}, at least {least}" + (f" and at most {most}" if most < math.inf else "")
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is list:
        return "a list" if parts[0] is Any else f"a list, each {in_words(parts[0])}"
    if origin is dict:
        return "an object" if parts[1] is Any else f"an object, each {in_words(parts[1])}"
    words = {str: "a text", int: "a whole number", float: "a number", types.NoneType: "null"}
    return words.get(hint, "an object") if isinstance(hint, type) else f"an object of {', '.join(hint)}"


def kind_of(value: Any) -> str:
    return {list: "a list", dict: "an object", str: "a text", type(None): "null"}.get(type(value), "a number")


def row(line: bytes, key: str) -> dict[str, Any] | None:
    """A line of a .jsonl file as its row, counted by `key`; None: it is no row."""
    try:
        found = json.loads(line.decode(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    if type(found) is not dict or not all(map(is_cell, found.values())):
        return None
    count = found.get(key)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**53:
        return None
    return found


def refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def is_cell(value: Any) -> bool:
    """Whether a row may hold it: null, a finite number, or a list of these."""
    if type(value) is list:
        return all(type(item) is not list and is_cell(item) for item in value)
    return value is None or (type(value) in (int, float) and abs(value) <= sys.float_info.max)


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Replaces a record durably, signed by this user, and sealed with its CRC-32."""
    body = json.dumps(signature.signed(record), indent=2, default=str).encode() + b"\n"
    write_atomically(path, body + seal(body))


def seal(body: bytes) -> bytes:
    return "".join(BITS[bit] for bit in f"{zlib.crc32(body):032b}").encode() + b"\n"


def has_seal(content: bytes) -> bool:
    return len(content) > 33 and content[-33:].strip() == b""


def is_sealed(content: bytes) -> bool:
    """Whether the bytes are what was written; true of a record without a seal."""
    return not has_seal(content) or content[-33:] == seal(content[:-33])
