"""Hydra's doors to our sweeps: a sweeper and a launcher that leave everything to runner.sweep."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Worker processes on this machine (runner.sweep.pool)."""

    def __init__(self, jobs: int | None = None, jobs_per_gpu: int = 1) -> None:
        self.jobs, self.jobs_per_gpu = jobs, jobs_per_gpu

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise NotImplementedError("hydra/launcher=local is for hydra/sweeper=runner, which hands it composed jobs")


class RunnerSweeper(BasicSweeper):
    """Plans the jobs, skips what is finished, and sums up (runner.sweep)."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> Any:
        from runner.sweep.run import sweep

        assert self.config is not None and self.launcher is not None and self.hydra_context is not None
        return sweep(self, [*self._parse_config(), *arguments])
