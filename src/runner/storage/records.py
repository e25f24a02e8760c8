"""Runs as plain dicts, read from their folders' JSON: no torch, no YAML, a thousand in well under a second."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner import notices
from runner.errors import InputError
from runner.progress import shown
from runner.storage import labels, shapes
from runner.storage.choices import choices_of
from runner.storage.rows import Rows
from runner.storage.run_dir import RunDir, is_locked, no_run

def find(folder: Path) -> list[Path]:
    """The run directories at or below a folder, sorted by path. A run's own folder is not searched further.

    Raises:
        InputError: no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    found: list[Path] = []

    def unreadable(error: OSError) -> None:
        notices.add(f"{error.filename}: left out, cannot be read ({error.strerror})")

    for path, folders, files in os.walk(folder, onerror=unreadable):
        if "run.json" not in files and "metrics.jsonl" in files:
            notices.add(f"{path}: left out, its run.json is gone")
        if "run.json" in files or "run.json" in folders:
            found.append(Path(path))
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    if not found:
        raise InputError(f"{folder}: holds no run")
    return sorted(found)


def flatten(config: Any, key: str = "") -> dict[str, Any]:
    """{"optimizer.lr": 1.0, ...}; lists count as values."""
    if not isinstance(config, Mapping):
        return {key: config}
    flat: dict[str, Any] = {}
    flatten_into(flat, config, f"{key}." if key else "")
    return flat


def flatten_into(flat: dict[str, Any], config: Mapping[Any, Any], before: str) -> None:
    for name, value in config.items():
        if isinstance(value, Mapping):
            flatten_into(flat, value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value


def state_of(run_dir: RunDir, record: Mapping[str, Any]) -> str:
    """The record's state; a run that says "running" and whose lock nobody holds was killed."""
    state = str(record["state"])
    return "killed" if state == "running" and not is_locked(run_dir) else state


def read(path: Path) -> dict[str, Any]:
    """One run as a flat dict: path, name, state, tags, choices of groups, config keys, and the metrics of its best and
    last epoch.
    """
    run_dir = RunDir(path)
    try:
        record = shapes.read_shaped(run_dir.run_json)
    except FileNotFoundError as error:
        raise no_run(path) from error
    said = labels.labelled(record, labels.history(path))
    row: dict[str, Any] = {
        "path": str(path),
        "name": record["name"] or path.name,
        "state": state_of(run_dir, record),
        "tags": said["tags"],
        "notes": said["notes"],
        "archived": said["archived"],
        "epochs_done": record["epochs_done"],
        "epochs": record["epochs"],
        "monitor": record["monitor"],
        "mode": record["mode"],
        "modes": record["modes"],
        "best_epoch": record["best_epoch"],
        "best_value": record["best_value"],
        "seconds": record["seconds"],
        "started": record["started"],
        "error": record["error"],
        "threads": record["threads"],
    }
    choices = record["choices"] or choices_of(path)
    row |= {f"choices.{group}": choice for group, choice in choices.items() if not group.startswith("hydra/")}
    flatten_into(row, record["config"], "config.")
    for which in ("best", "last"):
        for key, value in record[which].items():
            row[f"{which}/{key}"] = value
        for key, value in record["test"].get(which, {}).items():
            row[f"test/{which}/{key}"] = value
    return row


def runs(*folders: Path) -> list[dict[str, Any]]:
    """Every run below the folders that can be read, as read() gives it; the others are named (runner.notices). A run
    that lies in several of them is there once.

    Raises:
        InputError: there is none, or none of them can be read.
    """
    found = {os.path.realpath(path): path for folder in reversed(folders) for path in reversed(find(folder))}
    rows, bad = [], []
    for path in shown(list(found.values())[::-1], "reading runs"):
        try:
            rows.append(read(path))
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
    """The rows of metrics.jsonl; what is lost of them is named (runner.notices)."""
    rows = Rows(path / "metrics.jsonl", "epoch")
    if (problem := rows.problem()) is not None:
        notices.add(problem)
    yield from rows.read()
