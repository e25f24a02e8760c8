"""The ways in: one run in a directory that is claimed first, or a sweep by Hydra's sweeper and launcher."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from runner.config.compose import CONFIG_NAME, compose, main_hydra, one_line, own_hydra, replaced_files, set_up
from runner.errors import InputError
from runner.storage.run_dir import RunDir


def multirun(overrides: Sequence[str], config_dir: str | None = None) -> Any:
    """Composes a sweep's common config, and hands over to Hydra's sweeper and launcher: by default ours.

    Raises:
        InputError: as compose, for any of the jobs.
    """
    set_up()
    with own_hydra():
        hydra = main_hydra(config_dir)
        words = [*overrides, "hydra.mode=MULTIRUN"]
        return hydra.multirun(CONFIG_NAME, sweep_job, words, with_log_configuration=False)


def sweep_job(cfg: DictConfig) -> Any:
    """One job of a sweep under another launcher than ours, in the directory that Hydra made for it."""
    from runner.sweep.job import run_or_resume

    return run_or_resume(cfg, Path(HydraConfig.get().runtime.output_dir))


Task = Callable[[DictConfig, RunDir, list[str]], Any]


def launch(overrides: Sequence[str], task: Task, config_dir: str | None = None, run_dir: str | None = None) -> Any:
    """Composes one run, claims its directory before anything is written there, and runs task(cfg, run_dir, notes).

    What it does for Hydra is what Hydra.run does, with the claim in the right place.
    """
    for word in overrides:
        if word.lstrip("+").startswith("sweep."):
            raise InputError(f"{word}: is for a sweep; add -m")
    hydra, cfg = compose(overrides, config_dir)
    if run_dir is not None:
        with open_dict(cfg):
            cfg.hydra.run.dir = str(run_dir)
    try:
        place = RunDir(Path(cfg.hydra.run.dir).absolute() if cfg.hydra.job.chdir else Path(cfg.hydra.run.dir))
    except OmegaConfBaseException as error:
        raise InputError(one_line(error)) from error
    replaced = replaced_files(config_dir, dict(cfg.hydra.runtime.choices))
    notes = [f"config: {path} is used in place of the packaged file" for path in replaced]
    place.claim()
    try:
        callbacks = Callbacks(cfg)
        callbacks.on_run_start(config=cfg, config_name=CONFIG_NAME)
        job = run_job(
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=callbacks),
            task_function=lambda task_cfg: task(task_cfg, place, notes),
            config=cfg,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            configure_logging=False,
        )
        callbacks.on_run_end(config=cfg, config_name=CONFIG_NAME, job_return=job)
    except OSError as error:
        raise InputError(f"hydra.run.dir={place.path}: cannot be written ({error.strerror})") from error
    finally:
        place.discard()
        place.release()
    if job.status != JobStatus.COMPLETED:
        raise job._return_value
    return job.return_value
