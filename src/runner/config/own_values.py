"""What the values of our own keys may be, and what no value of any key may be: not a number, infinite, unresolvable."""

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config.conf_dir import conf_dir
from runner.config.messages import one_line
from runner.errors import InputError
from runner.values import Rule, fits, flatten, guess, shown

MOST_THREADS = max(512, 4 * (os.cpu_count() or 1))  # more take a machine down; a big machine's count is no mistake
MOST_WORKERS = MOST_THREADS
COUNT, COUNT_OR_NONE = Rule(int, least=1), Rule(int | None, least=1)
SWITCH, TEXT = Rule(bool), Rule(str | None)
OURS = {
    "seed": Rule(int),
    **dict.fromkeys(("deterministic", "quiet", "strict", "optimizer.no_decay"), SWITCH),
    **dict.fromkeys(("name", "notes", "model_weights", "init_from"), TEXT),
    **dict.fromkeys(("tags", "optimizer.groups"), Rule(list)),
    "trainer.epochs": COUNT,
    "trainer.steps": COUNT_OR_NONE,
    "trainer.evaluate_every": Rule(int | str | None),
    "trainer.monitor": Rule(str),
    "trainer.mode": Rule(str | None, choices=("min", "max")),
    "trainer.log_every": Rule(int, least=0),
    **dict.fromkeys((f"trainer.{key}_batches" for key in ("limit", "limit_eval", "overfit")), COUNT_OR_NONE),
    "trainer.dry_run": SWITCH,
    "trainer.grad_clip": Rule(float | None, above=0),
    "trainer.grad_clip_by": Rule(str, choices=("norm", "value")),
    "trainer.accumulate": COUNT,
    "trainer.channels_last": SWITCH,
    "trainer.compile": Rule(bool | str | None),
    "device.type": Rule(str),
    "device.index": Rule(int, least=0),
    "device.threads": Rule(int | None, least=1, most=MOST_THREADS),
    "precision.type": Rule(str),
    "dataset.num_classes": COUNT_OR_NONE,
    "dataset.input_shape": Rule(Sequence[int] | int | None, least=1),
    "dataset.mean": Rule(Sequence[float] | float | None),
    "dataset.std": Rule(Sequence[float] | float | None, above=0),
    **dict.fromkeys(("dataset.test_size", "dataset.val_size"), Rule(float | None, least=0)),
    "dataset.augment": Rule(list | None),
    **dict.fromkeys(("dataset.val", "dataset.test", "dataset.evaluate", "unfreeze_at"), Rule(dict | None)),
    "dataloader.batch_size": COUNT,
    "dataloader.eval_batch_size": COUNT,
    **dict.fromkeys(("dataloader.shuffle", "dataloader.drop_last"), SWITCH),
    "dataloader.placement": Rule(str, choices=("auto", "memory", "workers")),
    "dataloader.memory_limit": Rule(float | None, least=0),
    "dataloader.num_workers": Rule(int | None, least=0, most=MOST_WORKERS),
    **dict.fromkeys(("dataloader.pin_memory", "dataloader.persistent_workers"), Rule(bool | None)),
    "dataloader.prefetch_factor": COUNT_OR_NONE,
    "checkpoint.save": Rule(str, choices=("all", "best", "last", "none")),
    **dict.fromkeys(("checkpoint.every", "checkpoint.every_batches"), COUNT_OR_NONE),
    "checkpoint.every_minutes": Rule(float | None, above=0),
    "checkpoint.keep": COUNT,
    **dict.fromkeys(("checkpoint.state_dict", "checkpoint.whole_model"), SWITCH),
    "averaging.type": Rule(str, choices=("none", "ema", "swa")),
    "averaging.decay": Rule(float, least=0),
    "averaging.every": COUNT,
    "averaging.start": Rule(float, least=0),
    "averaging.evaluate": Rule(str, choices=("instead", "beside")),
    "stopping.patience": COUNT_OR_NONE,
    "stopping.min_delta": Rule(float, least=0),
    **dict.fromkeys(("stopping.threshold", "stopping.divergence"), Rule(float | None)),
    "stopping.divergence_after": COUNT,
    "stopping.max_minutes": Rule(float | None, above=0),
    "sweep.name": TEXT,
    "sweep.points": Rule(list | str | None),
    "sweep.retries": Rule(int, least=0),
    **dict.fromkeys(("sweep.dry_run", "sweep.fail_fast", "sweep.force", "sweep.lengthen"), SWITCH),
    "scheduler.interval": Rule(str, choices=("epoch", "batch")),
    "scheduler.monitor": TEXT,
}
PACKAGED = ("dataloader", "checkpoint")  # what a choice of somebody's own leaves out is what the packaged one says
CALLED_WITH_MORE = ("optimizer", "scheduler")  # the parameters and the optimizer come at the start


def takes_null(key: str) -> bool:
    """Whether null is a value of one of our own keys, whatever a YAML file has set it to."""
    group, _, name = key.partition(".")
    return fits(None, OURS[key].hint) if key in OURS else None in packaged_values(group, name)


