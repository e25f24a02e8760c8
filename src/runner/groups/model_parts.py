"""What is trained and how: the groups model, optimizer, scheduler and metrics, and a step's options."""

import functools
import inspect
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from runner import device, losses, metrics
from runner.batches.parts import Part, Stream
from runner.config.checks import OPTIMIZER_KEYS, SCHEDULE_KEYS, complaint, locate
from runner.errors import InputError
from runner.groups import walk
from runner.groups.instantiate import call, containers, instantiate, make
from runner.groups.length import planned_epochs
from runner.groups.parameters import make_groups
from runner.schedulers import lambda_lr
from runner.seeding import derive, seed_everything
from runner.storage.weights import read_weights
from runner.torch_adapter import compile_modes
from runner.train import precision
from runner.train.averaging import Averaging
from runner.train.state import Schedule
from runner.train.steps import StepOptions

log = logging.getLogger("runner")


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
    modes = compile_modes()
    if mode is not True and mode not in modes:
        raise InputError(f"trainer.compile={mode}: unknown; choices: null, true, {', '.join(modes)}")
    device.check_compiler(where, f"trainer.compile={str(mode).lower()}")


def make_model(cfg: DictConfig, where: torch.device) -> nn.Module:
    """The model on its device, with initial weights from the seed."""
    seed_everything(derive(cfg.seed, "model"))
    model = make(cfg, "model")
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module, got {type(model).__name__}")
    refuse_empty(model, cfg)
    return model.to(where)


def prepare_model(cfg: DictConfig, model: nn.Module, is_begun: bool = False) -> InputError | None:
    """Gives a model whose shapes are all known the weights of model_weights or init_from, and its layout.

    Args:
        is_begun: the weights are only for a task of one's own that looks at them: that there are none any more is
            returned.
    """
    lost = None
    try:
        is_seen = not is_begun or not str(containers(cfg, "task").get("_target_")).startswith("runner.")
        if is_seen and (path := initial_weights(cfg)) is not None:
            key = "model_weights" if cfg.init_from is None else "init_from"
            load_initial_weights(model, path, cfg.strict, f"{key}={cfg[key]}")
    except InputError as error:
        if not is_begun:
            raise
        lost = error
    if cfg.trainer.get("channels_last"):
        if not any(p.dim() == 4 for p in model.parameters()):
            raise InputError("trainer.channels_last=true: the model has no convolution of images")
        model.to(memory_format=torch.channels_last)
    return lost


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


def refuse_empty(model: nn.Module, cfg: DictConfig) -> None:
    """Refuses a layer without a weight: a width of 0."""
    empty = [name for name, p in model.named_parameters() if not nn.parameter.is_lazy(p) and p.numel() == 0]
    if empty:
        node = containers(cfg, "model")
        zeros = [
            f"model.{k}={v}" for k, v in node.items() if 0 in (v if isinstance(v, list) else [v]) and v is not False
        ]
        raise InputError(f"{', '.join(zeros) or 'model'}: leaves {empty[0]} empty; a width must be at least 1")


def load_initial_weights(model: nn.Module, path: Path, strict: bool, key: str = "model_weights") -> None:
    """Loads a file's weights and logs what does not fit: missing, unexpected and mis-shaped keys.

    Raises:
        InputError: the file holds no weights; or, if strict, something does not fit.
    """
    given, own = read_weights(path, key), model.state_dict()
    shaped = [k for k in own if k in given and given[k].shape != own[k].shape]
    report = {
        "missing": [k for k in own if k not in given],
        "unexpected": [k for k in given if k not in own],
        "mis-shaped": [f"{k} ({list(given[k].shape)} for {list(own[k].shape)})" for k in shaped],
    }
    found = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in report.items() if keys)
    if found and strict:
        raise InputError(f"{key}: {path} does not fit the model; {found}; strict=false takes what fits")
    fitting = {k: v for k, v in given.items() if k in own and k not in shaped}
    if not fitting:
        raise InputError(f"{key}: nothing in {path} fits the model; {found}")
    model.load_state_dict({**own, **fitting})
    log.info("model_weights: %d of %d tensors from %s%s", len(fitting), len(own), path, f"; {found}" if found else "")


