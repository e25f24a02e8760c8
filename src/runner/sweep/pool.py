"""Worker processes for a sweep's jobs: forked from a server that has imported torch, one job at a time each.

Contract: a worker's death costs its job a retry and no other job anything; when the parent dies, however it dies,
its workers end at once; a stop asks every running job to save before the workers end.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from runner.config import admission
from runner.errors import InputError
from runner.processes import allow_children
from runner.storage.run_dir import RunDir, holder
from runner.sweep.loop import POLL_SECONDS
from runner.sweep.plan import Job
from runner.sweep.worker import died, share_memory, work

PRELOAD = ["runner.sweep.preload"]


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


def start_worker(lock_folder: str, at_once: int, gpus: Sequence[str], jobs_per_gpu: int) -> None:
    """Runs once in each worker: its own process group, the watch on the parent, its share of memory, and its GPU."""
    multiprocessing.set_start_method(None, force=True)  # of the loader's workers: as in a run of its own
    os.setpgrp()  # a Ctrl-C in the terminal reaches the parent, which then asks the jobs
    allow_children()  # loaders fork too
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    share_memory(at_once, min(jobs_per_gpu, -(-at_once // len(gpus))) if gpus else 1)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = claim_gpu(Path(lock_folder), gpus, jobs_per_gpu)


_gpu_locks: list[int] = []  # open for the worker's life: the kernel frees a dead worker's place


def claim_gpu(folder: Path, gpus: Sequence[str], jobs_per_gpu: int) -> str:
    import fcntl

    for slot in range(jobs_per_gpu):
        for gpu in gpus:
            descriptor = os.open(folder / f".gpu-{gpu}-{slot}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                continue
            _gpu_locks.append(descriptor)
            return gpu
    raise RuntimeError("no GPU is free for another worker")


class LocalEngine:
    """Worker processes of this machine, one job at a time each.

    Args:
        place: the sweep's folder.
        at_once: the number of workers.
    """

    def __init__(self, place: Path, at_once: int, gpus: Sequence[str], jobs_per_gpu: int) -> None:
        self.place, self.at_once, self.gpus, self.jobs_per_gpu = place, at_once, gpus, jobs_per_gpu
        self.threads = max(1, cores() // at_once)
        self._folders: dict[str, Path] = {}
        self._asked: set[int] = set()  # processes that were asked to save

    def __enter__(self) -> "LocalEngine":
        from pebble import ProcessPool

        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        forkserver.ensure_running()  # from this thread, whose death is the process's, and not from the pool's
        arguments = (str(self.place), self.at_once, list(self.gpus), self.jobs_per_gpu)
        self._pool = ProcessPool(self.at_once, initializer=start_worker, initargs=arguments, context=context)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    def start(self, jobs: Sequence[Job]) -> "list[Future[dict[str, Any]]]":
        self._folders |= {job.name: job.folder for job in jobs}
        more = {"admits": admission.carried()}
        return [self._pool.schedule(work, args=(j.composed, str(j.folder), self.threads), kwargs=more) for j in jobs]

    def ended(self, running: "Mapping[str, Future[dict[str, Any]]]") -> list[str]:
        done, _ = wait(running.values(), timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        return [name for name, future in running.items() if future in done]

    def outcome_of(self, future: "Future[dict[str, Any]]", job: Job, is_stopping: bool) -> dict[str, Any]:
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

    def stop(self, running: "Mapping[str, Future[dict[str, Any]]]") -> None:
        for name in running:  # a job that has just begun holds its folder a moment later
            pid = holder(RunDir(self._folders[name]))
            if pid is not None and pid not in self._asked:
                self._asked.add(pid)
                os.kill(pid, signal.SIGTERM)
