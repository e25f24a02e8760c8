"""Lazy layers (torch.nn.LazyLinear, ...) take their shapes from a first batch, and their weights from the seed."""

from typing import Any

import torch
from torch import nn

from runner.batches.loaders import Loader
from runner.config.checks import complaint
from runner.errors import InputError
from runner.groups.task_parts import is_supervised
from runner.seeding import derive, isolated
from runner.train.hidden import untouched
from runner.train.steps import StepOptions, eval_mode, to_device


def lazy_parts(module: nn.Module) -> list[str]:
    """The parameters and buffers that have no shape yet, by name."""
    tensors = (*module.named_parameters(), *module.named_buffers())
    return [name for name, tensor in tensors if nn.parameter.is_lazy(tensor)]


def initialise(task: nn.Module, loader: Loader, options: StepOptions, device: torch.device, seed: int) -> None:
    """Takes two examples through a task that has lazy layers: the same shapes and weights for the same seed, always.

    Raises:
        InputError: the task does not take the examples, or a layer is not reached by them.
    """
    if not lazy_parts(task):
        return
    part = "model" if is_supervised(task) else "task"
    try:
        drawing, body = isolated(derive(seed, "lazy"), device), untouched(task)
        with drawing, body, torch.no_grad(), options.precision.autocast, eval_mode(task):
            batch = to_device(loader.examples(2), device, options.channels_last)
            model: Any = task.model
            model(batch[0]) if part == "model" else task(batch)
            if lazy_parts(task):  # those of a loss
                task(batch)
    except Exception as error:
        name = type(task.model if part == "model" else task).__name__
        raise InputError(complaint(part, name, error)) from error
    if left := lazy_parts(task):
        raise InputError(f"{part}: {left[0].removeprefix('model.')} is lazy, and the first examples do not reach it")