def packaged_values(group: str, key: str) -> list[Any]:
    """What the packaged choices of a group set a key to, interpolations unresolved."""
    files = sorted(Path(conf_dir(), group).glob("*.yaml")) if group else []
    plain: list[Any] = [OmegaConf.to_container(OmegaConf.load(path), resolve=False) for path in files]
    return [values[key] for choice in plain for values in ({**flatten(choice), **choice},) if key in values]


def fill_left_out(cfg: DictConfig) -> None:
    """Gives the groups of PACKAGED the keys that a choice of the user's own leaves out."""
    for group in PACKAGED:
        defaults = OmegaConf.load(Path(conf_dir(), group, "default.yaml"))
        if isinstance(cfg.get(group), DictConfig):
            for key, value in defaults.items():
                if key not in cfg[group]:
                    OmegaConf.update(cfg, f"{group}.{key!s}", value, force_add=True)


def check_values(cfg: DictConfig) -> None:
    """Holds every value against what it may be.

    Raises:
        InputError: key, value and what it must be.
    """
    for key, rule in OURS.items():
        parent, _, last = key.rpartition(".")
        owner = OmegaConf.select(cfg, parent) if parent else cfg
        if isinstance(owner, DictConfig) and last in owner:
            try:
                value = owner[last]
                plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            except OmegaConfBaseException:
                continue  # said below
            if plain is None and OmegaConf.is_interpolation(owner, last):
                continue  # known when the data is there
            try:
                rule.check(key, plain)
            except ValueError as error:
                raise InputError(str(error)) from error
    for key, value, is_foreign in values_of(cfg, cfg):
        if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and not is_foreign)):
            raise InputError(f"{key}={value}: must be a finite number")
    check_channels(cfg)
    for group in CALLED_WITH_MORE:
        if cfg[group].get("_partial_") is not True:
            raise InputError(
                f"{group}._partial_={shown(cfg[group].get('_partial_'))}: must be true: the rest is given"
                " when the run is built"
            )
    for key in ("collate_fn", "eval_collate_fn"):
        collate = cfg.dataloader.get(key)
        if collate is not None and not isinstance(collate, DictConfig):
            raise InputError(f"dataloader.{key}={shown(collate)}: must be {{_target_: your.function}}, or null")


def values_of(node: Any, whole: DictConfig, key: str = "", is_foreign: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """(dotted key, resolved value, whether it is for a `_target_` that is neither torch's nor ours) of each value.

    Raises:
        InputError: an interpolation that leads nowhere.
    """
    if isinstance(node, DictConfig) and "_target_" in node:
        is_foreign = str(node["_target_"]).split(".")[0] not in ("torch", "torchvision", "runner")
    for name in range(len(node)) if isinstance(node, ListConfig) else list(node):
        path = f"{key}.{name}" if key else str(name)
        try:
            value = node[name]
        except OmegaConfBaseException as error:
            raise InputError(f"{path}={written(node, name)}: {_unresolved(error, whole)}") from error
        if isinstance(value, (DictConfig, ListConfig)):
            yield from values_of(value, whole, path, is_foreign)
        else:
            yield path, value, is_foreign


def written(node: Any, name: Any) -> str:
    plain = OmegaConf.to_container(node, resolve=False)
    return str(plain[name])  # type: ignore[index]


def _unresolved(error: Exception, whole: DictConfig) -> str:
    message = one_line(error).partition("; full_key")[0]
    found = re.search(r"key '([\w.]+)' not found", message)
    if not found:
        return message
    plain: Any = OmegaConf.to_container(whole, resolve=False)
    known = [key for key in _keys(plain) if not key.startswith(("hydra", "derived"))]
    return f"there is no key {found[1]}; {guess(found[1], known)}".rstrip("; ")


def _keys(node: dict[Any, Any], key: str = "") -> Iterator[str]:
    for name, value in node.items():
        path = f"{key}.{name}" if key else str(name)
        yield path
        if isinstance(value, dict):
            yield from _keys(value, path)


def is_read(key: str, text: str) -> bool:
    """Whether an interpolation in a YAML text reads a key."""
    return re.search(r"\$\{(oc\.select:)?\.*" + re.escape(key) + r"\W", text) is not None


def check_channels(cfg: DictConfig) -> None:
    """dataset.mean and dataset.std, where something reads them, hold one number a channel."""
    shape, text = cfg.dataset.get("input_shape"), OmegaConf.to_yaml(cfg)
    for name in ("mean", "std"):
        given = cfg.dataset.get(name) if is_read(f"dataset.{name}", text) else None
        if isinstance(given, ListConfig) and isinstance(shape, ListConfig) and len(shape) == 3:
            if len(given) != shape[0]:
                raise InputError(
                    f"dataset.{name}={list(given)}: must hold one number a channel, and"
                    f" dataset.input_shape={list(shape)} has {shape[0]}"
                )
        elif isinstance(given, ListConfig) and not given:
            raise InputError(f"dataset.{name}=[]: must hold one number a channel")
