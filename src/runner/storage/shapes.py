"""The written shape of every record on disk, and the one way in which records are read and written.

Contract: a record is read whole or refused with one line that names file and key. What a shape does not name is kept
as it is; what an older version did not write has a default here. A record ends with a blank line of 32 spaces and tabs:
the bits of the CRC-32 of what stands before. Where it is another, that is said (runner.terminal.notices). A file
without it is by other hands.
"""

import json
import sys
import types
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from runner.errors import InputError
from runner.storage import listed
from runner.storage.files import read_regular, write_atomically
from runner.storage.kinds import UNSET, Check, Range, check_of, field, in_words, kind_of, shown
from runner.terminal import notices

LARGEST = sys.float_info.max
BITS = bytes.maketrans(b"01", b" \t")
_shapes: dict[str, Any] = {}
OF_RUNS = ("run", "whole", "summed", "listed")
_fits: dict[str, list[tuple[str, Check, Any, Any]]] = {}
LISTED = (  # what a listing reads of a run; the rest may be damaged
    *("state", "name", "tags", "notes", "started", "error", "command", "overrides", "threads", "epochs", "epochs_done"),
    *(
        "choices",
        "stopped",
        "steps",
        "steps_done",
        "best_step",
        "monitor",
        "mode",
        "modes",
        "best_epoch",
        "best_value",
        "best",
        "last",
        "test",
        "seconds",
    ),
)


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
        "notes": (Any, None),
        "overrides": (words | None, None),
        "choices": (dict[str, str | None] | None, None),
        "seconds": (Annotated[float, Range(0)] | None, None),
        "test": (dict[str, metrics], {}),
        "best": (metrics, {}),
        "last": (metrics, {}),
        "modes": (dict[str, mode], {}),
        "known_steps": (metrics, {}),
        "best_step": (count | None, None),
        "steps": (count | None, None),
        "steps_done": (count | None, None),
        "started": (str, ""),
        "ended": (str | None, None),
        "error": (str | None, None),
        "config_source": (facts, {}),
        "failure": (str | None, None),
        "stopped": (str | None, None),
        "id": (str | None, None),
        "command": (words | None, None),
        "resumed": (types.GenericAlias(list, resumption), []),
        "code": (facts | None, None),
        "own_code": (dict[str, dict[str, str]] | None, None),
        "git": (facts | None, None),
        "data": (facts | None, None),
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
    whole = {**run, **whole, "working_directory": str, "best_epoch": count | None, "seconds": (Annotated[float, Range(0)], 0.0)}
    job = {"identity": str, "overrides": words, "settings": dict[str, str], "deaths": (list[facts], [])}
    job |= {"seed": (Any, None), "setting": (facts | None, None), "choices": (dict[str, Any] | None, None)}
    sweep = {"arguments": words, "hydra": (words, []), "config_dir": str | None, "swept": words, "base": facts}
    sweep |= {"code": (facts | None, None), "working_directory": (str, ""), "command": (words, [])}
    sweep |= {"started": (str, ""), "own_code": (dict[str, dict[str, str]] | None, None), "jobs": (list[facts], [])}
    _shapes.update(summed=summed, run=run, whole=whole, never_began=never, job=job, sweep=sweep)
    trial: Any = {"state": str, "value": (number, None), "params": (facts, {}), "by_seed": (metrics, {})}
    study = {"history": types.GenericAlias(list, trial), "importances": (metrics, {}), "seeds": (words, [])}
    _shapes.update(study=study)
    direction: Any = Literal["minimize", "maximize"]
    stage: Any = {"values": metrics, "rungs": metrics}
    ended: Any = Literal["complete", "pruned", "fail"]
    _shapes.update(trial={"state": ended, "stages": types.GenericAlias(list, stage)})
    pruning = {"pruner": facts, "direction": direction, "study": str, "number": count, "first": count}
    _shapes.update(pruning={**pruning, "stage": Annotated[int, Range(1)], "before": types.GenericAlias(list, metrics)})
    _shapes.update(listed={key: run[key] for key in (*LISTED, "config")})
    change: Any = {"at": str, "added": (words, []), "removed": (words, []), "notes": (str | None, UNSET)}
    _shapes.update(label={**change, "archived": (bool, UNSET)})
    return _shapes


