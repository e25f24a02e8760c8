"""The group task, and what a new run finds out about them before it trains: that they fit the data."""

import inspect
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from runner.batches import nested
from runner.batches.loaders import Loader
from runner.config.checks import LATER, complaint, locate
from runner.errors import InputError
from runner.groups.instantiate import containers, instantiate
from runner.groups.mistakes import refuse_spread
from runner.metrics import can_be_saved
from runner.seeding import isolated
from runner.storage.plain import plain
from runner.tasks import Step, Supervised, sizes
from runner.train import precision
from runner.train.hidden import untouched
from runner.train.steps import StepOptions, to_device
from runner.values import hints_of, shown

log = logging.getLogger("runner")

EXAMPLES = 8  # that show whether a loss is a mean
GIVEN = ("model", "criterion", "loss", "dataset")  # what a task's constructor is given, where it asks for it


def make_task(
    cfg: DictConfig,
    model: nn.Module,
    criterion: Any,
    dataset: Any,
    where: torch.device,
    open_model: Callable[[Path, str], nn.Module],
) -> nn.Module:
    """The task, on the device: its constructor gets what it asks for of GIVEN by name, and the keys of its group.

    Args:
        dataset: the training set.
        open_model: the model of the run in a folder, with its weights "best": what a task's own models are.

    Raises:
        InputError: it is no task, or the loss group does not go with it.
    """
    node = containers(cfg, "task") if "task" in cfg else dict(LATER["task"])
    name, target = node["_target_"], locate(node["_target_"], "task")
    takes = inspect.signature(target).parameters
    given = {"model": model, "criterion": criterion, "loss": criterion, "dataset": dataset}
    if "model" not in takes:
        raise InputError(f"task: {name} must take the model, as its argument `model`")
    takes_loss = [key for key in ("criterion", "loss") if key in takes]
    if takes_loss and criterion is None and takes[takes_loss[0]].default is inspect.Parameter.empty:
        raise InputError(f"loss=none: {name} needs a loss; choose one with loss=CHOICE")
    if not takes_loss and criterion is not None:
        raise InputError(f"loss: {name} has a loss of its own and takes none; choose loss=none")
    node = {key: opened(key, value, hints_of(target).get(key), open_model) for key, value in node.items()}
    factory = instantiate({**node, "_partial_": True}, "task")
    try:
        task = factory(**{key: given[key] for key in GIVEN if key in takes})
    except InputError as error:
        raise InputError(str(error) if ":" in str(error) else f"task: {error}") from error
    except Exception as error:
        raise InputError(complaint("task", name, error, node)) from error
    if not isinstance(task, nn.Module):
        raise InputError(f"task: {name} must be a torch.nn.Module, got {type(task).__name__}")
    if not isinstance(getattr(task, "model", None), nn.Module):
        raise InputError(f"task: {name} must keep the model, as self.model")
    return task.to(where)


def opened(key: str, value: Any, hint: Any, open_model: Callable[[Path, str], nn.Module]) -> Any:
    """A key of the task; where its constructor declares a module, the model of the run in the folder that is given."""
    if hint is not nn.Module or value is None:
        return value
    if not isinstance(value, str):
        raise InputError(f"task.{key}={shown(value)}: must be the folder of a run, whose model is taken")
    try:
        return open_model(Path(value), "best")
    except InputError as error:
        raise InputError(f"task.{key}={value}: {error}") from error


def is_supervised(task: nn.Module) -> bool:
    """Whether a task does what Supervised does, so that its model and its loss can be looked at one by one."""
    return all(getattr(type(task), name, None) is getattr(Supervised, name) for name in ("forward", "judged"))