def make_optimizer(cfg: DictConfig, task: nn.Module) -> Optimizer:
    """The optimizer of all that can be trained: the model's parameters, then the loss's."""
    node = containers(cfg, "optimizer")
    ours = {key: node.pop(key) for key in OPTIMIZER_KEYS if isinstance(node, dict) and key in node}
    factory = instantiate(node, "optimizer")
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
    parameters: list[Any] = [p for p in task.parameters() if p.requires_grad]
    if ours.get("groups") or ours.get("no_decay"):
        parameters = param_groups(task, factory, node, ours)
    try:
        optimizer = factory(parameters)
    except Exception as error:
        raise InputError(complaint("optimizer", target.__name__, error, containers(cfg, "optimizer"))) from error
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"optimizer: must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def param_groups(task: nn.Module, factory: Any, node: dict[str, Any], ours: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parameters as optimizer.groups and optimizer.no_decay part them, in torch's form."""
    signature = inspect.signature(factory.func if isinstance(factory, functools.partial) else factory)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name: one.default for name, one in signature.parameters.items() if one.kind in kinds and name != "params"}
    known |= {name: value for name, value in node.items() if name in known}
    rules, no_decay = ours.get("groups") or [], ours.get("no_decay") or False
    given = make_groups(task, rules, no_decay, known, lambda options: factory([torch.zeros(1)], **options))
    return [
        {"params": [one.parameter for one in group.members], "says": group.says, **group.options} for group in given
    ]


def make_schedule(cfg: DictConfig, optimizer: Optimizer, is_new: bool = False) -> Schedule:
    """The scheduler of an optimizer.

    Args:
        is_new: its arguments are looked at, and its rates are walked from the run's first to its last.
    """
    node = containers(cfg, "scheduler")
    interval, monitor = node.get("interval", "epoch"), node.get("monitor")
    if interval not in ("epoch", "batch"):
        raise InputError(f"scheduler.interval={interval}: unknown; choices: epoch, batch")
    target = locate(node.get("_target_"), "scheduler")
    parameters = inspect.signature(target).parameters
    node = {k: v for k, v in node.items() if k not in SCHEDULE_KEYS or k in parameters}
    node = with_length(node, "scheduler", cfg.derived, interval)

    def make_it(described: Mapping[str, Any]) -> Any:
        return functools.partial(completed, instantiate(described, "scheduler"))

    rates: walk.Rates = []
    if is_new:
        for group in optimizer.param_groups:
            if not 0 <= float(group["lr"]) < math.inf:
                raise InputError(f"optimizer.lr={group['lr']}: must be finite and not negative")
        walk.check_arguments(target, node)
        rates = walk.walked(target, node, make_it, optimizer, cfg.derived.run_length[interval])
        for line in walk.doubts(target, node, interval, rates):
            log.warning(line)
    try:
        scheduler = make_it(node)(optimizer)
    except InputError:
        raise
    except Exception as error:
        raise InputError(complaint("scheduler", target.__name__, error)) from error
    if not all(callable(getattr(scheduler, name, None)) for name in ("step", "state_dict", "load_state_dict")):
        raise InputError(
            f"scheduler: {target.__name__} must have step(), state_dict() and load_state_dict(): a checkpoint holds it"
        )
    needs_metric = walk.needs_metric(scheduler)
    if needs_metric and interval == "batch":
        raise InputError(f"scheduler.interval=batch: {target.__name__} needs a metric, which is known once an epoch")
    if needs_metric and monitor is None:
        raise InputError(f"scheduler.monitor: {target.__name__} needs the name of a metric of metrics.jsonl")
    return Schedule(scheduler, interval, monitor if needs_metric else None, rates)


