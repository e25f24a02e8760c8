"""The schema of every record on disk, and the one way in which records are read and written.

Contract: a record is read whole or refused with one line that names file, key and value. Keys beyond the schema are
kept. Every record ends with the CRC-32 of what stands before it; where that differs, the reader is told (see
runner.terminal.notices). A record without one was written by hand.
"""

import json
import re
import sys
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from runner.errors import InputError
from runner.storage.files import read_regular, write_atomically
from runner.terminal import notices

LARGEST = sys.float_info.max
Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1)]
Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Seconds = Annotated[float, Meta(ge=0, le=LARGEST)]
Metrics = dict[str, Finite | None]
Facts = dict[str, Any]
Mode = Literal["min", "max"]
CHECKSUM = re.compile(rb',\n  "crc32": "([0-9a-f]{8})"\n}\n\Z')


class Schema(Struct):
    """A kind of record: keys with their types; without a default a key is required."""


class ListedRun(Schema, kw_only=True):
    """What a listing reads of run.json; the rest may be damaged."""

    state: Literal["running", "done", "failed", "interrupted"]
    name: Any = None
    tags: list[Any] = []
    notes: Any = None
    started: str = ""
    error: str | None = None
    command: list[str] | None = None
    overrides: list[str] | None = None
    choices: dict[str, str | None] | None = None
    threads: Positive | None = None
    epochs: Count
    epochs_done: Count
    steps: Count | None = None
    steps_done: Count | None = None
    seconds: Seconds | None = None
    stopped: str | None = None
    monitor: str
    mode: Mode
    modes: dict[str, Mode] = {}
    best_epoch: Count | None
    best_step: Count | None = None
    best_value: Finite | None
    best: Metrics
    last: Metrics
    test: dict[str, Metrics]
    config: Facts


class Slices(ListedRun, kw_only=True):
    """As ListedRun, read from bytes: each group of the config by itself, and the source only where it is asked for."""

    config: dict[str, Raw]
    config_source: Raw = Raw(b"null")
    config_yaml: str | UnsetType | None = UNSET
    crc32: Any = None


class Resumption(Schema, kw_only=True):
    at: str
    epoch: Count
    batch: Count
    command: list[str] = []
    code: Facts | None = None
    changes: list[str] = []


class RunRecord(ListedRun, kw_only=True):
    """run.json."""

    id: str | None = None
    ended: str | None = None
    failure: str | None = None
    resumed: list[Resumption] = []
    known_steps: Metrics = {}
    placement: str | None = None
    chosen_on: str | None = None
    device: str = "cpu"
    layers: list[Any] = []
    examples: dict[str, Count | None] = {}
    code: Facts | None = None
    own_code: dict[str, dict[str, str]] | None = None
    git: Facts | None = None
    data: Facts | None = None
    packages: Facts = {}
    config_source: Facts = {}
    config_yaml: str | UnsetType | None = UNSET
    working_directory: str = ""


class RunThatNeverBegan(RunRecord, kw_only=True):
    """run.json of a job whose objects could not be made."""

    monitor: str | None = None  # type: ignore[assignment]
    mode: Mode | None = None  # type: ignore[assignment]
    best_epoch: Count | None = None
    best: Metrics = {}
    last: Metrics = {}
    test: dict[str, Metrics] = {}


class RunToOpen(RunRecord, kw_only=True):
    """run.json of a run that is built again."""

    config_yaml: str
    device: str
    threads: Positive
    working_directory: str
    seconds: Seconds = 0.0


class JobRecord(Schema, kw_only=True):
    """job.json."""

    identity: str
    overrides: list[str]
    settings: dict[str, str]
    deaths: list[Facts] = []
    seed: Any = None
    setting: Facts | None = None
    choices: Facts | None = None


class SweepRecord(Schema, kw_only=True):
    """sweep.json."""

    arguments: list[str]
    hydra: list[str] = []
    config_dir: str | None
    swept: list[str]
    base: Facts
    code: Facts | None = None
    working_directory: str = ""
    command: list[str] = []
    started: str = ""
    own_code: dict[str, dict[str, str]] | None = None
    jobs: list[Facts] = []


class StudyTrial(Schema, kw_only=True):
    state: str
    value: Finite | None = None
    params: Facts = {}
    by_seed: Metrics = {}


class StudyRecord(Schema, kw_only=True):
    """study.json."""

    history: list[StudyTrial]
    importances: Metrics = {}
    seeds: list[str] = []


class Stage(Schema, kw_only=True):
    values: Metrics
    rungs: Metrics


class TrialRecord(Schema, kw_only=True):
    """A line of history.jsonl."""

    state: Literal["complete", "pruned", "fail"]
    stages: list[Stage]


class PruningRecord(Schema, kw_only=True):
    """pruning.json."""

    pruner: Facts
    direction: Literal["minimize", "maximize"]
    study: str
    number: Count
    first: Count
    stage: Positive
    before: list[Metrics]


