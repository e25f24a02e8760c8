"""`runner show PATH`: a run, a sweep or a search on one screen, and the rest where it is asked for."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.cli.columns import width
from runner.cli.screen import NAME, Facts, commands, cut, figures, list_command, screen_height, time_of
from runner.config.defaults import defaults, differences, words
from runner.storage import labels, records
from runner.storage.choices import choices_of
from runner.storage.rows import axis_of
from runner.storage.run_dir import RunDir, no_run, resume_command
from runner.terminal.plot import plot, sparkline
from runner.terminal.printable import say
from runner.terminal.tables import cell, table
from runner.terminal.words import duration, plural
from runner.values import flatten

MOST_HEIGHT, AROUND = 8, 3  # of a plot, and its heading and axis
MORE = "more: --config, --epochs, --layers, --json"
STOPPED = ("interrupted", "killed", "failed")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner show",
        description="Shows what a run is, its result, what differs from the defaults, its best and last epoch and a"
        " plot of its monitored metric; or a sweep: what ran, the best settings, what failed.",
    )
    made.add_argument("path", type=Path, metavar="PATH", help="a folder that holds a run, a sweep or a search")
    made.add_argument("--config", action="store_true", help="the whole config, with the defaults where they differ")
    made.add_argument("--epochs", action="store_true", help="the row of each epoch")
    made.add_argument("--layers", action="store_true", help="the model's layers with their parameters")
    made.add_argument("--json", action="store_true", help="everything, as JSON")
    return made


def main(arguments: argparse.Namespace) -> int:
    path = arguments.path
    if (path / "sweep.json").exists() and not (path / "run.json").exists():
        from runner.cli.show_sweep import show_sweep

        return show_sweep(arguments)
    if path.is_dir() and not os.path.lexists(path / "run.json"):
        raise nothing_here(path)
    run_dir = RunDir(path)
    record = run_dir.read_run()
    changes, record = completed(run_dir, record)
    if arguments.json:
        say(*json.dumps({**record, "labels": changes}, indent=2, default=str).splitlines())
        return 0
    asked = [("config", config_lines), ("epochs", epoch_lines), ("layers", layer_lines)]
    parts = [make(run_dir, record) for name, make in asked if getattr(arguments, name)]
    if parts:
        say(*(line for number, part in enumerate(parts) for line in ([""] if number else []) + part))
    else:
        say(*lines(run_dir, record, changes, width()))
    return 0


def completed(run_dir: RunDir, record: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The changes of a run's labels, and its record with all that other files know: state, labels, choices."""
    changes = labels.history(run_dir.path)
    record |= {"state": records.state_of(run_dir, record), **labels.labelled(record, changes)}
    record["choices"] = record["choices"] or choices_of(run_dir.path)
    record["overrides"] = record["overrides"] or [word for word in record["command"] or [] if "=" in word]
    return changes, record


def nothing_here(path: Path) -> Exception:
    """That a folder holds no run, and how many lie below it."""
    error = no_run(path)
    try:
        below = len(records.find(path))
    except ValueError:
        return error
    return type(error)(f"{error}; {below} lie below it: {list_command(path)}")


