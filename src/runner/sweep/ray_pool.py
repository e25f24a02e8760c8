"""A sweep's jobs on a Ray cluster, or on a Ray of this machine for the length of the sweep.

Contract: a job whose worker died is given to Ray again, up to `sweep.retries` times, and finds its own folder and goes
on there. (Ray's own retries are off: it repeats a job that ran out of memory without a bound.) The folders lie on a
disk that every node sees under the same path.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from runner.config import admission
from runner.errors import InputError
from runner.sweep.loop import POLL_SECONDS
from runner.sweep.plan import Job
from runner.sweep.pool import cores, visible_gpus
from runner.sweep.worker import died, share_memory, work

ANSWER_SECONDS = 25  # a cluster that does not answer within this time is not there
LOOK = """
import json, sys, ray
ray.init(log_to_driver=False, **json.loads(sys.argv[1]))
print(json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""


def check_cluster(address: str | None, settings: Mapping[str, Any], cpus: int, gpus: float) -> None:
    """Refuses an address where no Ray cluster answers, and a job that none of its nodes could ever hold.

    Raises:
        InputError: names the key.
    """
    wrong = f"hydra.launcher.address={address}"
    if address in (None, "local"):
        nodes = [{"CPU": settings.get("num_cpus", cores()), "GPU": settings.get("num_gpus", len(visible_gpus()))}]
    else:
        assert address is not None
        if address != "auto":
            check_port(address, wrong)
        words = [sys.executable, "-c", LOOK, json.dumps({"address": address, **settings})]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{wrong}: what listens there is no Ray cluster, or does not answer") from error
        if done.returncode:
            last = " ".join(done.stderr.strip().splitlines()[-1:])
            raise InputError(f"{wrong}: no Ray cluster answers there, or not so ({last})")
        nodes = json.loads(done.stdout.strip().splitlines()[-1])
    for key, name, wanted in (("cpus", "CPU", cpus), ("gpus", "GPU", gpus)):
        most = max((node.get(name, 0) for node in nodes), default=0)
        if wanted > most:
            raise InputError(f"hydra.launcher.{key}={wanted}: no node has so many for a job; the most is {most:g}")


def check_port(address: str, wrong: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"{wrong}: must be HOST:PORT, ray://HOST:PORT, auto, or null for a Ray of this machine")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS / 5).close()
    except OSError as error:
        raise InputError(f"{wrong}: no Ray cluster answers there ({error.strerror or error})") from error


def work_on_node(
    composed: Any,
    folder: str,
    threads: int,
    cwd: str,
    at_once: int = 1,
    gpus: float = 0,
    admits: admission.Carried = admission.NOTHING,
) -> dict[str, Any]:
    """The job on a node: in the sweep's own working directory, where its relative paths and modules are.

    Args:
        at_once: jobs of the sweep that were given to Ray together; gpus: of each job.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    cpus = next((node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == here), 1)
    share_memory(min(at_once, int(cpus // threads)), int(1 / gpus) if 0 < gpus < 1 else 1)
    if os.path.isdir(cwd):
        os.chdir(cwd)
        if cwd not in sys.path:
            sys.path.insert(0, cwd)
    return work(composed, folder, threads, admits=admits)


class RayEngine:
    """Ray, for the length of a sweep.

    Args:
        resources: num_cpus, num_gpus and memory (bytes) of each job, as ray.remote takes them.
        settings: further arguments of ray.init.
    """

    at_once = None

    def __init__(
        self, address: str | None, resources: Mapping[str, Any], settings: Mapping[str, Any], threads: int
    ) -> None:
        self.address, self.resources, self.settings, self.threads = address, resources, settings, threads
        self._cancelled: set[str] = set()
        self._most = 0  # jobs that were started together

    def __enter__(self) -> "RayEngine":
        """Connects, with this process as the driver. Ray's own SIGTERM handler is put aside: ours asks jobs to save."""
        import ray

        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(self.address or "local", log_to_driver=False, logging_level=logging.ERROR, **self.settings)
        except (ConnectionError, TimeoutError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"hydra.launcher.address={self.address}: {' '.join(str(error).split())}") from error
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        self._ray = ray
        self._remote = ray.remote(max_retries=0, **self.resources)(work_on_node)
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def start(self, jobs: Sequence[Job]) -> list[Any]:
        self._most = max(self._most, len(jobs))
        shared = (self.threads, os.getcwd(), self._most, float(self.resources.get("num_gpus", 0)), admission.carried())
        return [self._remote.remote(job.composed, str(job.folder.absolute()), *shared) for job in jobs]

    def ended(self, running: Mapping[str, Any]) -> list[str]:
        done, _ = self._ray.wait(list(running.values()), num_returns=1, timeout=POLL_SECONDS)
        return [name for name, ref in running.items() if ref in done]

    def stop(self, running: Mapping[str, Any]) -> None:
        """A cancelled job that runs gets a SIGINT, and saves."""
        for name in [name for name in running if name not in self._cancelled]:
            self._cancelled.add(name)
            self._ray.cancel(running[name])

    def outcome_of(self, ref: Any, job: Job, is_stopping: bool) -> dict[str, Any]:
        try:
            outcome: dict[str, Any] = self._ray.get(ref)
            return outcome
        except self._ray.exceptions.TaskCancelledError:
            return {"state": "interrupted", "error": "stopped"}
        except self._ray.exceptions.RayTaskError as error:  # what work() could not return
            cause = error.cause if getattr(error, "cause", None) is not None else error
            return {"state": "failed", "kind": "exception", "error": f"{type(cause).__name__}: {cause}"}
        except self._ray.exceptions.RayError as error:
            return died(job, f"its worker died ({type(error).__name__})")
