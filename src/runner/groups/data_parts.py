"""The `dataset` group: its parts, and what only the data can tell the config."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from runner.batches.contents import known_of
from runner.batches.parts import (
    Part,
    Parts,
    Stream,
    count_classes,
    integer_targets,
    is_stream,
    split,
    stray_target,
    whole,
)
from runner.batches.stream import check_stream
from runner.config.checks import locate
from runner.config.names import part_of
from runner.errors import InputError
from runner.groups.instantiate import containers, instantiate, make
from runner.seeding import rng_state, set_rng_state

CPU = torch.device("cpu")
SETS = ("train", "val", "test")  # the keys of the dataset group that are datasets
TAKEN = (*SETS, "overfit", "best", "last", "choices", "config")  # what the names of other columns begin with


def make_parts(cfg: DictConfig, is_new: bool = False) -> Parts:
    """The dataset group: its training set and what is official of validation and test set, parted."""
    known: dict[str, dict[str, Any]] = {}
    sets = {name: opened(cfg, name, known, is_new=is_new) for name in SETS}
    if sets["train"] is None:
        raise InputError("dataset.train: must be a map-style dataset, as {_target_: your.Dataset}; got null")
    sizes = {key: cfg.dataset.get(key) or 0 for key in ("test_size", "val_size")}
    for key, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, float)):
            raise InputError(f"dataset.{key}={size}: must be a fraction or a count")
    plain = None
    if cfg.dataset.get("transform_train") is not None:  # the training set is opened a second time, as it is trained on
        plain, sets["train"] = sets["train"], opened(cfg, "train", known, training_node(cfg), is_new)
        plain = None if isinstance(plain, Stream) else plain  # nothing is held out of it
    parts = split(sets["train"], sets["test"], **sizes, val=sets["val"], plain=plain)
    return dataclasses.replace(parts, more=further(cfg, known, is_new), known=known)


def further(cfg: DictConfig, known: dict[str, dict[str, Any]], is_new: bool) -> dict[str, Part | Stream]:
    """dataset.evaluate: what else is evaluated each epoch, by name.

    Raises:
        InputError: it is no mapping, or a name is taken or none that a metric can begin with.
    """
    node = containers(cfg.dataset, "evaluate") if "evaluate" in cfg.dataset else None
    if node is None:
        return {}
    if not isinstance(node, dict):
        raise InputError(f"dataset.evaluate={node}: must be {{NAME: {{_target_: your.Dataset}}, ...}}, or null")
    found = {}
    for name, each in node.items():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or part_of(name) != name:
            raise InputError(f"dataset.evaluate.{name}: must be letters, digits and _, and not end in _ema or _swa")
        if name in TAKEN:
            raise InputError(f"dataset.evaluate.{name}: is taken, as {', '.join(TAKEN)} are; choose another name")
        if not isinstance(each, dict) or "_target_" not in each:
            raise InputError(f"dataset.evaluate.{name}={each}: must be {{_target_: your.Dataset}}")
        found[name] = whole(opened(cfg, f"evaluate.{name}", known, each, is_new))
    return found


def opened(cfg: DictConfig, name: str, known: dict[str, dict[str, Any]], node: Any = None, is_new: bool = False) -> Any:
    """dataset.NAME, made, and what is known of it; None where there is no such part. A new run's iterable one is looked
    at.
    """
    key = f"dataset.{name}"

    def made_anew() -> Any:
        set_rng_state(before, CPU)  # what it draws is the same each time
        try:
            return make(cfg.dataset, name, "dataset") if node is None else instantiate(node, key)
        except InputError as error:
            raise data_error(cfg, name, error) from error

    before = rng_state(CPU)
    made = made_anew()
    if made is not None and key not in known:
        known[key] = known_of(made)
    if made is not None and is_stream(made):
        limits = (cfg.trainer.get(name) for name in ("limit_eval_batches", "overfit_batches", "dry_run"))
        try:
            return check_stream(key, made, made_anew, name != "train" and not any(limits)) if is_new else Stream(made)
        except InputError:
            raise
        except Exception as error:
            what = (
                f"{type(made).__name__}, read and put back as a resume does it, gives {type(error).__name__}: {error}"
            )
            raise InputError(f"{key}: {what}") from error
    if made is not None and not (hasattr(made, "__getitem__") and hasattr(made, "__len__")):
        raise InputError(
            f"{key}: must be a map-style dataset (__getitem__ and __len__), or an iterable one with a state;"
            f" got {type(made).__name__}"
        )
    return made


def training_node(cfg: DictConfig) -> dict[str, Any]:
    """dataset.train with dataset.transform_train as its argument `transform`.

    Raises:
        InputError: it takes no such argument, or the transforms cannot be made.
    """
    given, node = containers(cfg.dataset, "transform_train"), containers(cfg.dataset, "train")
    target = node.get("_target_") if isinstance(node, dict) else None
    try:
        takes: Mapping[str, Any] = inspect.signature(locate(target, "dataset.train")).parameters
    except (TypeError, ValueError):
        takes = {}
    if "transform" not in takes:
        raise InputError(
            f"dataset.transform_train: {target or 'dataset.train'} takes no argument `transform`, whose place it could"
            " take; dataset.augment does random transforms of the training tensors of any dataset"
        )
    made = instantiate(given, "dataset.transform_train")
    for step in listed(made):
        if not callable(step):
            raise InputError(f"dataset.transform_train: must be a list of transforms, got {step!r} in it")
    return {**node, "transform": {"_target_": "torchvision.transforms.Compose", "transforms": listed(made)}}


def listed(made: Any) -> list[Any]:
    return made if isinstance(made, list) else [made]


def data_error(cfg: DictConfig, name: str, error: InputError) -> InputError:
    """Says where the data was looked for, where a root was given."""
    node = OmegaConf.select(cfg.dataset, name)
    inside = re.match(
        rf"dataset\.{re.escape(name)}\.\w+[.:]", str(error)
    )  # an argument, or a part such as a transform, is to blame
    if inside or re.match(r"dataset\.\w+=", str(error)) or not isinstance(node, DictConfig) or node.get("root") is None:
        return error
    cls = locate(node["_target_"], f"dataset.{name}")
    folder = Path(node.root).absolute()
    if hasattr(cls, "raw_folder"):
        folder = folder / cls.__name__ / "raw"
    elif hasattr(cls, "base_folder"):
        folder = folder / cls.base_folder
    exists = "" if folder.exists() else ", which does not exist"
    download = ""
    if "download" in node:
        tried = "it could not be downloaded" if node.download else "dataset.download=false"
        download = f" and {tried}"
    key = f"dataset.{name}_root" if f"{name}_root" in cfg.dataset else "dataset.root"
    return InputError(f"{key}={node.root}: no data in {folder}{exists}{download}; {error}")


def fill_classes(cfg: DictConfig, parts: Parts) -> None:
    """Counts dataset.num_classes where the YAML leaves it open."""
    if cfg.dataset.get("num_classes", 0) is None:
        cfg.dataset.num_classes = count_classes(parts.train.dataset)
        if cfg.dataset.num_classes is None:
            raise InputError("dataset.num_classes=null: this dataset has no classes or targets to count; set it")
    if isinstance(parts.train, Stream):
        return
    classes, dataset = cfg.dataset.get("num_classes"), parts.train.dataset
    if classes is not None and (most := stray_target(dataset, classes)) is not None:
        least = int(integer_targets(dataset).min())  # type: ignore[union-attr]
        start = "; they start at 1, and must start at 0: subtract 1" if (least, most) == (1, classes) else ""
        raise InputError(f"dataset.num_classes={classes}: the targets go up to {most}{start}")
