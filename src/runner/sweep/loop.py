"""The loop over a sweep's jobs, the same on every engine: room, retries, failures, and the stop."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from runner.processes import StopRequest
from runner.sweep.plan import Job

log = logging.getLogger("runner")

POLL_SECONDS = 0.25
SAVE_SECONDS = 120  # how long stopped jobs may take for their saves before the engine is closed all the same


class Engine(AbstractContextManager["Engine"], Protocol):
    """What differs: how jobs are started, seen to end, and stopped. `running` holds start()'s handles by job name."""

    at_once: int | None  # None: it has a queue of its own

    def start(self, jobs: Sequence[Job]) -> list[Any]:
        """A handle for each job."""
        ...

    def ended(self, running: Mapping[str, Any]) -> list[str]:
        """The jobs that have ended; waits for one, but no longer than POLL_SECONDS."""
        ...

    def outcome_of(self, handle: Any, job: Job, is_stopping: bool) -> dict[str, Any]:
        """How a job ended: state, and where it failed, error and kind ("death" is its worker's, not its own fault)."""
        ...

    def stop(self, running: Mapping[str, Any]) -> None:
        """Asks running jobs to save and end; called at each look until they have."""
        ...


class Loop:
    """Brings jobs to their ends on an engine.

    Args:
        retries: how often a job is resumed whose worker died.
        fail_fast: stop at the first failure.
        on_change: called with (job, outcome) when a job ends, and with nothing several times a second.
        stop: set by a signal; the running jobs are then asked to save.
    """

    def __init__(
        self, engine: Engine, retries: int, fail_fast: bool, on_change: Callable[..., None], stop: StopRequest
    ) -> None:
        self.engine, self.retries, self.fail_fast = engine, retries, fail_fast
        self.on_change, self.stop = on_change, stop

    def run(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Runs the jobs; returns the outcome of each that has ended, by name."""
        by_name, tries = {job.name: job for job in jobs}, {job.name: 0 for job in jobs}
        waiting, running, outcomes = list(jobs), dict[str, Any](), dict[str, dict[str, Any]]()
        deadline: float | None = None  # set when the jobs are being stopped
        with self.engine as engine:
            while waiting or running:
                if self.stop.signum is not None and deadline is None:
                    deadline = time.monotonic() + SAVE_SECONDS
                if deadline is not None:
                    waiting.clear()
                    engine.stop(running)
                    if time.monotonic() > deadline:
                        break
                room = len(waiting) if engine.at_once is None else engine.at_once - len(running)
                started, waiting = waiting[:room], waiting[room:]
                if started:
                    running |= {job.name: handle for job, handle in zip(started, engine.start(started), strict=True)}
                for name in engine.ended(running) if running else []:
                    job = by_name[name]
                    outcome = engine.outcome_of(running.pop(name), job, deadline is not None)
                    if outcome.get("kind") == "death" and tries[name] < self.retries and deadline is None:
                        tries[name] += 1
                        log.warning("%s: %s; it is resumed", name, outcome["error"])
                        waiting.insert(0, job)
                        continue
                    outcomes[name] = outcome
                    self.on_change(job, outcome)
                    if outcome["state"] == "failed" and self.fail_fast and deadline is None:
                        log.error("fail_fast: stopping the other jobs")
                        deadline = time.monotonic() + SAVE_SECONDS
                self.on_change()
        return outcomes