def lines(run_dir: RunDir, record: Mapping[str, Any], changes: Sequence[Any], limit: int) -> list[str]:
    """The screen of one run."""
    facts, below = Facts(limit), Facts(limit)
    rows = list(records.epochs(run_dir.path))
    facts.add("state", state(record))
    facts.add("stopped", record.get("stopped"), lines=2)
    if record.get("error"):
        facts.add("error", record["error"], lines=2)
    if record["state"] in STOPPED and record.get("config_yaml", "") is not None:
        facts.copied("continue", resume_command(run_dir.path))
    facts.add("name", record.get("name"))
    facts.add("tags", record["tags"])
    facts.add("note", record["notes"])
    if changes:
        at = time_of(changes[-1]["at"])
        facts.add(
            "labels", f"{'archived; ' if record['archived'] else ''}changed {len(changes)} times since, last {at}"
        )
    if record["best_value"] is not None:
        better = {"max": "higher", "min": "lower"}.get(str(record["mode"]), "?")
        step = f", step {record['best_step']}" if records.is_by_steps(record) else ""
        facts.add(
            "result",
            f"{record['monitor']} {record['best_value']!r} in epoch {record['best_epoch']}{step} ({better} is better)",
        )
    for which, values in record["test"].items():
        facts.add(f"test ({which})", figures(values))
    facts.block(ends(record, limit))
    below.add("differs", differing(record), lines=3, empty="in nothing from the defaults")
    below.add("model", model(record))
    below.add("on", surroundings(record))
    below.add("files", files(run_dir))
    for event in record["resumed"][-1:]:
        times, at = plural(len(record["resumed"]), "time"), time_of(event["at"])
        below.add("resumed", f"{times}, last {at} after epoch {event['epoch']}, batch {event['batch']}")
    changes = [f"after epoch {e['epoch']}: {one}" for e in record["resumed"] for one in e.get("changes") or []]
    if changes:  # what came before was found with something else
        below.add("changed", "; ".join(changes), lines=3)
    for name, command in commands(run_dir.path, record):
        below.copied(name, command)
    above, rest = [*cut([str(run_dir.path)], limit), *facts.lines], [*below.lines, MORE]
    taken = sum(-(-max(1, len(line)) // limit) for line in [*above, *rest])
    return [*above, *curve(rows, str(record["monitor"]), limit, screen_height() - 1 - taken), *rest]


def curve(rows: Sequence[Mapping[str, Any]], monitor: str, limit: int, room: int) -> list[str]:
    """The monitored metric over the epochs, as large as there is room for."""
    values = [row.get(monitor) for row in rows]
    numbers = [value if isinstance(value, (int, float)) else None for value in values]
    if sum(value is not None for value in numbers) < 2:
        return []
    key = axis_of(rows)
    first, last = str(rows[0][key]), f"{key} {rows[-1][key]}"
    if room < AROUND + 2:
        return [f"{monitor:{NAME}} {sparkline(numbers, limit - max(NAME, len(monitor)) - 1)}"]
    return [monitor, *plot([("", numbers)], (first, last), min(limit, 76), min(MOST_HEIGHT, room - AROUND))]


def state(record: Mapping[str, Any]) -> str:
    done, epochs, seconds = record["epochs_done"], record["epochs"], record["seconds"]
    text = f"{record['state']}, {records.done_of(record)}"
    if seconds:
        text += f" in {duration(seconds)}"
    if record["state"] == "running" and done and seconds:
        text += f", about {duration(seconds / done * (epochs - done))} left"
    began, ended = time_of(record["started"]), time_of(record["ended"])
    text += f"; began {began}" if began else ""
    return text + (f", ended {ended}" if ended and record["state"] != "running" else "")


def ends(record: Mapping[str, Any], limit: int) -> list[str]:
    """The figures of the best and the last epoch, as a table where there is room for it."""
    unit, done = ("step", "steps_done") if records.is_by_steps(record) else ("epoch", "epochs_done")
    pairs = [("best", record[f"best_{unit}"], record["best"]), ("last", record[done], record["last"])]
    pairs = [pair for pair in pairs if pair[2]]
    names = list(dict.fromkeys(name for _, _, values in pairs for name in values))
    rows = [[which, epoch, *(values.get(name) for name in names)] for which, epoch, values in pairs]
    text = table(["", unit, *names], rows).splitlines() if rows else []
    if text and max(map(len, text)) > limit:
        return cut([f"{which} {unit} {place}: {figures(values)}" for which, place, values in pairs], limit)
    return text


def differing(record: Mapping[str, Any]) -> str:
    found = differences(record["config_source"], record["choices"], record["overrides"])
    return " ".join(words(found)) if record["config_source"] else "not known: the record is of an older version"


def model(record: Mapping[str, Any]) -> str:
    config = record["config"].get("model")
    target = config.get("_target_") if isinstance(config, dict) else None
    parameters, examples = record.get("parameters"), record["examples"]
    text = f"{cell(target)}, {number(parameters)} parameters"
    sizes = [f"{name} {number(size)}" for name, size in examples.items()]
    return text + (f"; examples: {', '.join(sizes)}" if sizes else "")


def number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else cell(value)


def surroundings(record: Mapping[str, Any]) -> str:
    versions = record["packages"]
    told = [
        record.get("device_name") or record["device"],
        record.get("precision"),
        f"{record['threads']} thread{'s' if record['threads'] != 1 else ''}",
    ]
    told += [f"torch {versions['torch']}"] if "torch" in versions else []
    told += [f"Python {record['python']}"] if record.get("python") else []
    told += [f"host {record['host']}"] if record.get("host") else []
    git = record["git"] or {}
    if git.get("commit"):
        told.append(f"commit {str(git['commit'])[:10]}{' and changes (git.diff)' if git.get('dirty') else ''}")
    return ", ".join(cell(item) for item in told if item is not None)


def files(run_dir: RunDir) -> str:
    found = sorted(path.name for path in run_dir.checkpoints.glob("*.pt")) if run_dir.checkpoints.is_dir() else []
    others = [path.name for path in (run_dir.log, run_dir.metrics.path, run_dir.steps.path) if path.exists()]
    shown = [f"checkpoints/{name}" for name in found[:4]] + ([f"{len(found) - 4} more"] if len(found) > 4 else [])
    return ", ".join([*shown, *others]) or "run.json alone"


def config_lines(_: RunDir, record: Mapping[str, Any]) -> list[str]:
    ours = defaults(record["choices"])[1]
    changed = differences(record["config_source"], record["choices"], record["overrides"])
    rows = []
    for key, value in flatten(record["config"]).items():
        default = (
            json.dumps(ours[key], default=str) if key in changed and key in ours else "*" if key in changed else ""
        )
        rows.append([key, json.dumps(value, default=str), default])
    return table(["config", "value", "default, where it differs"], rows).splitlines()


def epoch_lines(run_dir: RunDir, _: Mapping[str, Any]) -> list[str]:
    rows = list(records.epochs(run_dir.path))
    names = list(dict.fromkeys(name for row in rows for name in row))
    return (
        table(names, [[row.get(name) for name in names] for row in rows]).splitlines() if rows else ["no epoch is done"]
    )


def layer_lines(_: RunDir, record: Mapping[str, Any]) -> list[str]:
    rows = [row for row in record["layers"] if isinstance(row, dict)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return (
        table(names, [[row.get(name) for name in names] for row in rows]).splitlines()
        if rows
        else ["no layer is known"]
    )
