"""A task's weights and state as a checkpoint has them: the model's, the loss's, and what is left."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from runner.errors import InputError
from runner.storage import checkpoint
from runner.storage.plain import restored
from runner.storage.weights import evaluated
from runner.train import hidden


def weights_of(task: nn.Module) -> dict[str, Any]:
    """All that an evaluation depends on, by its key in a checkpoint: the model's, the loss's, and what is left."""
    parts: dict[str, dict[str, Any]] = {"model": {}, "criterion": {}, "task": {}}
    for owner in ("model", "criterion"):
        if isinstance(module := getattr(task, owner, None), nn.Module):
            parts[owner] = module.state_dict()
    rest = {name: value for name, value in task.state_dict().items() if name.partition(".")[0] not in parts}
    weights: dict[str, Any] = {f"{owner}_state_dict": state for owner, state in {**parts, "task": rest}.items()}
    if not rest:
        del weights["task_state_dict"]
    return {**weights, "unsaved_buffers": hidden.buffers(task)}


def load_weights(task: nn.Module, saved: dict[str, Any]) -> None:
    """Puts weights_of() back, out of a checkpoint. An older version's best weights lack those of the loss."""
    saved = restored(saved)  # what is of a class that was not imported when the file was read
    for owner in ("model", "criterion"):
        if isinstance(module := getattr(task, owner, None), nn.Module) and f"{owner}_state_dict" in saved:
            module.load_state_dict(saved[f"{owner}_state_dict"])
    own = {name for name in task.state_dict() if name.partition(".")[0] not in ("model", "criterion")}
    rest = saved.get("task_state_dict", {})
    if lost := sorted(own.symmetric_difference(rest)):
        raise RuntimeError(f"the task's {lost[0]} is {'missing' if lost[0] in own else 'not one of its own'}")
    task.load_state_dict(rest, strict=False)
    hidden.load_buffers(task, saved.get("unsaved_buffers", {}))


@contextmanager
def other_weights(task: nn.Module, weights: dict[str, Any]) -> Iterator[None]:
    """The task has other weights, as weights_of() gives them, while its body runs."""
    own = copy.deepcopy(weights_of(task))
    load_weights(task, weights)
    try:
        yield
    finally:
        load_weights(task, own)


def saved_weights(task: nn.Module, path: Path, step: int | None) -> dict[str, Any]:
    """The weights of a checkpoint that its monitored figure is of.

    Raises:
        InputError: it is of another step.
    """
    state = evaluated(checkpoint.load(path))
    if state["step"] != step:
        raise InputError(f"{path}: is of step {state['step']}, but the best is step {step}")
    return {key: state[key] for key in weights_of(task) if key in state}


def as_written(name: str) -> str:
    """A name inside a task as the user knows it: a model's own names, and loss.* for those of the loss."""
    owner, _, rest = name.partition(".")
    return rest if owner == "model" else f"loss.{rest}" if owner == "criterion" else f"task.{name}"