class LabelRecord(Schema, kw_only=True):
    """A line of labels.jsonl."""

    at: str
    added: list[str] = []
    removed: list[str] = []
    notes: str | UnsetType | None = UNSET
    archived: bool | UnsetType = UNSET


class BadRecord(InputError):
    """A record that cannot be read, or is none. The message names the file and the key."""


_slices = msgspec.json.Decoder(Slices)
Cell = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Finite | None
_rows = msgspec.json.Decoder(dict[str, Cell | list[Cell]])


def read_record(path: Path | str, schema: type[Schema]) -> dict[str, Any]:
    """The record in a file.

    Raises:
        FileNotFoundError: there is none.
        BadRecord: it cannot be read, is not JSON, or lacks a key or has a wrong one.
    """
    content = content_of(path)
    record = sliced(content) if schema is ListedRun else None
    if record is None:
        record = parsed(path, content)
        if not isinstance(record, dict):
            raise BadRecord(f"{path}: is no record: {shown(record)} instead of an object")
        record = checked(path, record, schema)
    if record.pop("crc32", None) is not None and not has_its_checksum(content):
        notices.add(f"{path}: was changed since it was written (its CRC-32 is another); what it says may be wrong")
    return record


def content_of(path: Path | str) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise BadRecord(f"{path}: cannot be read ({error.strerror or error})") from error


def sliced(content: bytes) -> dict[str, Any] | None:
    """A record for a listing, whose equal groups of equal configs are one object, not to be changed; None: it has to
    be read whole, to say what is wrong.
    """
    try:
        found = _slices.decode(content)
        if found.config_yaml is None:
            return None
        record = {name: getattr(found, name) for name in Slices.__struct_fields__ if name != "config_yaml"}
        record["config"] = {name: decoded(bytes(raw)) for name, raw in found.config.items()}
        return record
    except (ValueError, RecursionError):
        return None


@lru_cache(10_000)
def decoded(content: bytes) -> Any:
    return msgspec.json.decode(content)


def parsed(path: Path | str, content: bytes) -> Any:
    """What the bytes of a JSON file hold; Infinity and NaN, as Python writes them, too."""
    try:
        return json.loads(content.decode())
    except RecursionError as error:
        raise BadRecord(f"{path}: cannot be read (nested too deeply)") from error
    except ValueError as error:
        raise BadRecord(f"{path}: cannot be read ({error})") from error


def checked(path: Path | str, record: dict[str, Any], schema: type[Schema]) -> dict[str, Any]:
    """The record with the defaults of its schema.

    Raises:
        BadRecord: names the key that is missing or of a wrong kind.
    """
    if issubclass(schema, ListedRun) and record.get("config_yaml", "") is None:
        schema = RunThatNeverBegan
    try:
        found = msgspec.convert(record, schema)
    except msgspec.ValidationError as error:
        raise BadRecord(f"{path}: {problem(record, schema, str(error))}") from error
    missing = {name: getattr(found, name) for name in schema.__struct_fields__ if name not in record}
    return {**record, **{name: value for name, value in missing.items() if value is not UNSET}}


def problem(record: Mapping[str, Any], schema: type[Schema], message: str) -> str:
    """msgspec's message with the key and its value in front: "`epochs` is -1: expected `int` >= 0"."""
    what, _, place = message.partition(" - at `$.")
    what = what[0].lower() + what[1:]
    key = re.split(r"[.\[]", place.rstrip("`"))[0]
    if not key:
        return what.removeprefix("object ")
    if choices := [word for word in get_args(get_type_hints(schema)[key]) if isinstance(word, str)]:
        what = f"choices: {', '.join(choices)}"
    return f"`{key}` is {shown(record[key])}: {what}"


def shown(value: Any) -> str:
    """A value as JSON has it, cut to one line; of a container only what it is."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def row_of(line: bytes, key: str) -> dict[str, Any] | None:
    """A line of a .jsonl file as its row, counted by `key`; None: it is no row."""
    try:
        found = _rows.decode(line)
    except (ValueError, RecursionError):
        return None
    count = found.get(key)
    return found if type(count) is int and 0 <= count < 2**53 else None


def label_of(line: bytes) -> dict[str, Any] | None:
    """A line of labels.jsonl; None: it is none."""
    try:
        return checked("labels.jsonl", msgspec.json.decode(line, type=Facts), LabelRecord)
    except (ValueError, RecursionError):
        return None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Replaces a record durably."""
    write_atomically(path, with_checksum(json.dumps(dict(record), indent=2, default=str).encode() + b"\n"))


def with_checksum(body: bytes) -> bytes:
    """The bytes of an indented object with their CRC-32 as its last key."""
    return body[:-3] + b',\n  "crc32": "%08x"\n}\n' % zlib.crc32(body)


def has_its_checksum(content: bytes) -> bool:
    """Whether the bytes end with the CRC-32 of what stands before it."""
    found = CHECKSUM.search(content[-40:])
    return found is not None and zlib.crc32(content[: -len(found[0])] + b"\n}\n") == int(found[1], 16)