def read(path: Path | str, name: str) -> dict[str, Any]:
    """The record in a file, in the named shape: "run", "whole" (a run to be opened again), "summed" (what a
    summary needs of one), "job", "sweep" or "study".

    Raises:
        FileNotFoundError: there is none.
        BadRecord: it cannot be read, is not JSON, or lacks a key or has a wrong one.
    """
    content = content_of(path)
    is_whole = is_sealed(content)
    record = listed.in_parts(content) if name == "listed" and is_whole and has_seal(content) else None
    record = parsed(path, content) if record is None else record
    if not isinstance(record, dict):
        raise BadRecord(f"{path}: is no record of ours: {kind_of(record)} instead of an object")
    shaped = "never_began" if name in OF_RUNS and record.get("config_yaml", "") is None else name
    record = checked(path, record, shaped)
    if not is_whole:
        notices.add(f"{path}: was changed since it was written (its CRC-32 is another); what it says may be wrong")
    return record


def content_of(path: Path | str) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise BadRecord(f"{path}: cannot be read ({error.strerror or error})") from error


def parsed(path: Path | str, content: bytes) -> Any:
    """What the bytes of a JSON file hold."""
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise BadRecord(f"{path}: cannot be read (nested too deeply)") from error
    except ValueError as error:
        raise BadRecord(f"{path}: cannot be read ({error})") from error


def checked(path: Path | str, record: dict[str, Any], name: str) -> dict[str, Any]:
    """The record with the defaults of its shape.

    Raises:
        BadRecord: names the key that is missing or of a wrong kind.
    """
    if name not in _fits:
        fields = {key: field(kind) for key, kind in shapes()[name].items()}
        _fits[name] = [(key, check_of(hint), hint, default) for key, (hint, default) in fields.items()]
    whole = record.copy()
    for key, fits, hint, default in _fits[name]:
        if key in record:
            if not fits(record[key]):
                raise BadRecord(f"{path}: `{key}` is {shown(record[key])}: must be {in_words(hint)}")
        elif default is ...:
            raise BadRecord(f"{path}: missing required field `{key}`")
        elif default is not UNSET:
            whole[key] = default.copy() if isinstance(default, (dict, list)) else default
    if name in (*OF_RUNS, "never_began"):
        check_finite(path, whole)
    return whole


def check_finite(path: Path | str, record: Mapping[str, Any]) -> None:
    """Refuses figures that no run of ours writes: what is not finite is null in a record."""
    several = ({"": record.get("seconds"), "value": record.get("best_value")}, record["best"], record["last"])
    values = [value for figures in (*several, *record["test"].values()) for value in figures.values()]
    if all(value is None or -LARGEST <= value <= LARGEST for value in values):
        return
    groups = {"": {key: record.get(key) for key in ("seconds", "best_value")}}
    groups |= {"best.": record["best"], "last.": record["last"]}
    groups |= {f"test.{which}.": values for which, values in record["test"].items()}
    for group, figures in groups.items():
        for key, value in figures.items():
            if value is not None and not abs(value) <= LARGEST:
                raise BadRecord(f"{path}: {group}{key} is {str(value)[:20]}: not a finite number")


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


def label(line: bytes) -> dict[str, Any] | None:
    """A line of labels.jsonl; None: it is none."""
    try:
        found = json.loads(line.decode())
        return checked(Path("labels.jsonl"), found, "label") if isinstance(found, dict) else None
    except (ValueError, RecursionError, BadRecord):
        return None


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Replaces a record durably, sealed with its CRC-32."""
    body = json.dumps(dict(record), indent=2, default=str).encode() + b"\n"
    write_atomically(path, body + seal(body))


def seal(body: bytes) -> bytes:
    return f"{zlib.crc32(body):032b}".encode().translate(BITS) + b"\n"


def has_seal(content: bytes) -> bool:
    return len(content) - len(content.rstrip(b" \t\n")) > 1


def is_sealed(content: bytes) -> bool:
    """Whether the bytes are what was written; true of a record without a seal."""
    return not has_seal(content) or content[-33:] == seal(content[:-33])
