"""What a person says of a run once it has begun: tags, a note, whether it is archived; labels.jsonl, a line a change.

Contract: lines are only ever added, so that two commands, or a command and the run itself (which writes run.json
alone), never lose each other's words; what holds now follows from all of them in turn.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage.files import fsync_directory, read_regular
from runner.storage.record_schema import label_of
from runner.storage.run_dir import LABELS, RunDir, now
from runner.terminal import notices


def history(folder: Path | str) -> list[dict[str, Any]]:
    """Every change of a run's labels, the oldest first; a line that is none is left out and named: see notices."""
    path = f"{folder}{os.sep}{LABELS}"
    if not os.path.lexists(path):
        return []
    try:
        lines = read_regular(path).split(b"\n")[:-1]  # a last line that does not end was cut off by a crash
    except FileNotFoundError:
        return []
    except OSError as error:
        notices.add(f"{path}: left out, cannot be read ({error.strerror or error})")
        return []
    found = []
    for number, line in enumerate(lines, 1):
        if (change := label_of(line)) is not None:
            found.append(change)
        elif line:
            notices.add(f"{path}: line {number} is no label; it is left out")
    return found


def labelled(record: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """tags, notes and archived of a run, as they are after all changes.

    Args:
        record: run.json, which says with which tags and notes it began.
    """
    tags, notes, is_archived = list(record.get("tags") or []), record.get("notes"), False
    for change in changes:
        tags = [tag for tag in tags if tag not in change.get("removed", [])]
        tags += [tag for tag in change.get("added", []) if tag not in tags]
        notes = change.get("notes", notes)
        is_archived = change.get("archived", is_archived)
    return {"tags": tags, "notes": notes, "archived": is_archived}


def add(run_dir: RunDir, change: Mapping[str, Any]) -> None:
    """Adds a change to a run's labels; durable when it returns.

    Raises:
        InputError: the folder holds no run, or it cannot be written, or its file of labels is a link.
    """
    run_dir.refuse_links()
    path = run_dir.path / LABELS
    try:
        line = json.dumps({"at": now(), **change}, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError as error:  # of a command line that is no UTF-8
        raise InputError(f"{error.object[error.start : error.end]!r}: holds what is no text in UTF-8") from error
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "ab") as file:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # behind what a crash has left
            file.write(line)
            file.flush()
            os.fsync(handle)
        fsync_directory(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def restate(run_dir: RunDir, record: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Where labels were changed after the start, those that a resumption has given anew come last, and so hold."""
    if not (changes := history(run_dir.path)):
        return
    change: dict[str, Any] = {"notes": record["notes"]} if "notes" in keys else {}
    if "tags" in keys:
        change |= {"removed": labelled(record, changes)["tags"], "added": list(record["tags"])}
    if change:
        add(run_dir, change)
