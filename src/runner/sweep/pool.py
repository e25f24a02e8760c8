"""Worker processes for a sweep's jobs: forked from a server that has imported torch, one job at a time each.

Contract: a worker's death costs its job a retry and no other job anything; when the parent dies, however it dies,
its workers end at once; a stop asks every running job to save before the workers end.
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.run_dir import RunDir, holder
from runner.sweep.job import died, work
from runner.sweep.plan import Job

log = logging.getLogger("runner")

PRELOAD = ["runner.sweep.preload"]
SAVE_SECONDS = 120  # how long a stopped job may take for its save before its worker is ended all the same
POLL_SECONDS = 0.25


def visible_gpus() -> list[str]:
    """The CUDA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; without waking CUDA."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name.strip() and name.strip() != "-1"]
    return [str(i) for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(device_type: str, jobs_per_gpu: int) -> tuple[int, list[str]]:
    """(jobs at once, the GPUs that they share)."""
    gpus = visible_gpus() if device_type in ("auto", "cuda") else []
    return (len(gpus) * jobs_per_gpu, gpus) if gpus else (cores(), [])


def start_worker(lock_folder: str, gpus: Sequence[str], jobs_per_gpu: int) -> None:
    """Runs once in each worker: its own process group, the watch on the parent, and its GPU."""
    os.setpgrp()  # a Ctrl-C in the terminal reaches the parent, which then asks the jobs
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # loaders fork too
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = claim_gpu(Path(lock_folder), gpus, jobs_per_gpu)


_gpu_locks: list[int] = []  # open for the worker's life: the kernel frees a dead worker's place


def claim_gpu(folder: Path, gpus: Sequence[str], jobs_per_gpu: int) -> str:
    import fcntl

    for slot in range(jobs_per_gpu):
        for gpu in gpus:
            descriptor = os.open(folder / f".gpu-{gpu}-{slot}.lock", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                continue
            _gpu_locks.append(descriptor)
            return gpu
    raise RuntimeError("no GPU is free for another worker")


class Pool:
    """Brings jobs to their ends.

    Args:
        place: the sweep's folder.
        retries: how often a job is resumed whose worker died.
        fail_fast: stop at the first failure.
        on_change: called with (job, outcome) when a job ends, and with nothing several times a second.
    """

    def __init__(
        self,
        place: Path,
        jobs: int,
        gpus: Sequence[str],
        jobs_per_gpu: int,
        retries: int,
        fail_fast: bool,
        on_change: Callable[..., None],
    ) -> None:
        self.place, self.jobs, self.retries, self.fail_fast = place, jobs, retries, fail_fast
        self.gpus, self.jobs_per_gpu, self.on_change = gpus, jobs_per_gpu, on_change
        self.stopped_by: int | None = None

    def run(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Runs the jobs; returns each one's outcome by name: state, and error, kind, exit_code where it failed."""
        from pebble import ProcessPool

        outcomes: dict[str, dict[str, Any]] = {}
        tries = {job.name: 0 for job in jobs}
        workers = max(1, min(self.jobs, len(jobs)))
        threads = max(1, cores() // workers)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()  # from this thread, whose death is the process's, and not from the pool's
        arguments = (str(self.place), list(self.gpus), self.jobs_per_gpu)
        pool = ProcessPool(workers, initializer=start_worker, initargs=arguments, context=context)
        running: dict[Future[dict[str, Any]], Job] = {}
        try:
            for job in jobs:
                running[pool.schedule(work, args=(job.composed, str(job.folder), threads))] = job
            while running:
                done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                self.on_change()
                if self.stopped_by is not None:
                    self.save_all(running, outcomes)
                    break
                for future in done:
                    job = running.pop(future)
                    outcome = self.outcome_of(future, job)
                    if outcome.get("kind") == "death" and tries[job.name] < self.retries:
                        tries[job.name] += 1
                        log.warning("%s: %s; it is resumed", job.name, outcome["error"])
                        running[pool.schedule(work, args=(job.composed, str(job.folder), threads))] = job
                        continue
                    outcomes[job.name] = outcome
                    self.on_change(job, outcome)
                    if outcome["state"] == "failed" and self.fail_fast:
                        log.error("fail_fast: stopping the other jobs")
                        self.save_all(running, outcomes)
                        running.clear()
                        break
        finally:
            pool.stop()  # type: ignore[no-untyped-call]
            pool.join()
        return outcomes

    def outcome_of(self, future: "Future[dict[str, Any]]", job: Job) -> dict[str, Any]:
        """A job's outcome; a worker's death is recorded in its folder.

        Raises:
            InputError: no worker can start at all.
        """
        from concurrent.futures.process import BrokenProcessPool

        from pebble import ProcessExpired

        try:
            return future.result()
        except ProcessExpired as death:
            name = f" ({signal.Signals(-death.exitcode).name})" if death.exitcode < 0 else ""
            error = f"its worker died with exit code {death.exitcode}{name}"
            return died(job, error, exit_code=death.exitcode)
        except (BrokenProcessPool, RuntimeError) as broken:
            raise InputError(f"no worker can start: {broken}") from broken

    def save_all(self, running: "dict[Future[dict[str, Any]], Job]", outcomes: dict[str, dict[str, Any]]) -> None:
        """Asks every running job to save, and waits for it."""
        for future in list(running):
            future.cancel() if not future.running() else None
        active = [future for future in running if future.running()]
        asked: set[int] = set()
        deadline = time.monotonic() + SAVE_SECONDS
        while active and time.monotonic() < deadline:
            for future in active:  # a job that has just begun holds its folder a moment later
                pid = holder(RunDir(running[future].folder))
                if pid is not None and pid not in asked:
                    asked.add(pid)
                    os.kill(pid, signal.SIGTERM)
            done, _ = wait(active, timeout=POLL_SECONDS)
            for future in done:
                job = running[future]
                outcomes[job.name] = self.outcome_of(future, job)
                self.on_change(job, outcomes[job.name])
            active = [future for future in active if future not in done]
