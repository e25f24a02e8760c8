"""Runs as plain dicts, read from their folders' JSON: no torch, no YAML, a thousand in well under a second."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner import notices
from runner.errors import InputError
from runner.storage.rows import Rows
from runner.storage.run_dir import RunDir, is_locked

FIXED = ("name", "state", "epochs", "best")  # columns that every listing has


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
    for name, value in config.items():
        flat |= flatten(value, f"{key}.{name}" if key else str(name))
    return flat


def state_of(run_dir: RunDir, record: Mapping[str, Any]) -> str:
    """The record's state; a run that says "running" and whose lock nobody holds was killed."""
    state = str(record["state"])
    return "killed" if state == "running" and not is_locked(run_dir) else state


def read(path: Path) -> dict[str, Any]:
    """One run as a flat dict: path, name, state, tags, config keys, and the metrics of its best and last epoch."""
    run_dir = RunDir(path)
    record = run_dir.read_run()
    row: dict[str, Any] = {
        "path": str(path),
        "name": record["name"] or path.name,
        "state": state_of(run_dir, record),
        "tags": record["tags"],
        "epochs_done": record["epochs_done"],
        "epochs": record["epochs"],
        "monitor": record["monitor"],
        "mode": record["mode"],
        "modes": record["modes"],
        "best_epoch": record["best_epoch"],
        "best_value": record["best_value"],
        "seconds": record["seconds"],
        "error": record["error"],
        "threads": record["threads"],
    }
    row |= {f"config.{key}": value for key, value in flatten(record["config"]).items()}
    for which in ("best", "last"):
        row |= {f"{which}/{key}": value for key, value in record[which].items()}
        row |= {f"test/{which}/{key}": value for key, value in record["test"].get(which, {}).items()}
    return row


def runs(folder: Path) -> list[dict[str, Any]]:
    """Every run below a folder that can be read, as read() gives it; the others are named (runner.notices).

    Raises:
        InputError: there is none, or none of them can be read.
    """
    rows, bad = [], []
    for path in find(folder):
        try:
            rows.append(read(path))
        except InputError as error:
            bad.append(error)
    if not rows:
        raise bad[0]
    for why in bad:
        notices.add(f"left out: {why}")
    return rows


def varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The config keys in which the runs differ, without what is worked out from others."""
    keys = {key: None for row in rows for key in row if key.startswith("config.")}
    ours = ("config.derived.", "config.name", "config.tags", "config.notes", "config.quiet", "config.sweep")
    return [
        key for key in keys if not key.startswith(ours) and any(row.get(key) != rows[0].get(key) for row in rows[1:])
    ]


def value_of(row: Mapping[str, Any], key: str) -> Any:
    """A column by the name a user gives it: a config key, a metric of the best epoch, or a column's own name."""
    for name in (f"config.{key}", f"best/{key}", key):
        if name in row:
            return row[name]
    return None


def has(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(name in row for row in rows for name in (f"config.{key}", f"best/{key}", key))


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names that value_of takes, for an error's choices: metrics first, then config keys."""
    names = {key.removeprefix("best/"): None for row in rows for key in row if key.startswith("best/")}
    names |= {key.removeprefix("config."): None for row in rows for key in row if key.startswith("config.")}
    return list(names)


def where(rows: list[dict[str, Any]], conditions: Sequence[str]) -> list[dict[str, Any]]:
    """The rows that fulfil every KEY=VALUE; values are compared as JSON, else as text.

    Raises:
        InputError: a condition without "=", or on a key that no run has.
    """
    for condition in conditions:
        key, equals, text = condition.partition("=")
        if not equals:
            raise InputError(f"--where {condition}: must be KEY=VALUE")
        if not has(rows, key):
            raise InputError(f"--where {condition}: no run has the key {key!r}; choices: {', '.join(columns(rows))}")
        try:
            wanted = json.loads(text)
        except ValueError:
            wanted = text
        rows = [row for row in rows if value_of(row, key) in (wanted, text)]
    return rows


def ordered(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Sorted by a key, the best first: a metric that is better low rises, other numbers fall."""
    if not has(rows, key):
        raise InputError(f"--sort {key}: no run has this key; choices: {', '.join(columns(rows))}")
    known = [row for row in rows if value_of(row, key) is not None]
    numbers = all(isinstance(value_of(row, key), (int, float)) for row in known)
    rising = not numbers or any(mode_of(row, key) == "min" for row in known)
    if not numbers:
        known.sort(key=lambda row: str(value_of(row, key)))
    else:
        known.sort(key=lambda row: value_of(row, key), reverse=not rising)
    return known + [row for row in rows if value_of(row, key) is None]


def mode_of(row: Mapping[str, Any], key: str) -> str:
    """Which way a key of a run is better, as run.json says it; an older one knows of what it monitored only."""
    if row["monitor"] == key:
        return str(row["mode"])
    said = [mode for name, mode in row["modes"].items() if key == name or key.endswith(f"/{name}")]
    return str(said[0]) if said else "min" if key.endswith("loss") else "max"


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
