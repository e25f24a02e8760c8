"""Hydra's doors to our sweeps: sweepers and launchers that leave everything to runner.sweep."""

import importlib.util
import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


def need(package: str, choice: str, extra: str) -> None:
    """Refuses a choice whose package is not installed."""
    from runner.errors import InputError

    if importlib.util.find_spec(package) is None:
        raise InputError(
            f'{choice}: needs {package}, which is not installed; pip install -e ".[{extra}]" in its checkout'
        )


def as_dict(node: DictConfig | None) -> dict[str, Any]:
    made = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    return {str(key): value for key, value in made.items()} if isinstance(made, dict) else {}


def check_number(node: str, kind: type | tuple[type, ...], least: float, **values: Any) -> None:
    """Refuses a value of hydra.NODE that is given and no number of that kind, or too low."""
    from runner.errors import InputError

    words = "whole number" if kind is int else "number"
    for key, value in values.items():
        is_number = isinstance(value, kind) and not isinstance(value, bool)
        if value is not None and (not is_number or value < least):
            raise InputError(f"hydra.{node}.{key}={value}: must be a {words} of at least {least}")


class OurLauncher(Launcher):
    """A launcher that is handed composed jobs by our sweepers: check() what it needs, then the engine() for them."""

    is_elsewhere = False  # whether jobs run on other machines, whose data and devices cannot be looked at from here

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def check(self) -> None:
        """Refuses what cannot work, before anything is written.

        Raises:
            InputError
        """
        raise NotImplementedError

    def engine(self, place: Path, jobs: Sequence[Any]) -> Any:
        """What runs the jobs: a runner.sweep.loop.Engine."""
        raise NotImplementedError

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise NotImplementedError(f"{type(self).__name__} works with our sweepers: hydra/sweeper=runner, optuna")


class LocalLauncher(OurLauncher):
    """Worker processes on this machine (runner.sweep.pool)."""

    def __init__(self, jobs: int | None = None, jobs_per_gpu: int = 1) -> None:
        self.jobs, self.jobs_per_gpu = jobs, jobs_per_gpu

    def check(self) -> None:
        check_number("launcher", int, 1, jobs=self.jobs, jobs_per_gpu=self.jobs_per_gpu)

    def engine(self, place: Path, jobs: Sequence[Any]) -> Any:
        from runner.sweep.pool import LocalEngine, default_jobs

        count, gpus = default_jobs(str(jobs[0].composed.device.type), self.jobs_per_gpu)
        return LocalEngine(place, max(1, min(self.jobs or count, len(jobs))), gpus, self.jobs_per_gpu)


class RayLauncher(OurLauncher):
    """Ray's cluster, or a Ray of this machine (runner.sweep.ray_pool)."""

    def __init__(
        self,
        address: str | None = None,
        cpus: int = 1,
        gpus: float = 0.0,
        memory: float | None = None,
        init: DictConfig | None = None,
    ) -> None:
        self.address, self.cpus, self.gpus, self.memory = address, cpus, gpus, memory
        self.settings = as_dict(init)
        self.is_elsewhere = address is not None or "RAY_ADDRESS" in os.environ

    def check(self) -> None:
        check_number("launcher", int, 1, cpus=self.cpus)
        check_number("launcher", (int, float), 0, gpus=self.gpus, memory=self.memory)
        need("ray", "hydra/launcher=ray", "ray")
        from runner.sweep.ray_pool import check_cluster

        check_cluster(self.address, self.settings, self.cpus, self.gpus)

    def engine(self, place: Path, jobs: Sequence[Any]) -> Any:
        from runner.sweep.ray_pool import RayEngine

        resources: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus}
        if self.memory is not None:
            resources["memory"] = int(self.memory * 2**30)
        return RayEngine(self.address, resources, self.settings, self.cpus)