def with_length(node: Any, key: str, derived: DictConfig, interval: str) -> Any:
    """A scheduler's node with what its expressions may name, and `_partial_` at the schedulers that it is made of."""
    if not isinstance(node, dict) or "_target_" not in node:
        return node
    if locate(node["_target_"], key) is lambda_lr:
        run, batches = derived.run_length, derived.batches_per_epoch
        known = {"batches_per_epoch": batches, "epochs": run.epoch, "steps": run.batch, "interval": interval}
        node = {**known, **node}
    if isinstance(node.get("schedulers"), list):
        inner = [with_length(n, f"{key}.schedulers.{i}", derived, interval) for i, n in enumerate(node["schedulers"])]
        node = {**node, "schedulers": [{"_partial_": True, **n} if isinstance(n, dict) else n for n in inner]}
    return node


def completed(factory: Callable[..., Any], optimizer: Optimizer, key: str = "scheduler") -> Any:
    """factory(optimizer), and where it is of torch's that are made of `schedulers` (SequentialLR, ChainedScheduler),
    those first, each of the same optimizer.

    Raises:
        InputError: by its key, one of them that cannot be made, or takes a metric, which torch does not hand on;
            milestones that do not rise.
    """
    given = factory.keywords if isinstance(factory, functools.partial) else {}
    if not isinstance(given.get("schedulers"), list):
        return factory(optimizer)
    assert isinstance(factory, functools.partial)
    milestones = given.get("milestones") or []
    if list(milestones) != sorted(set(milestones)):
        raise InputError(f"{key}.milestones={milestones}: must rise: the first schedule ends at the first of them")
    made = []
    for number, one in enumerate(given["schedulers"]):
        at = f"{key}.schedulers.{number}"
        try:
            made.append(completed(one, optimizer, at) if callable(one) else one)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{at}: {error}") from error
        if isinstance(made[-1], ReduceLROnPlateau) or not isinstance(made[-1], LRScheduler):
            wrong, name = type(made[-1]).__name__, factory.func.__name__
            raise InputError(f"{at}: {wrong}: {name} takes schedulers that need no metric")
    return functools.partial(factory.func, **{**given, "schedulers": made})(optimizer=optimizer)


def make_averaging(cfg: DictConfig, task: nn.Module, part: Part | Stream) -> Averaging:
    """The average of a task's weights. What a config of an older version does not say is as it was then: there is none.

    Raises:
        InputError: a value that cannot be, or norms that would have to count over a stream once more.
    """
    epochs, monitor = planned_epochs(cfg), str(cfg.trainer.monitor)
    make_it = functools.partial(Averaging, task, epochs=epochs, monitor=monitor)
    averaging: Averaging = call(make_it, cfg.get("averaging", {}), "averaging")
    if averaging.type == "swa" and isinstance(part, Stream) and averaging.has_norms:
        raise InputError(
            "averaging=swa: counts the statistics of batch norms over the training data once more, and a stream is gone"
            " by then; choose averaging=ema"
        )
    return averaging


def make_metrics(cfg: DictConfig, where: torch.device, ignored: int) -> dict[str, Any]:
    """A fresh set of the metrics group, by name.

    Args:
        ignored: the target that the loss leaves out: a metric whose constructor takes `ignore_index` leaves it out too.
    """
    made = {}
    for name in cfg.metrics:
        node = containers(cfg.metrics, name)
        if isinstance(node, dict) and node.get("ignore_index") is None and takes_ignored(node, f"metrics.{name}"):
            node = {**node, "ignore_index": ignored}
        metric = instantiate(node, f"metrics.{name}")
        if name == "loss" or not all(hasattr(metric, method) for method in ("update", "compute", "reset")):
            raise InputError(f"metrics.{name}: must have another name than loss, and update, compute and reset")
        made[name] = metrics.prepare(metric, where)
    return made


def takes_ignored(node: Mapping[str, Any], path: str) -> bool:
    """Whether a metric's constructor takes `ignore_index`, and has no number of its own for it but torch's -100."""
    try:
        parameter = inspect.signature(locate(node.get("_target_"), path)).parameters.get("ignore_index")
    except (TypeError, ValueError):
        return False
    return parameter is not None and parameter.default in (None, parameter.empty, losses.IGNORED)
