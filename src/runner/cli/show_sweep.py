"""A sweep or a search on one screen: what ran, the best settings by its summary's own figures, what failed."""

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.cli.columns import width
from runner.cli.screen import Facts, cut, list_command, time_of
from runner.errors import InputError
from runner.storage.files import read_regular
from runner.storage.record_schema import BadRecord, SweepRecord, read_record
from runner.storage.run_dir import RunDir, is_locked, resume_command
from runner.sweep import show, summary
from runner.sweep.settings import members
from runner.terminal import notices
from runner.terminal.printable import say
from runner.terminal.tables import Column, joined
from runner.terminal.words import LONGEST_CODE, typed

MOST_SETTINGS, MOST_FAILURES = 8, 3


def show_sweep(arguments: argparse.Namespace) -> int:
    place = arguments.path
    for flag in ("config", "epochs", "layers"):
        if getattr(arguments, flag):
            raise InputError(
                f"--{flag}: is of a run, and {place} holds a sweep; give one of its jobs: {list_command(place)}"
            )
    record = sweep_record(place)
    summed = summary.summarize(members(place))
    study = study_of(place)
    if arguments.json:
        whole = {"path": str(place), "sweep": record, "summary": summed, "study": study}
        say(*json.dumps(whole, indent=2, default=str).splitlines())
        return 0
    say(*lines(place, record, summed, study, width()))
    return 0


def sweep_record(place: Path) -> dict[str, Any]:
    """What sweep.json says; nothing where it is damaged: the jobs' own files say what they did."""
    try:
        return read_record(place / "sweep.json", SweepRecord)
    except BadRecord as error:
        notices.add(str(error))
        return {"swept": [], "command": None, "started": None}


def study_of(place: Path) -> dict[str, Any] | None:
    """What a search has left of its trials; None where it is none, or is not at its end."""
    try:
        found = json.loads(read_regular(place / "study.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def lines(
    place: Path, record: Mapping[str, Any], summed: Mapping[str, Any], study: Mapping[str, Any] | None, limit: int
) -> list[str]:
    facts = Facts(limit)
    rows = summed["settings"]
    is_search = study is not None or (place / "study.journal").exists()
    swept = ", ".join(map(str, record["swept"])) or "one setting"
    facts.add("search" if is_search else "sweep", f"over {swept}; begun {time_of(record['started'])}", lines=2)
    is_running = is_locked(RunDir(place))
    facts.add("state", state(rows, is_running))
    if not is_running and any(is_open(row) for row in rows):
        facts.copied("continue", resume_command(place))
    for line in searched(study):
        facts.add("trials", line, lines=2)
    facts.block(tables(summed, limit))
    failures = [failure for row in rows for failure in row["failures"]]
    for failure in failures[:MOST_FAILURES]:
        facts.add("failed", f"{failure['job']}: {failure['error']}", lines=2)
    if len(failures) > MOST_FAILURES:
        facts.add("", f"and {len(failures) - MOST_FAILURES} more")
    facts.copied("command", typed(record["command"] or (), LONGEST_CODE))
    return [*cut([str(place)], limit), *facts.lines, f"more: --json; each job: {list_command(place)}"]


def is_open(row: Mapping[str, Any]) -> bool:
    return any(row["seeds"][key] for key in ("interrupted", "killed", "running", "not_begun"))


def state(rows: Sequence[Mapping[str, Any]], is_running: bool) -> str:
    """`running; 8 jobs: 5 done, 1 failed, 2 not begun`."""
    totals = {key: sum(row["seeds"][key] for row in rows) for key in show.COUNTS}
    told = [f"{totals[key]} {key.replace('_', ' ')}" for key in show.COUNTS[1:] if totals[key]]
    jobs = totals["planned_in_all"]
    whole = "finished" if totals["done"] + totals["pruned"] == jobs else "ended"
    return f"{'running' if is_running else whole}; {jobs} job{'s' if jobs != 1 else ''}: {', '.join(told) or 'none'}"


def searched(study: Mapping[str, Any] | None) -> list[str]:
    """What a search that has ended says of its trials."""
    if study is None:
        return []
    history = [trial for trial in study.get("history") or [] if isinstance(trial, dict)]
    counted: dict[str, int] = {}
    for trial in history:
        counted[str(trial.get("state"))] = counted.get(str(trial.get("state")), 0) + 1
    told = [f"{count} {name}" for name, count in counted.items()]
    best, weights = study.get("best"), study.get("importances")
    if isinstance(best, dict) and isinstance(best.get("params"), dict):
        params = " ".join(f"{key}={value}" for key, value in best["params"].items())
        seeds = study.get("seeds")
        over = f" (the mean over seed={','.join(map(str, seeds))})" if isinstance(seeds, list) and seeds else ""
        told.append(f"best {best.get('value')}{over}: {params}")
    found = ["; ".join(told)] if told else []
    if isinstance(weights, dict) and weights:
        shares = [f"{key} {value:.2f}" for key, value in weights.items() if isinstance(value, (int, float))]
        whole = " of the whole trials" if counted.get("pruned") else ""
        found.append(f"importances{whole}: {', '.join(shares)}")
    return found


def tables(summed: Mapping[str, Any], limit: int, most: int | None = MOST_SETTINGS) -> list[str]:
    """The summary's tables with their best settings, and what must be known to read them, in the terminal's width.

    Args:
        most: settings in all tables together; None: all.
    """
    said: list[str] = []
    if len(summed["tables"]) > 1:
        said.append(
            f"{len(summed['tables'])} tables, not compared with each other: they differ in {', '.join(summed['apart'])}"
        )
    most = len(summed["settings"]) if most is None else max(2, most // max(1, len(summed["tables"])))
    for number, facts in enumerate(summed["tables"]):
        rows = [row for row in summed["settings"] if row["table"] == number]
        said += [""] if said else []
        said += wrapped([show.heading(facts, rows)], limit)
        said += settings_table(facts, rows[:most], limit)
        if len(rows) > most:
            said.append(f"and {len(rows) - most} more settings: summary.csv, or --json")
        said += wrapped([*show.survivors(rows[:most]), *show.comparison(facts, rows), *show.caveats(facts)], limit)
    return [*said, *wrapped(summed["notes"], limit)]


def settings_table(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], limit: int) -> list[str]:
    """As show.of_table, without the columns that there is no room for: the intervals go first."""
    columns = [
        Column("setting", [row["name"] + show.mark(row) for row in rows]),
        Column("seeds", [show.seeds(row) for row in rows]),
    ]
    intervals = []
    for name, is_wide in show.columns_of(facts, rows):
        cells = [show.shown_figures(row["metrics"].get(name), row["n"], is_wide) for row in rows]
        columns.append(Column(name if is_wide else "last epoch", [cell[0] for cell in cells]))
        if is_wide:
            columns.append(Column("95 % interval", [cell[1] for cell in cells]))
            intervals.append(columns[-1])
    droppable = [*reversed(intervals), *(column for column in reversed(columns[3:]) if column not in intervals)]
    while droppable and sum(column.width + 2 for column in columns) - 2 > limit:
        columns.remove(droppable.pop(0))
    return cut(joined(columns), limit)


def wrapped(lines: Sequence[str], limit: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, limit, subsequent_indent="  ") or [""]]
