"""From a composed config to the objects of a run: the only file that instantiates.

Everything is checked before anything slow is made: names and arguments first, then the device, the data, the model.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra.utils
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from torch.optim import Optimizer

from runner import device, metrics, models
from runner.batches.loading import Loader, Loading, Placement
from runner.config.checks import SCHEDULE_KEYS, check, complaint, default_mode, locate
from runner.data import Parts, count_classes, integer_targets, split
from runner.errors import InputError
from runner.seeding import derive, isolated, seed_everything
from runner.storage import checkpoint
from runner.storage.checkpoint import Checkpoints
from runner.train import precision
from runner.train.steps import StepOptions, to_device
from runner.train.trainer import Listeners, Schedule, StopRequest, Trainer

log = logging.getLogger("runner")


@dataclass
class Built:
    """All the objects of one run, and the config that made them, resolved."""

    trainer: Trainer
    parts: Parts
    test_loader: Loader | None
    device: device.Device
    placement: Placement
    config: dict[str, Any]


def build(
    cfg: DictConfig, listeners: Listeners | None = None, stop: StopRequest | None = None, is_new: bool = False
) -> Built:
    """Makes the objects of a run.

    Args:
        cfg: as composed, without hydra.*; what the data decides (num_classes, derived.*) is filled in.
        is_new: two examples are taken through the parts, to see that they fit.

    Raises:
        InputError: whatever is wrong with the config.
    """
    check(cfg)
    where = call(device.resolve, cfg.device, "device")
    cfg.device.threads = where.threads  # the resolved count is part of the result, and so of the config
    device.set_deterministic(cfg.deterministic)
    options = make_options(cfg, where.torch)
    loading = call(Loading, {**cfg.dataloader, "collate_fn": make(cfg.dataloader, "collate_fn", "dataloader")})
    checkpoints = call(Checkpoints, cfg.checkpoint, "checkpoint")
    epochs, limit = run_limits(cfg)
    check_accumulate(options.accumulate, loading.batch_size)

    parts = make_parts(cfg)
    fill_classes(cfg, parts)
    augment = make(cfg.dataset, "augment", "dataset") or []
    used = [part for part in (parts.train, parts.val, parts.test) if part is not None]
    placement = call(functools.partial(loading.place, used, augment, where.torch), {}, "dataloader")
    arguments = (cfg.seed, where.torch, limit, placement)
    train_loader = call(functools.partial(loading.training, parts.train, augment, *arguments), {}, "dataloader")
    test_loader = loading.evaluation(parts.test, *arguments) if parts.test else None
    val_loader = loading.evaluation(parts.val, *arguments) if parts.val else None
    eval_loader = val_loader or test_loader
    fill_derived(cfg, parts.eval_split, epochs, len(train_loader))
    resolved = resolve(cfg)

    model = make_model(cfg, where.torch)
    criterion = make(cfg, "loss")
    if isinstance(criterion, nn.Module):
        criterion.to(where.torch)
    optimizer = make_optimizer(cfg, model)
    options.precision.prepare(optimizer)
    schedule = make_schedule(cfg, optimizer)
    trainer = call(
        functools.partial(
            Trainer,
            model,
            criterion,
            optimizer,
            schedule,
            train_loader,
            eval_loader,
            (make_metrics(cfg, where.torch), make_metrics(cfg, where.torch)),
            where.torch,
            seed=cfg.seed,
            epochs=epochs,
            eval_split=parts.eval_split,
            options=options,
            checkpoints=checkpoints,
            listeners=listeners,
            stop=stop,
            config=OmegaConf.to_yaml(OmegaConf.create(resolved)),
        ),
        {key: resolved["trainer"][key] for key in ("monitor", "mode", "log_every")},
        "trainer",
    )
    built = Built(trainer, parts, test_loader, where, placement, resolved)
    if is_new:
        probe(built)
    if mode := cfg.trainer.get("compile"):
        # Each shape gets code of its own: what a shape computes must not depend on the ones that came before.
        model.compile(mode="default" if mode is True else mode, dynamic=False)
    return built


# ------------------------------------------------------------------------------------------------ instantiation


def call(function: Callable[..., Any], node: Mapping[Any, Any], key: str = "dataloader") -> Any:
    """function(**node), with its complaints as InputErrors that begin with the key."""
    arguments = {str(name): value for name, value in node.items()}
    parameters = inspect.signature(function).parameters
    for name in arguments:
        if name not in parameters:
            raise InputError(f"{key}.{name}: nothing takes this key; choices: {', '.join(parameters)}")
    try:
        return function(**arguments)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(complaint(key, "", error)) from error


def make(parent: Any, key: str, path: str = "") -> Any:
    """Instantiates parent[key] with plain lists and dicts. A function that still lacks arguments is meant itself."""
    return instantiate(plain_node(parent, key), f"{path}.{key}" if path else key)


def plain_node(parent: Any, key: str) -> Any:
    """parent[key] as plain, resolved containers."""
    try:
        value = parent.get(key)
        return OmegaConf.to_container(value, resolve=True) if isinstance(value, (DictConfig, ListConfig)) else value
    except OmegaConfBaseException as error:
        raise InputError("; ".join(line.strip() for line in str(error).splitlines() if line.strip())) from error


def instantiate(node: Any, path: str) -> Any:
    """The object that a plain node describes; a list item by item; any other value as it is."""
    if isinstance(node, list):
        return [instantiate(item, f"{path}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    target = node.get("_target_", "")
    try:
        return unwrapped(hydra.utils.instantiate(with_partials(node, path), _convert_="all"))
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from error
        raise InputError(complaint(path, target, cause)) from error


def with_partials(node: Any, path: str) -> Any:
    """The node with `_partial_: true` at every function that still lacks arguments: it is meant itself."""
    if isinstance(node, list):
        return [with_partials(item, f"{path}.{i}") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    marked = {key: with_partials(value, f"{path}.{key}") for key, value in node.items()}
    if "_target_" in node and "_partial_" not in node and lacks_arguments(locate(node["_target_"], path), node):
        marked["_partial_"] = True
    return marked


def lacks_arguments(target: Any, node: Mapping[str, Any]) -> bool:
    """Whether target is a function that needs more than the node gives: a loss or collate function, not a factory."""
    if inspect.isclass(target):
        return False
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return True  # a builtin such as torch.nn.functional's
    return any(
        p.default is p.empty and p.name not in node and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def unwrapped(made: Any) -> Any:
    """Hydra's partial as what it wraps: each call of Hydra's own costs about 0.12 ms."""
    if isinstance(made, functools.partial):
        return functools.partial(made.func, *made.args, **made.keywords) if made.args or made.keywords else made.func
    return made


# ------------------------------------------------------------------------------------------------- the parts


def run_limits(cfg: DictConfig) -> tuple[int, int | None]:
    """The run's epochs, and its batches an epoch at most."""
    epochs, limit = cfg.trainer.epochs, cfg.trainer.limit_batches
    if epochs < 1:
        raise InputError(f"trainer.epochs={epochs}: must be at least 1")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InputError(f"trainer.limit_batches={limit}: must be a whole number of at least 1, or null")
    return (1, 1) if cfg.trainer.dry_run else (epochs, limit)


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


