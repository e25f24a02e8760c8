"""`runner watch PATH`: a run, a sweep or a folder of runs, live, from another terminal and over their files alone."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.cli.columns import width
from runner.cli.screen import Redrawn, cut
from runner.errors import InputError
from runner.storage import records
from runner.storage.rows import Rows
from runner.storage.run_dir import RunDir, is_locked, resume_command
from runner.terminal import printable
from runner.terminal.plot import sparkline
from runner.terminal.printable import say
from runner.terminal.words import duration

SPARK = 20  # columns of a running job's curve
MOST_FAILURES = 5
ENDED = ("done", "failed", "interrupted", "killed")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner watch",
        description="Shows what runs, with its progress and the time left, what failed, and the table so far, until"
        " nothing runs any more. On no terminal: a line for each run that begins or ends and for each epoch of a single"
        " run, and the whole picture at the end. Exit code 0: all is done; 1: something is not.",
    )
    made.add_argument("path", type=Path, metavar="PATH", help="a run's, a sweep's or a search's folder, or one of runs")
    made.add_argument("--once", action="store_true", help="shows it as it is now, and ends with 0")
    made.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="between two looks (default: 1)")
    return made


@dataclass
class Line:
    """One run's folder, as it was at the last look."""

    folder: Path
    state: str  # as records.state_of; "not begun", or "unreadable"
    record: dict[str, Any]
    done: float = 0.0  # epochs, with the part of the one that is running
    values: tuple[float | None, ...] = ()  # the monitored metric, by epoch

    @property
    def left(self) -> float | None:
        """Seconds that its epochs will still take, by those that it has done."""
        seconds, epochs = self.record.get("seconds"), self.record.get("epochs_done")
        if self.record.get("steps") and (steps := self.record["steps_done"]):
            return float(seconds / steps * (self.record["steps"] - steps)) if seconds else None
        return seconds / epochs * max(0.0, self.record["epochs"] - self.done) if seconds and epochs else None


class Live:
    """A folder that is looked at again and again; a run.json that has not changed is not read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_run = (path / "run.json").exists()
        self.is_sweep = not self.is_run and (path / "sweep.json").exists()
        self.known: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = {}
        self.table: tuple[int, list[str]] = (-1, [])
        if not self.is_run and not self.is_sweep:
            records.find(path)  # says what is wrong with a folder without runs

    def folders(self) -> list[Path]:
        if self.is_run:
            return [self.path]
        if not self.is_sweep:
            return records.find(self.path)
        from runner.sweep.plan import SET_ASIDE

        found = {path.parent for name in ("job.json", "run.json") for path in self.path.glob(f"*/{name}")}
        return sorted(path for path in found if not path.name.endswith(SET_ASIDE) and not path.is_symlink())

    def look(self) -> list[Line]:
        return [self.look_at(folder) for folder in self.folders()]

    def look_at(self, folder: Path) -> Line:
        run_dir = RunDir(folder)
        try:
            found = os.stat(run_dir.run_json)
            stamp = found.st_mtime_ns, found.st_ino
            if self.known.get(folder, (None,))[0] != stamp:
                self.known[folder] = stamp, run_dir.read_run()
        except FileNotFoundError:
            return Line(folder, "not begun", {})
        except (OSError, InputError) as error:
            return Line(folder, "unreadable", {"error": str(error)})
        record = self.known[folder][1]
        job = Line(folder, records.state_of(run_dir, record), record, record["epochs_done"])
        if job.state == "running":
            rows = Rows(folder / "metrics.jsonl", "step").read()
            values = [row.get(str(record["monitor"])) for row in rows]
            job.values = tuple(value if isinstance(value, (int, float)) else None for value in values)
            job.done = max(job.done, epochs_of(record, run_dir))
        return job

    def is_running(self, jobs: Sequence[Line]) -> bool:
        """Whether a process is at work: on a job, or on the sweep."""
        return any(job.state == "running" for job in jobs) or (self.is_sweep and is_locked(RunDir(self.path)))

    def summary(self, jobs: Sequence[Line]) -> list[str]:
        """The table so far, worked out anew when one more is done."""
        count = sum(job.state in ENDED for job in jobs)
        if self.is_sweep and any(job.state == "done" for job in jobs) and count != self.table[0]:
            from runner.cli.show_sweep import tables
            from runner.sweep.settings import members
            from runner.sweep.summary import summarize

            self.table = count, tables(summarize(members(self.path)), width())
        return self.table[1]


def epochs_of(record: Mapping[str, Any], run_dir: RunDir) -> float:
    """Epochs with the running one's part, by the last row of steps.jsonl; 0 where it does not say."""
    steps = run_dir.steps.read()
    per_epoch = (record["config"].get("derived") or {}).get("batches_per_epoch")
    if not steps or not isinstance(per_epoch, int) or per_epoch < 1:
        return 0.0
    return float(min(record["epochs"], steps[-1]["step"] / per_epoch))


def main(arguments: argparse.Namespace) -> int:
    if not arguments.every > 0:
        raise InputError(f"--every {arguments.every}: must be more than 0")
    watched = Live(arguments.path)
    if arguments.once:
        say(*picture(watched, watched.look(), None))
        return 0
    is_for_people = printable.is_terminal(sys.stdout)
    screen, before = Redrawn(), dict[Path, Any]()
    while True:
        jobs = watched.look()
        is_over = not watched.is_running(jobs)
        if is_for_people:
            screen.draw(picture(watched, jobs, None if is_over else shutil.get_terminal_size().lines - 1))
        else:
            news = list(changes(jobs, before)) if before or not is_over else []
            say(*news, flush=True) if news else None
        if is_over or printable.lost is not None:
            break
        before = {job.folder: moment(job) for job in jobs}
        time.sleep(arguments.every)
    if not is_for_people:
        say(*picture(watched, jobs, None))
    return 0 if all(job.state == "done" for job in jobs) else 1


