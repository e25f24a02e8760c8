"""A sweep's jobs on a SLURM cluster, or in processes of this machine, by submitit.

Contract: submitit's signals stay submitit's. The one that announces a preemption or the end of the job's time
(SIGUSR2) first lets the run save in the middle of its epoch, and is then handed on: submitit puts the job into the
queue again, and it goes on exactly. SIGTERM is ignored, as submitit wants it. Jobs outlive the sweep's own process.
"""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config import admission
from runner.errors import InputError
from runner.sweep.loop import POLL_SECONDS
from runner.sweep.plan import Job
from runner.sweep.worker import died, share_memory, work

STOP_ON = (signal.SIGINT, signal.SIGUSR2)
LOOK_SECONDS = 60  # between two looks at SLURM's queue, at most; after a start they are 2 s apart, then more and more
# A job in any other state is still to run, or runs; after minutes SLURM forgets those that have ended.
ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
log = logging.getLogger("runner")


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


def queue_watcher() -> Any:
    """What submitit's jobs ask for their states, by squeue, which every SLURM has. submitit's own asks sacct: where
    nothing accounts for jobs a dead one would never be seen, and it takes a suspended one for one that has ended.
    """
    from submitit.slurm.slurm import SlurmInfoWatcher

    class Queue(SlurmInfoWatcher):  # type: ignore[misc]
        is_answered = True

        def update(self) -> None:
            watched = self._registered - self._finished
            try:
                states = queued() if watched else {}
                self._info_dict |= {job: {"State": states.get(job, "gone from the queue")} for job in watched}
                self._finished |= {job for job in watched if self.is_done(job, mode="cache")}
                self.is_answered = True
            except (OSError, subprocess.SubprocessError) as error:
                said = str(getattr(error, "stderr", None) or error).strip()
                if self.is_answered:  # said once, until it answers again
                    log.warning("squeue does not say which jobs run: %s; a dead job is not seen until it does", said)
                self.is_answered = False
            self._num_calls += 1
            self._last_status_check = time.time()

    return Queue(LOOK_SECONDS)


def queued() -> dict[str, str]:
    """The user's jobs that SLURM knows, each of an array by itself, with their states: RUNNING for all that may yet end
    with a result.
    """
    words = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    pairs = (line.strip().partition("|") for line in done.stdout.splitlines())
    return {job: state if state in ENDED else "RUNNING" for job, _, state in pairs}


class Submitted:
    """What submitit pickles, calls on a node, and asks for what to run after a preemption: the same again."""

    at_once: int | None = None  # jobs of the sweep on one machine, at most; None: not known

    def __init__(self, composed: Any, folder: str, threads: int, cwd: str, at_once: int | None = None) -> None:
        self.composed, self.folder, self.threads, self.cwd, self.at_once = composed, folder, threads, cwd, at_once
        self.admits = admission.carried()

    def __call__(self) -> dict[str, Any]:
        if os.path.isdir(self.cwd):
            os.chdir(self.cwd)
            sys.path.insert(0, self.cwd)
        fits = max(1, (os.cpu_count() or 1) // self.threads)  # SLURM puts no more of them on a node
        share_memory(fits if self.at_once is None else min(fits, self.at_once))
        requeue = signal.getsignal(signal.SIGUSR2)
        outcome = work(self.composed, self.folder, self.threads, STOP_ON, self.admits)
        if outcome["state"] == "interrupted" and outcome["signal"] == signal.SIGUSR2 and callable(requeue):
            requeue(signal.SIGUSR2, None)  # ends this process, after the job is in the queue again
        return outcome

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class SubmititEngine:
    """submitit's executor.

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
    ) -> None:
        self.cluster, self.at_once, self.threads = cluster, at_once, threads
        self._executor = make_executor(cluster, folder, parameters, max_timeouts)
        self._queue: Any = queue_watcher() if cluster == "slurm" else None
        self._cancelled: set[str] = set()
        self._most = 0  # jobs that were started together

    def __enter__(self) -> "SubmititEngine":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close: jobs outlive the sweep's process."""

    def start(self, jobs: Sequence[Job]) -> list[Any]:
        """submitit's jobs; in place of those that the cluster refuses, its error."""
        import submitit

        self._most = max(self._most, len(jobs))
        at_once = self._most if self.at_once is None else self.at_once
        here = os.getcwd()
        tasks = [Submitted(job.composed, str(job.folder.absolute()), self.threads, here, at_once) for job in jobs]
        try:
            if self.cluster == "local":
                return [self._executor.submit(task) for task in tasks]
            with self._executor.batch():  # one SLURM array
                made = [self._executor.submit(task) for task in tasks]
            for submitted in made:
                submitted.watcher = self._queue
                self._queue.register_job(submitted.job_id)
            return made
        except submitit.core.utils.FailedJobError as error:
            return [error] * len(jobs)

    def ended(self, running: Mapping[str, Any]) -> list[str]:
        time.sleep(POLL_SECONDS)
        return [name for name, submitted in running.items() if isinstance(submitted, Exception) or submitted.done()]

    def stop(self, running: Mapping[str, Any]) -> None:
        for name, submitted in running.items():
            if name not in self._cancelled and not isinstance(submitted, Exception):
                self._cancelled.add(name)
                submitted.cancel(check=False)

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
            state = f" ({submitted.state})" if self.cluster == "slurm" else ""
            return died(job, f"job {submitted.job_id} ended without a result{state}; see {submitted.paths.stderr}")