def fill_derived(cfg: DictConfig, eval_split: str, epochs: int, batches_per_epoch: int) -> None:
    """What only the data tells: derived.*, and mode where it is null."""
    with open_dict(cfg):
        cfg.derived.eval_split = eval_split
        cfg.derived.batches_per_epoch = batches_per_epoch
        cfg.derived.run_length.epoch = epochs
        cfg.derived.run_length.batch = epochs * batches_per_epoch
    for node in (cfg.trainer, cfg.scheduler):
        if "monitor" in node and node.get("mode", 0) is None:
            node.mode = default_mode(node.monitor)


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved."""
    return plain_node({"config": cfg}, "config")  # type: ignore[no-any-return]


def make_options(cfg: DictConfig, where: torch.device) -> StepOptions:
    """How a batch is computed. What a config of an older version does not say is as it was then."""
    check_compile(cfg.trainer.get("compile"), where)
    made = call(functools.partial(precision.resolve, device=where), cfg.get("precision", {}), "precision")
    names = ("grad_clip", "grad_clip_by", "accumulate", "channels_last")
    given = {name: cfg.trainer[name] for name in names if name in cfg.trainer}
    return call(functools.partial(StepOptions, made), given, "trainer")  # type: ignore[no-any-return]


def check_accumulate(accumulate: int, batch_size: int) -> None:
    choices = [n for n in range(1, max(1, batch_size // 2) + 1) if batch_size % n == 0]
    if accumulate not in choices:
        raise InputError(
            f"trainer.accumulate={accumulate}: does not divide dataloader.batch_size={batch_size} into pieces of at"
            f" least two examples; choices: {', '.join(map(str, choices))}"
        )


def check_compile(mode: Any, where: torch.device) -> None:
    """Refuses an unknown mode of torch.compile, and a machine without the compiler that it calls."""
    if mode is None or mode is False:
        return
    modes = list(torch._inductor.list_mode_options())
    if mode is not True and mode not in modes:
        raise InputError(f"trainer.compile={mode}: unknown; choices: null, true, {', '.join(modes)}")
    device.check_compiler(where, f"trainer.compile={str(mode).lower()}")


def make_model(cfg: DictConfig, where: torch.device) -> nn.Module:
    """The model on its device, with initial weights from the seed, or from model_weights."""
    seed_everything(derive(cfg.seed, "model"))
    model = make(cfg, "model")
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module, got {type(model).__name__}")
    if (path := initial_weights(cfg)) is not None:
        load_weights(model, path, cfg.strict)
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise InputError("model: lazy layers, which take their shape from the first batch, are not supported")
    if cfg.trainer.get("channels_last"):
        if not any(p.dim() == 4 for p in model.parameters()):
            raise InputError("trainer.channels_last=true: the model has no convolution of images")
        model.to(memory_format=torch.channels_last)
    return model.to(where)


def initial_weights(cfg: DictConfig) -> Path | None:
    """The file that model_weights or init_from names: of a run, its last weights."""
    if cfg.model_weights is not None and cfg.init_from is not None:
        raise InputError(f"init_from={cfg.init_from}: model_weights is given too; choose one")
    if cfg.init_from is None:
        return None if cfg.model_weights is None else Path(cfg.model_weights)
    for name in ("last", "best"):
        path = Path(cfg.init_from, "checkpoints", f"{name}.pt")
        if path.exists():
            return path
    raise InputError(f"init_from={cfg.init_from}: holds no run with a checkpoint")


def load_weights(model: nn.Module, path: Path, strict: bool) -> None:
    """Loads a file's weights and logs what does not fit: missing, unexpected and mis-shaped keys.

    Raises:
        InputError: the file holds no weights; or, if strict, something does not fit.
    """
    given, own = checkpoint.load_weights(path), model.state_dict()
    shaped = [k for k in own if k in given and given[k].shape != own[k].shape]
    report = {
        "missing": [k for k in own if k not in given],
        "unexpected": [k for k in given if k not in own],
        "mis-shaped": [f"{k} ({list(given[k].shape)} for {list(own[k].shape)})" for k in shaped],
    }
    found = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in report.items() if keys)
    if found and strict:
        raise InputError(f"model_weights: {path} does not fit the model; {found}; strict=false takes what fits")
    fitting = {k: v for k, v in given.items() if k in own and k not in shaped}
    if not fitting:
        raise InputError(f"model_weights: nothing in {path} fits the model; {found}")
    model.load_state_dict({**own, **fitting})
    log.info("model_weights: %d of %d tensors from %s%s", len(fitting), len(own), path, f"; {found}" if found else "")


def make_optimizer(cfg: DictConfig, model: nn.Module) -> Optimizer:
    factory = make(cfg, "optimizer")
    if not callable(factory):
        raise InputError(
            "optimizer: must be a `_target_` with `_partial_: true`: the parameters are given at the start"
        )
    target = factory.func if isinstance(factory, functools.partial) else factory
    if inspect.isclass(target) and issubclass(target, Optimizer):
        closure = inspect.signature(target.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise InputError(
                f"optimizer: {target.__name__}'s step needs a closure that evaluates the model again, which this"
                " Trainer's step does not do; choose another optimizer"
            )
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        optimizer = factory(parameters)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(complaint("optimizer", target.__name__, error)) from error
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer: must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def make_schedule(cfg: DictConfig, optimizer: Optimizer) -> Schedule:
    node = plain_node(cfg, "scheduler")
    interval, monitor = node.get("interval", "epoch"), node.get("monitor")
    if interval not in ("epoch", "batch"):
        raise InputError(f"scheduler.interval={interval}: unknown; choices: epoch, batch")
    target = locate(node.get("_target_"), "scheduler")
    parameters = inspect.signature(target).parameters
    node = {k: v for k, v in node.items() if k not in SCHEDULE_KEYS or k in parameters}
    factory = instantiate(node, "scheduler")
    try:
        scheduler = factory(optimizer)
    except Exception as error:
        if isinstance(error, InputError):
            raise
        raise InputError(complaint("scheduler", target.__name__, error)) from error
    step = inspect.signature(scheduler.step).parameters
    needs_metric = any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in step.values())
    if needs_metric and interval == "batch":
        raise InputError(f"scheduler.interval=batch: {target.__name__} needs a metric, which is known once an epoch")
    if needs_metric and monitor is None:
        raise InputError(f"scheduler.monitor: {target.__name__} needs the name of a metric of metrics.jsonl")
    return Schedule(scheduler, interval, monitor if needs_metric else None)


def make_metrics(cfg: DictConfig, where: torch.device) -> dict[str, Any]:
    """A fresh set of the metrics group, by name."""
    made = {}
    for name in cfg.metrics:
        metric = make(cfg.metrics, name, "metrics")
        if name == "loss" or not all(hasattr(metric, method) for method in ("update", "compute", "reset")):
            raise InputError(f"metrics.{name}: must have another name than loss, and update, compute and reset")
        made[name] = metrics.prepare(metric, where)
    return made


def probe(built: Built) -> None:
    """Takes two training examples through the model and the loss, so that parts that do not fit are said at once.

    Nothing that counts is changed: eval mode, no gradients, and the generators are put back.

    Raises:
        InputError: names the part that refused them.
    """
    trainer, part = built.trainer, "dataset"
    try:
        with isolated(0, built.device.torch), torch.no_grad():
            examples = trainer.train_loader.examples(2)
            data, target = to_device(examples, built.device.torch, trainer.options.channels_last)
            part = "model"
            was_training = trainer.model.training
            with trainer.options.precision.autocast():
                output = precision.as_fp32(trainer.model.eval()(data))
            trainer.model.train(was_training)
            part = "loss"
            loss = trainer.criterion(output, target)
            if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
                shape = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise InputError(f"loss: must give one number for a batch, a tensor without dimensions; got {shape}")
    except InputError:
        raise
    except Exception as error:
        target_name = str(built.config[part].get("_target_", ""))
        shapes = f" (an input of shape {list(data.shape)})" if part != "dataset" else ""
        raise InputError(f"{complaint(part, target_name, error)}{shapes}") from error


def describe(built: Built) -> list[str]:
    """The lines that a person sees before the first epoch."""
    trainer, parts = built.trainer, built.parts
    sizes = {"train": parts.train, "val": parts.val, "test": parts.test}
    rows = models.layer_table(trainer.model)
    width = max(len(row["name"]) for row in rows)
    lines = [f"{row['name']:{width}}  {row['type']:18}{row['parameters']:>12,}" for row in rows]
    lines.append(f"{count_parameters(trainer.model):,} parameters")
    precision_type = trainer.options.precision.type
    lines.append(
        f"device {built.device.name}, {precision_type}, {built.device.threads} CPU threads, seed {trainer.seed}"
    )
    lines.append(f"batches from {built.placement.where}: {built.placement.reason}")
    lines.append("examples: " + ", ".join(f"{name} {len(part):,}" for name, part in sizes.items() if part))
    return lines


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
