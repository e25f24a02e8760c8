"""Runs as plain dicts, read from their folders' JSON: no torch, no YAML, a thousand in well under a second."""

import marshal
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage import labels
from runner.storage.choices import choices_of
from runner.storage.record_schema import ListedRun, read_record
from runner.storage.rows import Rows
from runner.storage.run_dir import RunDir, is_locked, no_run
from runner.terminal import notices
from runner.terminal.progress import with_bar
from runner.values import flatten

PRUNED = "pruned"  # what the reason begins with for which a search has ended a run


def find(folder: Path) -> list[Path]:
    """The run directories at or below a folder, sorted by path. A run's own folder is not searched further.

    Raises:
        InputError: no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    found: list[str] = []

    def unreadable(error: OSError) -> None:
        notices.add(f"{error.filename}: left out, cannot be read ({error.strerror})")

    for path, folders, files in os.walk(folder, onerror=unreadable):
        if "run.json" not in files and "metrics.jsonl" in files:
            notices.add(f"{path}: left out, its run.json is gone")
        if "run.json" in files or "run.json" in folders:
            found.append(path)
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    if not found:
        raise InputError(f"{folder}: holds no run")
    return [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))]


def state_of(run_dir: RunDir | Path, record: Mapping[str, Any]) -> str:
    """The record's state; a run that says "running" and whose lock nobody holds was killed."""
    state = str(record["state"])
    if state != "running":
        return state
    return state if is_locked(run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)) else "killed"


def is_by_steps(record: Mapping[str, Any]) -> bool:
    """Whether a run is told of by its steps: it is as long as so many, or not evaluated after each epoch."""
    trainer = record["config"].get("trainer")
    return record.get("steps") is not None or (isinstance(trainer, dict) and trainer.get("evaluate_every") is not None)


def done_of(record: Mapping[str, Any]) -> str:
    """How far a run is, in the unit of its length: `3 of 14 epochs`."""
    if record.get("steps") is not None:
        return f"{record['steps_done']} of {record['steps']} steps"
    return f"{record['epochs_done']} of {record['epochs']} epochs"


def is_pruned(record: Mapping[str, Any]) -> bool:
    """Whether a search has given the run up."""
    return str(record.get("stopped")).startswith(PRUNED)


_flat: dict[bytes, dict[str, Any]] = {}
_pieces: dict[tuple[str, str, int], tuple[Any, dict[str, Any]]] = {}  # with the value, whose id is the key


class Row(dict[str, Any]):
    """A run as a flat dict, with the record that it was made of, and its config's keys by group."""

    record: dict[str, Any]
    groups: dict[str, dict[str, Any]]


def pieces(config: Mapping[str, Any], before: str) -> dict[str, dict[str, Any]]:
    """The flat keys of each group of a config. Most groups are equal in most runs of a folder, and then one object."""
    made = {}
    for name, value in config.items():
        known = _pieces.get((before, name, id(value)))  # of a listing: equal ones are one object already
        if known is None:
            key = marshal.dumps((before, name, value), 2)  # the fastest that tells whether two are equal
            if (flat := _flat.get(key)) is None:
                flat = _flat[key] = flatten({f"{before}.{name}": value})
            known = _pieces[before, name, id(value)] = value, flat
        made[name] = known[1]
    return made


def read(path: Path, with_config: bool = True) -> Row:
    """One run as a flat dict: path, name, state, tags, choices of groups, config keys, and the metrics of its best and
    last epoch.

    Args:
        with_config: False leaves the config keys in row.groups, where a table finds those that it shows.
    """
    folder = str(path)
    try:
        record = read_record(f"{folder}{os.sep}run.json", ListedRun)
    except FileNotFoundError as error:
        raise no_run(path) from error
    said = labels.labelled(record, labels.history(folder))
    row = Row(
        path=folder,
        name=record["name"] or os.path.basename(folder),
        state=state_of(path, record),
        tags=said["tags"],
        notes=said["notes"],
        archived=said["archived"],
        epochs_done=record["epochs_done"],
        epochs=record["epochs"],
        monitor=record["monitor"],
        mode=record["mode"],
        modes=record["modes"],
        best_epoch=record["best_epoch"],
        best_value=record["best_value"],
        seconds=record["seconds"],
        started=record["started"],
        error=record["error"],
        threads=record["threads"],
    )
    row.record, row.groups = record, pieces(record["config"], "config")
    record["choices"] = record["choices"] or choices_of(path)
    for group, choice in record["choices"].items():
        row[f"choices.{group}"] = choice
    for flat in row.groups.values() if with_config else ():
        row.update(flat)
    for which in ("best", "last"):
        for key, value in record[which].items():
            row[f"{which}/{key}"] = value
        for key, value in record["test"].get(which, {}).items():
            row[f"test/{which}/{key}"] = value
    return row


def runs(*folders: Path, with_config: bool = True) -> list[Row]:
    """Every run below the folders that can be read, as read() gives it; the others are named: see notices. A run that
    lies in several of them is there once.

    Raises:
        InputError: there is none, or none of them can be read.
    """
    paths = [path for folder in folders for path in find(folder)]
    if len(folders) > 1:
        unique: dict[str, Path] = {}
        for path in paths:
            unique.setdefault(os.path.realpath(path), path)
        paths = list(unique.values())
    rows, bad = [], []
    for path in with_bar(paths, "reading runs"):
        try:
            rows.append(read(path, with_config))
        except InputError as error:
            bad.append(error)
    if not rows:
        raise bad[0]
    for why in bad:
        notices.add(f"left out: {why}")
    return rows


def best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The run with the best monitored value, never chosen by a test figure of another split.

    Raises:
        InputError: none has one, or they monitor different metrics.
    """
    monitored = {(row["monitor"], row["mode"]) for row in rows}
    if len(monitored) > 1:
        raise InputError(f"the runs monitor different metrics: {', '.join(sorted(m for m, _ in monitored))}")
    known = [row for row in rows if row["best_value"] is not None]
    if not known:
        raise InputError("no run has completed an epoch with a value of its monitored metric")
    sign = 1 if known[0]["mode"] == "max" else -1
    return max(known, key=lambda row: sign * row["best_value"])


def epochs(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of metrics.jsonl; what is lost of them is named (runner.terminal.notices)."""
    rows = Rows(path / "metrics.jsonl", "step")
    if (problem := rows.problem()) is not None:
        notices.add(problem)
    yield from rows.read()
