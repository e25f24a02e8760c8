"""A run, opened again from its directory: its record, a checkpoint, its config, and its model."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.names import AVERAGES
from runner.errors import InputError
from runner.job import own_code
from runner.job.own_code import as_it_was_started
from runner.job.record import never_began
from runner.job.recovery import WEIGHTS, check_keys, check_owner, whole_config
from runner.storage import checkpoint
from runner.storage.checkpoint import Damaged
from runner.storage.run_dir import RunDir
from runner.storage.weights import averaged, evaluated
from runner.values import flatten

log = logging.getLogger("runner")

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch.nn import Module


KINDS = (*AVERAGES, "raw")  # of the last weights


@dataclass
class Saved:
    """A run's record, and one of its checkpoints."""

    record: dict[str, Any]
    path: Path
    state: dict[str, Any]
    folder: Path


def open_saved(run_dir: Path, which: str) -> Saved:
    """Reads a run's record and the checkpoint "best", "last" or FILE, with the weights that their figures are of; or
    the last checkpoint with the weights' average ("ema", "swa"), or without it ("raw").

    Raises:
        InputError: no run, or the checkpoint is missing, damaged or foreign.
    """
    RunDir(run_dir).refuse_links()
    record = RunDir(run_dir).read_run(is_to_be_opened=True)
    if never_began(record):
        raise InputError(f"{run_dir}: holds no run that began ({record['error']})")
    whole_config(RunDir(run_dir), record)
    named = which in ("best", "last", *KINDS)
    path = run_dir / "checkpoints" / f"{'last' if which in KINDS else which}.pt" if named else Path(which)
    if not path.exists():
        choices = ", ".join(sorted(p.stem for p in (run_dir / "checkpoints").glob("*.pt"))) or "none was saved"
        raise InputError(f"which={which}: there is no {path}; this run has: {choices}")
    try:
        state = checkpoint.load(path)
        check_keys(path, state, WEIGHTS)
        if named:
            check_owner(path, state, record)
        elif state.get("run_id") != record.get("id"):
            log.warning("note: %s is not a checkpoint of the run in %s", path, run_dir)
        return Saved(record, path, weights_for(which, path, state), run_dir)
    except Damaged as error:
        raise InputError(str(error)) from error


def weights_for(which: str, path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with the weights that were asked for.

    Raises:
        InputError: it has no such average. Damaged: what says so is not as we write it.
    """
    average = state.get("averaging_state_dict")
    try:
        if which == "raw":
            return state
        if which not in KINDS:
            return evaluated(state)
        if average is None or average["type"] != which or not average["count"]:
            has = "none" if average is None else f"{average['type']}, of {average['count']} updates"
            raise InputError(f"which={which}: {path} holds no such average of the weights; it has: {has}")
        return averaged(state)
    except (KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{path}: its averaging_state_dict cannot be read ({type(error).__name__}: {error})") from error


def refuse_interpolations(record: Mapping[str, Any]) -> None:
    """A record's config, a whole one, is resolved. What one would still have looked up is not: it may be a secret here.

    Raises:
        InputError: names the key.
    """
    from omegaconf import OmegaConf

    found = flatten(OmegaConf.to_container(OmegaConf.create(record["config_yaml"]), resolve=False))
    asking = [key for key, value in found.items() if "${" in json.dumps(value, default=str)]
    if asking:
        raise InputError(f"{asking[0]}={found[asking[0]]}: is not looked up: a run's record has values only")


def saved_config(record: dict[str, Any]) -> "DictConfig":
    """A run's resolved config, without the weights that it started from: its checkpoint has others."""
    from omegaconf import DictConfig, OmegaConf

    refuse_interpolations(record)
    config = OmegaConf.create(record["config_yaml"])
    assert isinstance(config, DictConfig)
    config.model_weights = config.init_from = None
    keep_placement(config, record)
    return config


def keep_placement(config: "DictConfig", record: dict[str, Any]) -> None:
    """Where it may change last digits, and on a CPU it does not, what `auto` took at first is taken again."""
    if record["device"] != "cpu" and record.get("placement") and config.dataloader.get("placement") == "auto":
        config.dataloader.placement = record["placement"]


def keep_weights(config: "DictConfig", record: Mapping[str, Any]) -> None:
    """The files of the weights that a run started from, as seen from here."""
    for key in ("model_weights", "init_from"):
        path = record["config"].get(key)
        if path is not None and not Path(path).exists():
            path = str(Path(record.get("working_directory") or "", path))
        config[key] = path


def check_targets_of(run_dir: RunDir, record: dict[str, Any]) -> None:
    """Refuses what a record's config may not make, before anything is written or started for it.

    Raises:
        InputError: names the target, or what of the config cannot be read.
    """
    from runner.config.checks import check_targets

    whole_config(run_dir, record)
    with as_it_was_started(record, run_dir.path):
        check_targets(saved_config(record), is_new=False)


def say_changes(record: Mapping[str, Any], folder: Path) -> None:
    """Says where a run's own modules are not what they were: what comes out is theirs."""
    for change in own_code.changed(record, folder):
        log.warning("note: %s; what follows is by the code of today", change)


@contextmanager
def fitting(saved: Saved) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise InputError(f"{saved.path}: has no {error}") from error
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        message = " ".join(str(error).split())
        raise InputError(f"{saved.path}: does not fit this run's model or loss; {message}") from error


def open_model(run_dir: Path, which: str) -> "Module":
    """See runner.load_model."""
    import torch

    from runner.groups.model_parts import make_model, prepare_model
    from runner.seeding import isolated
    from runner.tasks import Supervised
    from runner.train.weights import load_weights

    saved = open_saved(run_dir, which)
    cpu = torch.device("cpu")
    with (
        as_it_was_started(saved.record, saved.folder),
        isolated(0, cpu),
    ):  # building draws initial weights: the caller's generators stay as they are
        say_changes(saved.record, saved.folder)
        config = saved_config(saved.record)
        model = make_model(config, cpu)
    with fitting(saved):
        others: dict[str, Any] = {"criterion_state_dict": {}, "task_state_dict": {}}
        load_weights(Supervised(model, None), {**saved.state, **others})
    prepare_model(config, model)  # a lazy layer has its shape by now
    return model.eval()
