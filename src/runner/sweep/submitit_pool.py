"""A sweep's jobs on a SLURM cluster, or in processes of this machine, by submitit.

Contract: submitit's signals stay submitit's. The one that announces a preemption or the end of the job's time
(SIGUSR2) first lets the run save in the middle of its epoch, and is then handed on: submitit puts the job into the
queue again, and it goes on exactly. SIGTERM is ignored, as submitit wants it. Jobs outlive the sweep's own process.
"""

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.sweep.job import died, work
from runner.sweep.plan import Job

log = logging.getLogger("runner")

POLL_SECONDS = 0.25
STOP_ON = (signal.SIGINT, signal.SIGUSR2)


def make_executor(cluster: str, folder: Path, parameters: Mapping[str, Any], max_timeouts: int) -> Any:
    """submitit's executor.

    Raises:
        InputError: it does not take the parameters.
    """
    import submitit

    try:
        made = submitit.AutoExecutor(folder / "%j", cluster=cluster, **{f"{cluster}_max_num_timeout": max_timeouts})
        made.update_parameters(**parameters)
    except (RuntimeError, ValueError, TypeError, NameError, AssertionError) as error:
        raise InputError(f"hydra.launcher: submitit refuses these settings; {' '.join(str(error).split())}") from error
    return made


class Task:
    """What submitit pickles, calls on a node, and asks for what to run after a preemption: the same again."""

    def __init__(self, composed: Any, folder: str, threads: int, cwd: str) -> None:
        self.composed, self.folder, self.threads, self.cwd = composed, folder, threads, cwd

    def __call__(self) -> dict[str, Any]:
        if os.path.isdir(self.cwd):
            os.chdir(self.cwd)
            sys.path.insert(0, self.cwd)
        requeue = signal.getsignal(signal.SIGUSR2)
        outcome = work(self.composed, self.folder, self.threads, STOP_ON)
        if outcome["state"] == "interrupted" and outcome["signal"] == signal.SIGUSR2 and callable(requeue):
            requeue(signal.SIGUSR2, None)  # ends this process, after the job is in the queue again
        return outcome

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class SubmititPool:
    """Brings jobs to their ends, as runner.sweep.pool.Pool does.

    Args:
        cluster: "slurm" or "local".
        folder: where submitit keeps its own files.
        at_once: how many jobs are given to the cluster at the same time; None: all.
        parameters: of submitit's executor.update_parameters.
    """

    def __init__(
        self,
        cluster: str,
        folder: Path,
        at_once: int | None,
        parameters: Mapping[str, Any],
        max_timeouts: int,
        threads: int,
        retries: int,
        fail_fast: bool,
        on_change: Callable[..., None],
    ) -> None:
        self.cluster, self.folder, self.at_once, self.parameters = cluster, folder, at_once, parameters
        self.max_timeouts, self.threads = max_timeouts, threads
        self.retries, self.fail_fast, self.on_change = retries, fail_fast, on_change
        self.stopped_by: int | None = None

    def run(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Runs the jobs; returns each one's outcome by name."""
        import submitit

        executor = self.executor()
        outcomes: dict[str, dict[str, Any]] = {}
        waiting, tries = list(jobs), {job.name: 0 for job in jobs}
        running: dict[str, Any] = {}
        by_name, is_stopping = {job.name: job for job in jobs}, False
        while waiting or running:
            if self.stopped_by is not None and not is_stopping:
                is_stopping = True
                self.stop(running)
            if is_stopping:
                waiting.clear()
            room = len(waiting) if self.at_once is None else min(len(waiting), self.at_once - len(running))
            if room > 0:
                started, waiting = waiting[:room], waiting[room:]
                try:
                    submitted = self.submit(executor, started)
                except submitit.core.utils.FailedJobError as error:  # the cluster refused it
                    submitted = [error] * len(started)
                running |= {job.name: task for job, task in zip(started, submitted, strict=True)}
            time.sleep(POLL_SECONDS)
            self.on_change()
            for name in [name for name, task in running.items() if isinstance(task, Exception) or task.done()]:
                job = by_name[name]
                outcome = self.outcome_of(running.pop(name), job, is_stopping)
                if outcome.get("kind") == "death" and tries[name] < self.retries and not is_stopping:
                    tries[name] += 1
                    log.warning("%s: %s; it is resumed", name, outcome["error"])
                    waiting.insert(0, job)
                    continue
                outcomes[name] = outcome
                self.on_change(job, outcome)
                if outcome["state"] == "failed" and self.fail_fast and not is_stopping:
                    log.error("fail_fast: stopping the other jobs")
                    is_stopping = True
                    self.stop(running)
        return outcomes

    def stop(self, running: Mapping[str, Any]) -> None:
        for submitted in running.values():
            if not isinstance(submitted, Exception):
                submitted.cancel(check=False)

    def executor(self) -> Any:
        return make_executor(self.cluster, self.folder, self.parameters, self.max_timeouts)

    def submit(self, executor: Any, jobs: Sequence[Job]) -> list[Any]:
        tasks = [Task(job.composed, str(job.folder.absolute()), self.threads, os.getcwd()) for job in jobs]
        if self.cluster == "local":
            return [executor.submit(task) for task in tasks]
        with executor.batch():  # one SLURM array
            return [executor.submit(task) for task in tasks]

    def outcome_of(self, submitted: Any, job: Job, is_stopping: bool) -> dict[str, Any]:
        import submitit

        if isinstance(submitted, Exception):
            return {"state": "failed", "kind": "exception", "error": f"was not submitted: {submitted}"}
        if is_stopping and not submitted.paths.result_pickle.exists():
            return {"state": "interrupted", "error": "stopped"}
        try:
            outcome: dict[str, Any] = submitted.result()
            return outcome
        except submitit.core.utils.FailedJobError as error:  # what work() could not return
            named = [line for line in str(error).splitlines() if re.match(r"[\w.]+: ", line)]
            return {"state": "failed", "kind": "exception", "error": named[-1] if named else str(error)}
        except submitit.core.utils.UncompletedJobError:
            return died(job, f"job {submitted.job_id} ended without a result; see {submitted.paths.stderr}")
