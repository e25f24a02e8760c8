"""The `dataset` group: its parts, and what only the data can tell the config."""

from pathlib import Path

from omegaconf import DictConfig

from runner.config.checks import locate
from runner.data import Parts, count_classes, integer_targets, split
from runner.errors import InputError
from runner.job.instantiate import make


def make_parts(cfg: DictConfig) -> Parts:
    """The dataset group: its training set and test set, parted."""
    sets = {}
    for name in ("train", "test"):
        try:
            sets[name] = make(cfg.dataset, name, "dataset")
        except InputError as error:
            raise data_error(cfg, name, error) from error
    if sets["train"] is None:
        raise InputError("dataset.train: must be a map-style dataset, as {_target_: your.Dataset}; got null")
    for name, made in sets.items():
        if made is not None and not (hasattr(made, "__getitem__") and hasattr(made, "__len__")):
            kind = type(made).__name__
            raise InputError(f"dataset.{name}: must be a map-style dataset (__getitem__ and __len__), got {kind}")
    sizes = {key: cfg.dataset.get(key) or 0 for key in ("test_size", "val_size")}
    for key, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, (int, float)):
            raise InputError(f"dataset.{key}={size}: must be a fraction or a count")
    return split(sets["train"], sets["test"], **sizes)


def data_error(cfg: DictConfig, name: str, error: InputError) -> InputError:
    """Says where the data was looked for, where a root was given."""
    node = cfg.dataset[name]
    if str(error).startswith("dataset.root=") or not isinstance(node, DictConfig) or node.get("root") is None:
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
    key = "dataset.test_root" if name == "test" and "test_root" in cfg.dataset else "dataset.root"
    return InputError(f"{key}={node.root}: no data in {folder}{exists}{download}; {error}")


def fill_classes(cfg: DictConfig, parts: Parts) -> None:
    """Counts dataset.num_classes where the YAML leaves it open."""
    if cfg.dataset.get("num_classes", 0) is None:
        cfg.dataset.num_classes = count_classes(parts.train.dataset)
        if cfg.dataset.num_classes is None:
            raise InputError("dataset.num_classes=null: this dataset has no classes or targets to count; set it")
    classes, targets = cfg.dataset.get("num_classes"), integer_targets(parts.train.dataset)
    if classes is not None and targets is not None and int(targets.max()) >= classes:
        raise InputError(f"dataset.num_classes={classes}: the targets go up to {int(targets.max())}")