def probe(cfg: dict[str, Any], task: nn.Module, loaders: dict[str, Loader], options: StepOptions, new: Any) -> None:
    """Takes two examples of each part through the task, so that parts that do not fit are said at once.

    Nothing that counts is changed: all that the task holds and the generators are put back, no gradient is kept.

    Args:
        cfg: resolved.
        loaders: by the key of what they load; the first is the training part's.
        new: makes a set of metrics to throw away.

    Raises:
        InputError: names the part that refused them.
    """
    device = next((p.device for p in task.parameters()), torch.device("cpu"))
    for index, loader in enumerate(loaders.values()):
        at = Position("dataset")
        try:
            with isolated(0, device), untouched(task), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Using a target size")  # looked at by refuse_spread
                batch = to_device(loader.examples(2), device, options.channels_last)
                at.shapes = shapes_of(batch)
                if index == 0 and options.accumulate > 1:
                    at.part = "trainer.accumulate"
                    nested.length(batch)
                look = look_at_parts if is_supervised(task) else look_at_task
                step = look(cfg, task, batch, options, at, index == 0)
                refuse_spread(getattr(task, "criterion", None), step)
                if index == 0:
                    several = to_device(loader.examples(EXAMPLES), device, options.channels_last)
                    say_no_mean(task, several, options)
                for name, metric in new().items():
                    at.part = f"metrics.{name}"
                    metric.update(step.outputs, step.targets)
                    if can_be_saved(metric):
                        plain({"its state_dict()": metric.state_dict()})
        except InputError as error:
            if at.part.startswith(("metrics.", "trainer.")):
                raise InputError(f"{at.part}: {error}") from error
            raise
        except Exception as error:
            node = OmegaConf.select(OmegaConf.create(cfg), at.part)
            target_name = str(node.get("_target_", "")) if hasattr(node, "get") else ""
            loss = cfg["loss"].get("_target_")
            about = f"; the loss is {loss}" if at.part == "task" and loss else ""
            shapes = f" ({at.shapes}{about})" if at.shapes else ""
            raise InputError(f"{complaint(at.part, target_name, error, node)}{shapes}") from error


class Position:
    """Which part of the config is at work, and the shapes of the batch that it works on."""

    def __init__(self, part: str) -> None:
        self.part, self.shapes = part, ""


def shapes_of(batch: Any) -> str:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor):
        return f"an input of shape {list(batch[0].shape)}"
    found = [f"{name or 'batch'} {list(tensor.shape)}" for name, tensor in nested.tensors_in(batch)]
    return f"a batch of {', '.join(found[:6]) or type(batch).__name__}"