class SubmititLauncher(OurLauncher):
    """SLURM, or processes of this machine that outlive the sweep's (runner.sweep.submitit_pool)."""

    def __init__(
        self,
        cluster: str,
        jobs: int | None = None,
        cpus: int = 1,
        gpus: int = 0,
        memory: float | None = None,
        timeout: int = 60,
        max_timeouts: int = 3,
        parameters: DictConfig | None = None,
    ) -> None:
        self.cluster, self.jobs, self.cpus, self.gpus, self.memory = cluster, jobs, cpus, gpus, memory
        self.timeout, self.max_timeouts = timeout, max_timeouts
        self.parameters = as_dict(parameters)
        self.is_elsewhere = cluster == "slurm"

    def check(self) -> None:
        from runner.errors import InputError

        check_number("launcher", int, 1, jobs=self.jobs, cpus=self.cpus, timeout=self.timeout)
        check_number("launcher", int, 0, gpus=self.gpus, max_timeouts=self.max_timeouts)
        check_number("launcher", (int, float), 0, memory=self.memory)
        need("submitit", f"hydra/launcher=submitit_{self.cluster}", "slurm")
        if self.cluster == "slurm" and shutil.which("srun") is None:
            raise InputError(
                "hydra/launcher=submitit_slurm: there is no SLURM here (no command srun);"
                " hydra/launcher=submitit_local does the same with processes of this machine"
            )
        from runner.sweep.submitit_pool import make_executor

        with tempfile.TemporaryDirectory() as folder:
            make_executor(self.cluster, Path(folder), self.of_executor("name"), self.max_timeouts)

    def of_executor(self, name: str) -> dict[str, Any]:
        """The parameters as submitit names them."""
        parameters: dict[str, Any] = {"timeout_min": self.timeout, "cpus_per_task": self.cpus, "name": name}
        parameters |= {"gpus_per_node": self.gpus} if self.gpus else {}
        parameters |= {"mem_gb": self.memory} if self.memory is not None else {}
        if self.cluster == "slurm" and self.jobs is not None:
            parameters["slurm_array_parallelism"] = self.jobs
        return {**parameters, **self.parameters}

    def engine(self, place: Path, jobs: Sequence[Any]) -> Any:
        from runner.sweep.pool import cores
        from runner.sweep.submitit_pool import SubmititEngine

        return SubmititEngine(
            self.cluster,
            place.absolute() / ".submitit" / secrets.token_hex(4),  # its pickles are read: never another start's
            None if self.cluster == "slurm" else self.jobs or max(1, cores() // self.cpus),
            self.of_executor(place.name),
            self.max_timeouts,
            self.cpus,
        )


class RunnerSweeper(Sweeper):
    """Plans the jobs, skips what is finished, and sums up (runner.sweep)."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def words(self, arguments: list[str]) -> list[str]:
        """What is swept over: hydra.sweeper.params, then the command line, whose words win."""
        return [*(f"{key}={value}" for key, value in self.params.items()), *arguments]

    def sweep(self, arguments: list[str]) -> Any:
        from runner.sweep.run import sweep

        return sweep(self, self.words(arguments))


class OptunaSweeper(RunnerSweeper):
    """Asks Optuna for the jobs, and tells it what came out (runner.search.search)."""

    def __init__(
        self,
        params: dict[str, str] | None,
        n_trials: int,
        at_once: int | None,
        storage: str | None,
        sampler: DictConfig,
        pruner: DictConfig | str | None = None,
    ) -> None:
        super().__init__(params)
        self.n_trials, self.at_once, self.storage, self.sampler = n_trials, at_once, storage, sampler
        self.pruner: Any = as_dict(pruner) if isinstance(pruner, DictConfig) else pruner

    def sweep(self, arguments: list[str]) -> Any:
        from runner.search.search import search

        check_number("sweeper", int, 1, n_trials=self.n_trials, at_once=self.at_once)
        need("optuna", "hydra/sweeper=optuna", "optuna")
        return search(self, self.words(arguments))
