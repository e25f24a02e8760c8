"""One run in a directory that is claimed before anything is written there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from runner.config import hydra_adapter
from runner.config.compose import CONFIG_NAME, compose, replaced_files
from runner.config.messages import one_line
from runner.errors import InputError

if TYPE_CHECKING:
    from runner.storage.run_dir import RunDir

OF_SWEEPS = ("sweep.", "hydra/sweeper=", "hydra/launcher=", "hydra.sweeper.", "hydra.launcher.", "hydra.sweep.")
Start = Callable[[DictConfig, "RunDir", list[str]], Any]


def launch(overrides: Sequence[str], task: Start, config_dir: str | None = None, run_dir: str | None = None) -> Any:
    """Composes one run, claims its directory before anything is written there, and runs task(cfg, run_dir, notes).

    What it does for Hydra is what Hydra.run does, with the claim in the right place.

    Raises:
        InputError: as compose; or the directory is not free, or cannot be written.
        What the task raises.
    """
    for word in overrides:
        if word.lstrip("+").startswith(OF_SWEEPS):
            raise InputError(f"{word}: is for a sweep; add -m")
    hydra, cfg = compose(overrides, config_dir)
    from runner.storage.run_dir import RunDir  # here: a wrong key is answered without it

    if run_dir is not None:
        with open_dict(cfg):
            cfg.hydra.run.dir = str(run_dir).replace("${", "\\${")
    try:
        place = RunDir(Path(cfg.hydra.run.dir).absolute() if cfg.hydra.job.chdir else Path(cfg.hydra.run.dir))
    except OmegaConfBaseException as error:
        raise InputError(one_line(error)) from error
    replaced = replaced_files(config_dir, dict(cfg.hydra.runtime.choices))
    notes = [f"config: {path} is used in place of the packaged file" for path in replaced]
    if (sweeper := cfg.hydra.runtime.choices["hydra/sweeper"]) != "runner" or cfg.hydra.sweeper.get("params"):
        notes.append(f"this is one run; hydra/sweeper={sweeper} and its params are for a sweep: add -m")
    place.claim()
    try:
        job = hydra_adapter.run_single(hydra, CONFIG_NAME, cfg, lambda task_cfg: task(task_cfg, place, notes))
    except OSError as error:
        raise InputError(f"hydra.run.dir={place.path}: cannot be written ({error.strerror})") from error
    finally:
        place.discard()
        place.release()
    return hydra_adapter.value_of(job)
