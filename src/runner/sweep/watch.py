"""What a sweep shows while it runs: a live line for each running job, and a plain line when one ends."""

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

from runner.errors import InputError
from runner.storage.records import is_pruned
from runner.storage.run_dir import RunDir, is_locked
from runner.sweep.plan import Job
from runner.terminal.printable import is_terminal, printable

log = logging.getLogger("runner")

REFRESH_SECONDS = 1.0


class Watch:
    """Reads the job folders' files; there is no other channel."""

    def __init__(self, jobs: Sequence[Job], done: int) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.ended, self.total, self.due = done, done + len(jobs), 0.0
        self.live: Any = None
        self.text: Any = None  # rich's, imported with it

    def __enter__(self) -> "Watch":
        if is_terminal(sys.stdout):
            from rich.live import Live
            from rich.text import Text

            self.text = Text

            self.live = Live(auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def change(self, job: Job | None = None, outcome: dict[str, Any] | None = None) -> None:
        if job is not None and outcome is not None:
            self.ended += 1
            del self.jobs[job.name]
            self.say(job, outcome)
        if self.live is not None and time.monotonic() >= self.due:
            self.due = time.monotonic() + REFRESH_SECONDS
            lines = [*self.running(), f"{self.ended} of {self.total} jobs ended"]
            # As Text, in which rich looks for no markup: a name may hold brackets.
            self.live.update(self.text("\n".join(map(printable, lines))), refresh=True)

    def say(self, job: Job, outcome: dict[str, Any]) -> None:
        place = f"[{self.ended}/{self.total}] {job.name}"
        if outcome["state"] == "failed":
            log.error("%s: failed: %s; log: %s", place, outcome["error"], job.folder / "runner.log")
            return
        record = RunDir(job.folder).read_run() if outcome["state"] == "done" else {}
        if record.get("best_value") is not None:
            best = f"{record['monitor']} {record['best_value']:.4f} in epoch {record['best_epoch']}"
            how = f"pruned after epoch {record['epochs_done']} of {record['epochs']}" if is_pruned(record) else "done"
            log.info("%s: %s, %s, %.1f s", place, how, best, record["seconds"])
        else:
            log.info("%s: %s", place, outcome["state"])

    def running(self) -> list[str]:
        lines = []
        for job in self.jobs.values():
            run_dir = RunDir(job.folder)
            if not run_dir.run_json.exists() or not is_locked(run_dir):
                continue
            try:
                record = run_dir.read_run()
            except InputError:
                continue
            done, epochs = record["epochs_done"], record["epochs"]
            value = record["last"].get(record["monitor"])
            left = record["seconds"] / done * (epochs - done) if done else None
            shown = f"{record['monitor']} {value:.4f}" if value is not None else ""
            rest = f"{left:.0f} s left" if left is not None else ""
            lines.append(f"{job.name}  epoch {done}/{epochs}  {shown}  {rest}")
        return lines