def moment(job: Line) -> tuple[str, int]:
    return job.state, job.record.get("epochs_done", 0)


def changes(jobs: Sequence[Line], before: Mapping[Path, Any]) -> Iterator[str]:
    """A line for each job whose state has changed; of a single run also for each epoch."""
    for number, job in enumerate(jobs, 1):
        now_is, was = moment(job), before.get(job.folder)
        if was == now_is or (was is None and job.state == "not begun"):
            continue
        if was is None or was[0] != now_is[0] or len(jobs) == 1:
            yield f"[{number}/{len(jobs)}] {line(job)}"


def line(job: Line) -> str:
    """`NAME: running, epoch 3 of 14, val/accuracy 0.9721, about 5 s left`."""
    record = job.record
    if not record or job.state == "unreadable":
        return f"{job.folder.name}: {job.state}{': ' + record['error'] if record else ''}"
    text = f"{job.folder.name}: {job.state}, {records.done_of(record)}"
    last = record["last"].get(record["monitor"])
    if job.state == "running" and last is not None:
        text += f", {record['monitor']} {last:.4f}"
    if job.state != "running" and record["best_value"] is not None:
        text += f", {record['monitor']} {record['best_value']:.4f} in epoch {record['best_epoch']}"
    if record.get("stopped"):
        text += f"; stopped: {record['stopped']}"
    if job.state == "running" and job.left is not None:
        text += f", about {duration(job.left)} left"
    return text + (f": {record['error']}" if record["error"] and job.state == "failed" else "")


def picture(watched: Live, jobs: Sequence[Line], height: int | None) -> list[str]:
    """All that is to be seen, in so many lines at most; None: in as many as it takes."""
    if watched.is_run:
        return run_picture(jobs[0], height)
    limit = width()
    running = [job for job in jobs if job.state == "running"]
    failed = [job for job in jobs if job.state in ("failed", "unreadable", "killed")]
    head = [str(watched.path), summary_line(jobs, watched.is_running(jobs))]
    if (
        not watched.is_running(jobs)
        and watched.is_sweep
        and any(j.state in ("interrupted", "killed", "not begun") for j in jobs)
    ):
        head.append(f"nothing runs; continue with: {resume_command(watched.path)}")
    lines = [bar_line(job, limit) for job in running]
    bad = [line(job) for job in failed[:MOST_FAILURES]]
    bad += [f"and {len(failed) - MOST_FAILURES} more that failed"] if len(failed) > MOST_FAILURES else []
    whole = cut([*head, *lines, *bad, *watched.summary(jobs)], limit)
    return whole if height is None else whole[:height]


def run_picture(job: Line, height: int | None) -> list[str]:
    from runner.cli import show

    if not job.record or job.state == "unreadable":
        return [line(job)]
    run_dir, limit = RunDir(job.folder), width()
    changes, record = show.completed(run_dir, dict(job.record))
    whole = show.lines(run_dir, record, changes, limit)
    if job.state == "running":
        whole.insert(1, bar_line(job, limit))
    return whole if height is None else cut(whole, limit)[:height]  # a line of two rows could not be drawn over


def summary_line(jobs: Sequence[Line], is_running: bool) -> str:
    """`5 of 12 jobs done, 1 failed, 2 running, 4 not begun; about 3 min 05 s left`."""
    counted = {state: sum(job.state == state for job in jobs) for state in dict.fromkeys(job.state for job in jobs)}
    told = [f"{counted.pop('done', 0)} of {len(jobs)} done", *(f"{count} {state}" for state, count in counted.items())]
    left = time_left(jobs) if is_running else None
    return ", ".join(told) + (f"; about {duration(left)} left" if left is not None else "")


def time_left(jobs: Sequence[Line]) -> float | None:
    """Seconds until all are done, as long as those that are done took, and as many at once as now."""
    took = [job.record["seconds"] for job in jobs if job.state == "done" and job.record["seconds"]]
    running = [job for job in jobs if job.state == "running"]
    waiting = sum(job.state in ("not begun", "interrupted", "killed") for job in jobs)
    if not running or (waiting and not took):
        return None
    own = [job.left for job in running]
    known = [left if left is not None else sum(took) / len(took) for left in own if left is not None or took]
    if len(known) < len(running):
        return None
    return (sum(known) + (waiting * sum(took) / len(took) if took else 0.0)) / len(running)


def bar_line(job: Line, limit: int) -> str:
    """A running job: a bar of its epochs, the monitored metric and its curve, the time left."""
    record, epochs = job.record, job.record["epochs"]
    full = round(10 * job.done / epochs) if epochs else 0
    last = record["last"].get(record["monitor"])
    value = f"{record['monitor']} {last:.4f} {sparkline(job.values, SPARK)}" if last is not None else "first epoch"
    left = f", about {duration(job.left)} left" if job.left is not None else ""
    tail = f"  [{'#' * full:10}] {job.done:.1f}/{epochs}  {value}{left}"
    name = job.folder.name
    room = max(16, limit - len(tail))
    return (name if len(name) <= room else "..." + name[3 - room :]) + tail