def look_at_parts(
    cfg: dict[str, Any], task: Any, batch: Any, options: StepOptions, at: Position, is_training_part: bool
) -> Step:
    """A supervised task: its model, then its loss; in train mode with gradients where it will be trained on such
    batches, and in eval mode.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(
            f"dataset: a batch must be a pair (data, target), got {type(batch).__name__}; for other batches choose"
            " another task"
        )
    data, target = batch
    for is_training in (True, False) if is_training_part else (False,):
        task.train(is_training)
        at.part = "model"
        with torch.set_grad_enabled(is_training):
            with options.precision.autocast:
                output = precision.as_fp32(task.model(data))
            if not isinstance(output, Tensor):
                raise InputError(
                    f"model: {cfg['model'].get('_target_')} must give one tensor, got {type(output).__name__} in"
                    f" {'train' if is_training else 'eval'} mode; task=auxiliary takes scores and auxiliary scores, and"
                    " what is done with another output is a task of its own"
                )
            at.part = "loss"
            if sizes.is_elementwise(task.criterion):
                refuse_spread(task.criterion, Step(torch.zeros(()), 1, output, target), is_sure=True)
            loss = task.criterion(output, target)
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise InputError(f"loss: must give one number for a batch, a tensor without dimensions; got {shape}")
            size = task.size_of(output, target)
            sizes.check_size(size)
        if loss.requires_grad:
            at.part = "model"
            loss.backward()  # type: ignore[no-untyped-call]  # what was changed in place is found here
            task.zero_grad(set_to_none=True)
    at.part = "loss"
    return Step(loss, size, output, target)


def look_at_task(
    cfg: dict[str, Any], task: Any, batch: Any, options: StepOptions, at: Position, is_training_part: bool
) -> Step:
    """Any other task, in train mode with gradients where it will be trained on such batches, and in eval mode."""
    at.part, name = "task", cfg["task"].get("_target_")
    step: Any = None
    for is_training in (True, False) if is_training_part else (False,):
        task.train(is_training)
        with torch.set_grad_enabled(is_training), options.precision.autocast:
            step = task(batch)
        mode = "train" if is_training else "eval"
        if not isinstance(step, Step):
            raise InputError(
                f"task: {name} must give a runner.tasks.Step(loss, size, outputs, targets), got"
                f" {type(step).__name__} in {mode} mode"
            )
        if not isinstance(step.loss, Tensor) or step.loss.dim() != 0 or not step.loss.is_floating_point():
            got = f"{step.loss.dtype} {list(step.loss.shape)}" if isinstance(step.loss, Tensor) else repr(step.loss)
            raise InputError(
                f"task: {name}: Step.loss must be one number, a floating tensor without dimensions; got {got}"
            )
        if is_training and not step.loss.requires_grad:
            raise InputError(f"task: {name}: Step.loss has no gradient: it depends on no parameter that is trained")
        if is_training:
            step.loss.backward()  # type: ignore[no-untyped-call]  # what was changed in place is found here
            task.zero_grad(set_to_none=True)
        try:
            sizes.check_size(step.size)
        except InputError as error:
            raise InputError(
                f"task: {name}: Step.size must be one number that is finite and not negative, what the loss is a mean"
                f" over; got {step.size!r}"
            ) from error
    return Step(*step)


def say_no_mean(task: Any, batch: Any, options: StepOptions) -> None:
    """A warning where the loss of a batch does not follow from the losses of its examples."""
    task.eval()
    with torch.no_grad(), options.precision.autocast:
        if is_supervised(task):
            data, target = batch
            output = precision.as_fp32(task.model(data))
            with torch.autocast(output.device.type, enabled=False):
                step = task.judged(output, target)
                each = sizes.alone(task.criterion, task.size_of, output, target)
        else:
            step, each = task(batch), alone(task, batch)
    refuse_spread(getattr(task, "criterion", None), step)
    if each is None or sizes.is_same_mean((step.loss, step.size), each):
        return
    is_sum, says = (
        sizes.is_sum(step.loss, each),
        "a method size(output, target)" if is_supervised(task) else "Step.size",
    )
    log.warning(
        "the loss of a batch %s: an evaluation's figure depends on dataloader.eval_batch_size; %s",
        "is the sum of those of its examples" if is_sum else "does not follow from the loss of each example",
        "take the mean" if is_sum else f"a loss that is a mean over something else than examples says so by {says}",
    )


def alone(task: Callable[[Any], Step], batch: Any) -> list[tuple[Any, Any]] | None:
    """The (loss, size) of each example; None where it cannot be told."""
    try:
        each = [task(piece) for piece in nested.pieces(batch, EXAMPLES, least=1)]
        is_drawn = not torch.equal(task(batch).loss, task(batch).loss)  # in eval mode, too
        return None if is_drawn else [(step.loss, step.size) for step in each]
    except Exception:
        return None


def check_smallest_batch(task: Any, loader: Loader, batch_size: int, options: StepOptions) -> None:
    """Asks the model itself, in train mode, where a batch of an epoch is a single example: batch norm refuses.

    Raises:
        InputError: it refuses, with the keys to change.
    """
    device = next((p.device for p in task.parameters()), torch.device("cpu"))
    try:
        with isolated(0, device), torch.no_grad(), untouched(task):
            batch = to_device(loader.examples(1), device, options.channels_last)
            task.train()
            with options.precision.autocast:
                if is_supervised(task):
                    task.model(batch[0])
                else:
                    task(batch)
    except Exception as error:
        raise InputError(
            f"dataloader.batch_size={batch_size}: a batch of an epoch holds a single example, and the model cannot"
            f" train on it ({' '.join(str(error).split())}); choose another size, or dataloader.drop_last=true"
        ) from error
