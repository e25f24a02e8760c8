"""What a report is of: one run, one sweep, or a table of runs from anywhere; and everything that their files say."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage import labels, records
from runner.storage.inside import refuse_links
from runner.storage.record_schema import BadRecord, JobRecord, SweepRecord, read_record
from runner.storage.run_dir import OF_SWEEPS, RunDir, is_locked
from runner.sweep.settings import Member, members
from runner.terminal import notices


@dataclass
class Run:
    """One run's folder, read once."""

    path: Path
    name: str
    state: str
    record: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl
    labels: dict[str, Any] = field(default_factory=dict)  # in what it differs from the others
    error: str | None = None

    @property
    def is_running(self) -> bool:
        return self.state == "running"


@dataclass
class Found:
    """What PATH... named. `kind` is run, sweep or runs."""

    kind: str
    place: Path
    runs: list[Run]
    members: list[Member] = field(default_factory=list)  # of a sweep: its jobs, those that never began too
    is_running: bool = False


def gather(paths: Sequence[Path]) -> Found:
    """Reads what the paths name; runs that cannot be read are named (runner.terminal.notices).

    Raises:
        InputError: there is nothing there, or nothing that can be read.
    """
    first = paths[0]
    if len(paths) == 1 and (first / "run.json").exists():
        run = read_run(first)
        return Found("run", first, [run], is_running=run.is_running)
    if len(paths) == 1 and is_sweep(first):
        return read_sweep(first)
    runs, bad = [], []
    for folder in dict.fromkeys(path for given in paths for path in records.find(given)):
        try:
            runs.append(read_run(folder))
        except InputError as error:
            bad.append(error)
    if not runs:
        raise bad[0]
    for why in bad:
        notices.add(f"left out: {why}")
    if kept := [run for run in runs if not run.record["archived"]]:  # as ls does; of a sweep its summary counts all
        if len(kept) < len(runs):
            notices.add(f"archived runs, left out: {len(runs) - len(kept)}")
        runs = kept
    shared = os.path.commonpath([run.path.absolute().parent for run in runs])
    for run in runs:
        run.name = os.path.relpath(run.path, shared)
    return Found("runs", first, runs, is_running=any(run.is_running for run in runs))


def is_sweep(place: Path) -> bool:
    return (place / "sweep.json").exists() or next(place.glob("*/job.json"), None) is not None


def read_run(path: Path) -> Run:
    run_dir = RunDir(path)
    run_dir.refuse_links()
    record = run_dir.read_run()
    record |= labels.labelled(record, labels.history(path))
    rows = list(records.epochs(path))
    state = records.state_of(run_dir, record)
    if state == "failed" and record.get("failure") == "diverged":
        state = "diverged"
    return Run(path, path.name, state, record, rows, error=record.get("error"))


def read_sweep(place: Path) -> Found:
    refuse_links(place, OF_SWEEPS)
    found = members(place)
    if not found:
        raise InputError(f"{place}: holds no job of a sweep")
    runs = []
    for member in found:
        path = place / member.name
        RunDir(path).refuse_links()
        rows = list(records.epochs(path)) if member.record is not None else []
        record = dict(member.record or {})
        record |= labels.labelled(record, labels.history(path))
        run = Run(path, member.name, member.state, record, rows, error=member.error)
        if member.is_diverged:
            run.state = "diverged"
        runs.append(run)
    is_running = is_locked(RunDir(place)) or any(run.is_running for run in runs)
    return Found("sweep", place, runs, found, is_running)


def deaths_of(path: Path) -> list[dict[str, Any]]:
    """The deaths of a job's workers, where the folder is a sweep's."""
    try:
        return read_record(path / "job.json", JobRecord)["deaths"]  # type: ignore[no-any-return]
    except (OSError, BadRecord):
        return []


def sweep_record(place: Path) -> dict[str, Any] | None:
    """sweep.json, where there is one that can be read."""
    try:
        refuse_links(place, OF_SWEEPS)
        return read_record(place / "sweep.json", SweepRecord)
    except (OSError, InputError):
        return None
