"""The written shape of every record on disk, and the one way in which records are read and written.

Contract: a record is read whole or refused with one line that names the file and the key. What a shape does not name is
kept as it is; what an older version did not write has a default here. A record ends with a blank line of 32 spaces and
tabs: the bits of the CRC-32 of what stands before, in a form that is no part of the JSON. Where it is another, the file
has been damaged, which is said (runner.notices). A file without it is of an older version, or by other hands.
"""

import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner import notices
from runner.errors import InputError
from runner.storage import signature
from runner.storage.files import read_regular, write_atomically

LARGEST = sys.float_info.max
BITS = bytes.maketrans(b"01", b" \t")
_shapes: dict[str, Any] = {}
LISTED = (  # what a listing reads of a run; the rest may be damaged
    *("state", "name", "tags", "notes", "started", "error", "command", "overrides", "threads", "epochs", "epochs_done"),
    *("choices", "monitor", "mode", "modes", "best_epoch", "best_value", "best", "last", "test", "seconds"),
)


class BadRecord(InputError):
    """A record that cannot be read, or is none. The message names the file and the key."""


def shapes() -> dict[str, Any]:
    """The shapes by name. Made when the first record is read: the library costs a start 15 ms."""
    if _shapes:
        return _shapes
    from typing import Annotated, Literal

    import msgspec

    # Types made at run time: mypy sees variables.
    count: Any = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    number: Any = float | int | None
    words: Any = list[str]
    facts: Any = dict[str, Any]
    metrics: Any = dict[str, number]
    event = {"at": str, "epoch": count, "batch": count, "command": (words, []), "code": (facts | None, None)}
    event = {**event, "changes": (words, [])}
    state: Any = Literal["running", "done", "failed", "interrupted"]
    mode: Any = Literal["min", "max"]

    def shape(name: str, fields: Mapping[str, Any]) -> Any:
        """Fields are types, or (type, default)."""
        made = [(key, *kind) if isinstance(kind, tuple) else (key, kind) for key, kind in fields.items()]
        return msgspec.defstruct(name, [tuple(field) for field in made], kw_only=True)

    resumption: Any = shape("Resumption", event)
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
        "seconds": (Annotated[float, msgspec.Meta(ge=0)] | None, None),
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
        "resumed": (list[resumption], []),
        "code": (facts | None, None),
        "own_code": (dict[str, dict[str, str]] | None, None),
        "git": (facts | None, None),
        "packages": (facts, {}),
        "placement": (str | None, None),
        "chosen_on": (str | None, None),
        "layers": (list[Any], []),
        "examples": (dict[str, count | None], {}),
        "device": (str, "cpu"),
        "config_yaml": (str | None, msgspec.UNSET),
        "working_directory": (str, ""),
        "threads": (Annotated[int, msgspec.Meta(ge=1)] | None, None),
    }
    never = {**listed, "monitor": (str | None, None), "mode": (str | None, None)}
    summed = {**listed, "monitor": str, "mode": mode}
    figures = {"best_epoch": count | None, "best": metrics, "last": metrics, "test": dict[str, metrics]}
    run = {**summed, **figures}  # a figure that is missing is not one that is null
    # ... and what it takes to open it again.
    whole = {"config_yaml": str, "device": str, "threads": Annotated[int, msgspec.Meta(ge=1)]}
    whole = {**run, **whole, "working_directory": str, "best_epoch": count | None, "seconds": listed["seconds"]}
    job = {"identity": str, "overrides": words, "settings": dict[str, str], "deaths": (list[facts], [])}
    job |= {"seed": (Any, None), "setting": (facts | None, None), "choices": (dict[str, Any] | None, None)}
    sweep = {"arguments": words, "hydra": (words, []), "config_dir": str | None, "swept": words, "base": facts}
    sweep |= {
        "code": (facts | None, None),
        "working_directory": (str, ""),
        "command": (words, []),
        "started": (str, ""),
    }
    sweep |= {"own_code": (dict[str, dict[str, str]] | None, None), "jobs": (list[facts], [])}
    _shapes.update(
        summed=shape("Summed", summed),
        run=shape("Run", run),
        whole=shape("Whole", whole),
        never_began=shape("NeverBegan", never),
    )
    pieces: Any = dict[str, msgspec.Raw]
    in_pieces = {"config": pieces, "config_source": (pieces, {})}
    _shapes.update(listed=shape("Listed", {**{key: run[key] for key in LISTED}, **in_pieces}))
    _shapes.update(job=shape("Job", job), sweep=shape("Sweep", sweep))
    _shapes.update(epoch=dict[str, number | list[number]], words=list[str])
    change = {"at": str, "added": (words, []), "removed": (words, []), "notes": (str | None, msgspec.UNSET)}
    _shapes.update(label=shape("Label", {**change, "archived": (bool, msgspec.UNSET)}))
    return _shapes


