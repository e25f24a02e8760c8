"""The way into a sweep: Hydra composes what its jobs share, and hands over to a sweeper and a launcher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from runner.config import hydra_adapter
from runner.config.compose import CONFIG_NAME, make_hydra, own_hydra, set_up


def multirun(overrides: Sequence[str], config_dir: str | None = None) -> Any:
    """Runs a sweep, by default with our sweeper and launcher.

    Raises:
        InputError: as compose, for any of the jobs.
    """
    set_up()
    with own_hydra():
        return hydra_adapter.multirun(make_hydra(config_dir), CONFIG_NAME, sweep_job, overrides)


def sweep_job(cfg: DictConfig) -> Any:
    """One job of a sweep under another launcher than ours, in the directory that Hydra made for it."""
    from runner.sweep.worker import run_or_resume

    return run_or_resume(cfg, Path(HydraConfig.get().runtime.output_dir))
