"""What is done with a batch, as one module: it owns the model and the loss, their parameters, modes and state.

Contract of a task: any torch.nn.Module whose forward(batch) gives a Step, in train and in eval mode. Its parameters are
trained, its state_dict() and the buffers that it leaves out go into the checkpoints. It is called in the run's
precision (torch.autocast), and draws from torch's global generators only.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from runner.train import hidden
from runner.train.precision import HALF
from runner.train.sizes import Size, size_of


class Step(NamedTuple):
    """What a task makes of a batch."""

    loss: Tensor  # one number: the mean over `size`
    size: Size  # what it is a mean over: examples, tokens, weights, ...; a number, or a tensor of one
    outputs: Any = None  # for the metrics
    targets: Any = None


class Supervised(nn.Module):
    """criterion(model(data), target) of a batch (data, target). The model computes in the run's precision, the loss
    in fp32.

    Args:
        criterion: a module, whose parameters are trained with the model's, or a function.

    Raises:
        InputError: a loss that is not the mean over something.
    """

    def __init__(self, model: nn.Module, criterion: Any) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        self.size_of = size_of(criterion)

    def forward(self, batch: tuple[Any, Any]) -> Step:
        data, target = batch
        output = self.model(data)
        if output.dtype in HALF:
            output = output.float()
        if torch.is_autocast_enabled(output.device.type):
            with torch.autocast(output.device.type, enabled=False):
                return self.judged(output, target)
        return self.judged(output, target)

    def judged(self, output: Tensor, target: Any) -> Step:
        return Step(self.criterion(output, target), self.size_of(output, target), output, target)


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
    for owner in ("model", "criterion"):
        if isinstance(module := getattr(task, owner, None), nn.Module) and f"{owner}_state_dict" in saved:
            module.load_state_dict(saved[f"{owner}_state_dict"])
    own = {name for name in task.state_dict() if name.partition(".")[0] not in ("model", "criterion")}
    rest = saved.get("task_state_dict", {})
    if lost := sorted(own.symmetric_difference(rest)):
        raise RuntimeError(f"the task's {lost[0]} is {'missing' if lost[0] in own else 'not one of its own'}")
    task.load_state_dict(rest, strict=False)
    hidden.load_buffers(task, saved.get("unsaved_buffers", {}))


def as_written(name: str) -> str:
    """A name inside a task as the user knows it: a model's own names, and loss.* for those of the loss."""
    owner, _, rest = name.partition(".")
    return rest if owner == "model" else f"loss.{rest}" if owner == "criterion" else f"task.{name}"