def read(path: Path, name: str) -> dict[str, Any]:
    """The record in a file, in the named shape: "run", "whole" (a run to be opened again), "summed" (what a
    summary needs of one), "job" or "sweep".

    Raises:
        FileNotFoundError: there is none.
        BadRecord: it cannot be read, is not JSON, or lacks a key or has a wrong one.
    """
    content = content_of(path)
    record = parsed(path, content)
    if not isinstance(record, dict):
        raise BadRecord(f"{path}: is no record of ours: {kind_of(record)} instead of an object")
    record.pop(signature.FIELD, None)  # of the file, not of what it tells; see is_mine
    shaped = "never_began" if name in ("run", "whole", "summed") and record.get("config_yaml", "") is None else name
    record = checked(path, record, shaped)
    check_seal(path, content)
    return record


def read_listed(path: str) -> dict[str, Any]:
    """As read(path, "run") for a listing of thousands: LISTED alone, and config and config_source in pieces
    (msgspec.Raw), most of which are the same bytes in many runs; see records.piece.
    """
    import msgspec

    content = content_of(path)
    try:
        made = msgspec.json.decode(content, type=shapes()["listed"])
    except (ValueError, RecursionError):
        return read(Path(path), "run")  # says what is wrong, or knows the exception
    record = {key: getattr(made, key) for key in made.__struct_fields__}
    check_finite(path, record)
    check_seal(path, content)
    return record


def content_of(path: Path | str) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadRecord(f"{path}: cannot be read ({error.strerror or error})") from error


def check_seal(path: Path | str, content: bytes) -> None:
    if not is_sealed(content):
        notices.add(f"{path}: was changed since it was written (its CRC-32 is another); what it says may be wrong")


def is_mine(path: Path) -> bool:
    """Whether a record's file is as this user wrote it on this machine; see runner.storage.signature."""
    try:
        return signature.is_mine(parsed(path, read_regular(path)))
    except (OSError, InputError):
        return False


def parsed(path: Path, content: bytes) -> Any:
    """What the bytes of a JSON file hold."""
    import msgspec

    try:
        return msgspec.json.decode(content)
    except RecursionError as error:
        raise BadRecord(f"{path}: cannot be read (nested too deeply)") from error
    except ValueError as error:
        if isinstance(error, msgspec.DecodeError) and any(sign in content for sign in (b"Infinity", b"NaN", b"\\ud")):
            try:  # what JSON has no words for, in older configs; half a character, of a file's name that is no UTF-8
                return json.loads(content)
            except (ValueError, RecursionError):
                pass
        raise BadRecord(f"{path}: cannot be read ({error or 'not JSON'})") from error


def checked(path: Path, record: dict[str, Any], name: str) -> dict[str, Any]:
    """The record with the defaults of its shape.

    Raises:
        BadRecord: names the key that is missing or of a wrong kind.
    """
    import msgspec

    shape = shapes()[name]
    try:
        made = msgspec.convert(record, shape)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{path}: {wording(error)}") from error
    defaults = {key: getattr(made, key) for key in shape.__struct_fields__ if key not in record}
    whole = {**record, **{key: value for key, value in defaults.items() if value is not msgspec.UNSET}}
    if name in ("run", "whole", "summed", "never_began"):
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


def wording(error: BaseException) -> str:
    """The library's message, without its signs for where in the record it is."""
    return str(error).replace(" - at `$.", " at `").replace("`$.", "`")


def kind_of(value: Any) -> str:
    return {list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")


def row(line: bytes, key: str) -> dict[str, Any] | None:
    """A line of a .jsonl file as its row, counted by `key`; None: it is no row."""
    import msgspec

    try:
        found = msgspec.json.decode(line, type=shapes()["epoch"])
    except (ValueError, RecursionError):
        return None
    if any(abs(value) > LARGEST for value in found.values() if isinstance(value, int)):
        return None  # json has integers of any length
    count = found.get(key)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < 2**53:
        return None
    return found  # type: ignore[no-any-return]


def label(line: bytes) -> dict[str, Any] | None:
    """A line of labels.jsonl; None: it is none."""
    import msgspec

    try:
        made = msgspec.json.decode(line, type=shapes()["label"])
    except (ValueError, RecursionError):
        return None
    found = {key: getattr(made, key) for key in made.__struct_fields__}
    return {key: value for key, value in found.items() if value is not msgspec.UNSET}


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Replaces a record durably, signed by this user, and sealed with its CRC-32."""
    body = json.dumps(signature.signed(record), indent=2, default=str).encode() + b"\n"
    write_atomically(path, body + seal(body))


def seal(body: bytes) -> bytes:
    return f"{zlib.crc32(body):032b}".encode().translate(BITS) + b"\n"


def is_sealed(content: bytes) -> bool:
    """Whether the bytes are what was written; true of a record without a seal."""
    body, line = content[:-33], content[-33:]
    return line.strip() != b"" or line == seal(body)
