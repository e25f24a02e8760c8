"""The task of a model and a loss: criterion(model(data), target)."""

from typing import Any

import torch
from torch import Tensor, nn

from runner.errors import InputError
from runner.tasks.sizes import size_of
from runner.tasks.step import Step

HALF = (torch.bfloat16, torch.float16)


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
        if (
            isinstance(output, Tensor)
            and output.dtype not in HALF
            and not torch.is_autocast_enabled(output.device.type)
        ):
            return self.judged(output, target)  # a call less for each batch
        return self.in_fp32(output, target)

    def in_fp32(self, output: Tensor, target: Any) -> Step:
        """What is judged of the model's output, in fp32.

        Raises:
            InputError: the model gives something else than a tensor.
        """
        if not isinstance(output, Tensor):
            raise InputError(
                f"model: must give one tensor, got {type(output).__name__}; scores with auxiliary ones are for"
                " task=auxiliary, anything else for a task of your own (docs/tasks.md)"
            )
        with torch.autocast(output.device.type, enabled=False):
            return self.judged(output.float() if output.dtype in HALF else output, target)

    def judged(self, output: Tensor, target: Any) -> Step:
        return Step(self.criterion(output, target), self.size_of(output, target), output, target)
