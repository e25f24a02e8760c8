"""What a run leaves as it is, for good or until an epoch begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Freezing:
    """Parameters without a gradient, and norms that keep their running statistics, each with the epoch that thaws it.

    Args:
        parameters, norms: (which, the epoch from 1 at whose beginning it thaws; None: never).
    """

    parameters: Sequence[tuple[nn.Parameter, int | None]] = ()
    norms: Sequence[tuple[nn.Module, int | None]] = ()

    def train(self, task: nn.Module, epoch: int) -> None:
        """Puts a task into train mode, with what is frozen and thawed in an epoch (from 1)."""
        task.train()
        for parameter, thaws in self.parameters:
            parameter.requires_grad_(thaws is not None and epoch >= thaws)
        for norm, thaws in self.norms:
            norm.train(thaws is not None and epoch >= thaws)


def has_running_statistics(module: nn.Module) -> bool:
    """Whether it is a norm that counts what it sees in train mode, as a batch norm does."""
    return "running_mean" in dict(module.named_buffers(recurse=False))
