"""A sweep's jobs on a Ray cluster, or on a Ray of this machine for the length of the sweep.

Contract: Ray runs a job again whose worker died, up to `sweep.retries` times, and the job finds its own folder and
goes on there. The folders lie on a disk that every node sees under the same path.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.run_dir import RunDir, is_locked, now
from runner.sweep.job import died, work
from runner.sweep.plan import Job, record_death

log = logging.getLogger("runner")

POLL_SECONDS = 0.25
ANSWER_SECONDS = 25  # a cluster that does not answer within this time is not there
GIB = 2**30


def check_address(address: str | None) -> None:
    """Refuses an address where no Ray cluster answers.

    Raises:
        InputError: names the address.
    """
    if address in (None, "local", "auto"):
        return
    assert address is not None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    wrong = f"hydra.launcher.address={address}"
    if not host or not port.isdecimal():
        raise InputError(f"{wrong}: must be HOST:PORT, ray://HOST:PORT, auto, or null for a Ray of this machine")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS / 5).close()
    except OSError as error:
        raise InputError(f"{wrong}: no Ray cluster answers there ({error.strerror or error})") from error
    if address.startswith("ray://"):
        return  # a client's door has no status; ray.init asks it for a version, within 30 s
    words = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "status", "--address", address]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{wrong}: what listens there is no Ray cluster, or does not answer") from error
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise InputError(f"{wrong}: no Ray cluster answers there ({' '.join(last)})")


@contextmanager
def connected(address: str | None, settings: Mapping[str, Any]) -> Any:
    """Ray, with this process as its driver. Ray's own SIGTERM handler is put aside: ours asks the jobs to save."""
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"hydra.launcher.address={address}: {' '.join(str(error).split())}") from error
    if before is not None:
        signal.signal(signal.SIGTERM, before)
    try:
        yield ray
    finally:
        ray.shutdown()


def work_on_node(composed: Any, folder: str, threads: int, cwd: str) -> dict[str, Any]:
    """The job on a node: in the sweep's own working directory, where its relative paths and modules are."""
    if os.path.isdir(cwd):
        os.chdir(cwd)
        if cwd not in sys.path:
            sys.path.insert(0, cwd)
    run_dir = RunDir(Path(folder))
    if run_dir.run_json.exists() and run_dir.read_run()["state"] == "running" and not is_locked(run_dir):
        record_death(run_dir.path, {"at": now(), "exit_code": None, "error": "its Ray worker died"})
    return work(composed, folder, threads)


class RayPool:
    """Brings jobs to their ends, as runner.sweep.pool.Pool does.

    Args:
        resources: num_cpus, num_gpus and memory (bytes) of each job, as ray.remote takes them.
        settings: further arguments of ray.init.
    """

    def __init__(
        self,
        address: str | None,
        resources: Mapping[str, Any],
        settings: Mapping[str, Any],
        threads: int,
        retries: int,
        fail_fast: bool,
        on_change: Callable[..., None],
    ) -> None:
        self.address, self.resources, self.settings, self.threads = address, resources, settings, threads
        self.retries, self.fail_fast, self.on_change = retries, fail_fast, on_change
        self.stopped_by: int | None = None

    def run(self, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """Runs the jobs; returns each one's outcome by name."""
        outcomes: dict[str, dict[str, Any]] = {}
        with connected(self.address, self.settings) as ray:
            remote = ray.remote(max_retries=self.retries, **self.resources)(work_on_node)
            cwd, running = os.getcwd(), {}
            for job in jobs:
                running[remote.remote(job.composed, str(job.folder.absolute()), self.threads, cwd)] = job
            is_stopping = False
            while running:
                done, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
                self.on_change()
                if self.stopped_by is not None and not is_stopping:
                    is_stopping = True
                    self.stop(ray, running)
                for ref in done:
                    job = running.pop(ref)
                    outcomes[job.name] = self.outcome_of(ray, ref, job)
                    self.on_change(job, outcomes[job.name])
                    if outcomes[job.name]["state"] == "failed" and self.fail_fast and not is_stopping:
                        log.error("fail_fast: stopping the other jobs")
                        is_stopping = True
                        self.stop(ray, running)
        return outcomes

    def stop(self, ray: Any, running: Mapping[Any, Job]) -> None:
        """A cancelled job that runs gets a SIGINT, and saves."""
        for ref in running:
            ray.cancel(ref)

    def outcome_of(self, ray: Any, ref: Any, job: Job) -> dict[str, Any]:
        try:
            outcome: dict[str, Any] = ray.get(ref)
            return outcome
        except ray.exceptions.TaskCancelledError:
            return {"state": "interrupted", "error": "stopped"}
        except ray.exceptions.RayTaskError as error:  # what work() could not return
            cause = error.cause if getattr(error, "cause", None) is not None else error
            return {"state": "failed", "kind": "exception", "error": f"{type(cause).__name__}: {cause}"}
        except ray.exceptions.RayError as error:
            return died(job, f"its worker died ({type(error).__name__})")
