"""Averages of the weights beside those that train: an exponential moving one (EMA), or that of epochs' ends (SWA).

The arithmetic is torch.optim.swa_utils'. Contract: whether there is an update follows from the step's number alone, and
all that later ones depend on is in the checkpoint. Buffers are those of the weights that train; where batch norms count
what they see, SWA counts it anew for the average, over an epoch's batches.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from runner.torch_adapter import copy_all
from runner.train.freezing import has_running_statistics
from runner.train.hidden import untouched
from runner.train.weights import weights_of

KINDS = ("none", "ema", "swa")


class Averaging:
    """The `averaging` group.

    Args:
        type: none | ema | swa.
        decay: of ema, the share of the average that stays at an update.
        every: steps between two updates of ema, epochs between two of swa.
        start: the epoch (from 1) from which on there is an average, or, below 1, the share of the epochs before it.
        evaluate: instead: all figures are those of the average, once there is one; beside: it has rows of its own.
        epochs: of the run. monitor: the metric that chooses the best epoch.

    Raises:
        ValueError: a value out of range, or a key that does nothing.
    """

    def __init__(
        self,
        task: nn.Module,
        type: str = "none",
        decay: float | None = None,
        every: int = 1,
        start: float = 1,
        evaluate: str = "instead",
        *,
        epochs: int = 1,
        monitor: str = "",
    ) -> None:
        if type not in KINDS:
            raise ValueError(f"type={type}: unknown; choices: {', '.join(KINDS)}")
        if (type == "ema") is (decay is None):
            raise ValueError(f"decay={decay}: is needed by ema, and taken by nothing else")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: must be at least 0 and below 1")
        if not 0 <= start <= epochs or (start > 1 and start != int(start)):
            raise ValueError(f"start={start}: must be an epoch from 1 to {epochs}, or a share of them below 1")
        self.task, self.type, self.every, self.decay = task, type, every, decay
        self.start = int(start) if start >= 1 else math.floor(start * epochs) + 1
        self.is_beside = evaluate == "beside" and type != "none"
        of_average = monitor.partition("/")[0].endswith(f"_{type}")
        self.is_chosen = type != "none" and (not self.is_beside or of_average)  # by the figure that is monitored
        self.parameters = list(task.parameters())
        mean: Any = swa_utils.get_swa_multi_avg_fn if type == "swa" else swa_utils.get_ema_multi_avg_fn
        self.mean = mean() if type != "ema" else mean(decay)
        self.count = 0  # of updates; until the first one the average is what trains
        self.averages: list[Tensor] = []
        self.statistics: dict[str, Tensor] = {}  # of norms, counted for the average

    def update(self, epoch: int, step: int, is_last_batch: bool) -> None:
        """Takes the weights after a step (from 1) of an epoch (from 1) in, where it is due; the first are copied."""
        if self.type == "none" or epoch < self.start:
            return
        if step % self.every if self.type == "ema" else not is_last_batch or (epoch - self.start) % self.every:
            return
        if self.count:
            self.mean(self.averages, self.parameters, self.count)
        else:
            self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.count += 1

    def described(self) -> list[str]:
        """A line for a person: what the average is, and which figures are of it."""
        if self.type == "none":
            return []
        own = f"has rows of its own, val_{self.type}/* beside val/*"
        of = own if self.is_beside else "is what is evaluated"
        what = f"exponential, decay {self.decay}" if self.type == "ema" else "at the ends of epochs"
        return [f"average of the weights ({self.type}, {what}): from epoch {self.start} on; it {of}"]

    def splits(self, split: str) -> list[tuple[str, bool]]:
        """What is evaluated each epoch: its name in the rows, and whether by the average."""
        if self.is_beside:
            return [(split, False), (f"{split}_{self.type}", True)]
        return [(split, self.type != "none")]

    def weights(self, is_average: bool) -> AbstractContextManager[None]:
        """The task has the weights that train, or their average, while the body runs."""
        return self.applied() if is_average and self.count else nullcontext()

    def chosen(self) -> AbstractContextManager[None]:
        """The task has the weights that the monitored figure is of."""
        return self.weights(self.is_chosen)

    @contextmanager
    def applied(self) -> Iterator[None]:
        buffers = [self.task.get_buffer(name) for name in self.statistics]
        tensors = [*self.parameters, *buffers]
        own = [tensor.detach().clone() for tensor in tensors]
        with torch.no_grad():
            copy_all(tensors, [*self.averages, *self.statistics.values()])
        try:
            yield
        finally:
            with torch.no_grad():
                copy_all(tensors, own)

    @property
    def tested(self) -> list[tuple[str, bool]]:
        """Which of the last weights are tested, and whether they are the average: those that are monitored, and the
        others where both are evaluated.
        """
        other = "raw" if self.is_chosen else self.type
        return [("last", self.is_chosen), *([(other, not self.is_chosen)] if self.is_beside else [])]

    def chosen_weights(self) -> dict[str, Any]:
        """A copy of the weights that the monitored figure is of, as weights_of() gives them."""
        with self.chosen():
            return copy.deepcopy(weights_of(self.task))

    @property
    def has_norms(self) -> bool:
        """Whether there are norms that count what they see."""
        return any(map(has_running_statistics, self.task.modules()))

    @property
    def needs_statistics(self) -> bool:
        """Whether the average's norms must count before it is evaluated."""
        return self.type == "swa" and self.count > 0 and self.has_norms

    @contextmanager
    def counting(self, train_mode: Callable[[], None]) -> Iterator[None]:
        """The average's norms count the batches that its body takes through the task, each alike.

        Args:
            train_mode: puts the task into it.
        """
        with self.applied(), untouched(self.task), torch.no_grad():
            train_mode()
            norms: dict[str, Any] = {
                path: m for path, m in self.task.named_modules() if has_running_statistics(m) and m.training
            }
            for norm in norms.values():
                norm.reset_running_stats()
                norm.momentum = None  # the mean of all; untouched() puts it back
            yield
            self.statistics = {
                f"{path}.{name}": buffer.clone()
                for path, norm in norms.items()
                for name, buffer in norm.named_buffers(recurse=False)
            }

    def state_dict(self) -> dict[str, Any]:
        index = {parameter: number for number, parameter in enumerate(self.parameters)}
        names = self.task.named_parameters(remove_duplicate=False)  # of a tied one all
        averages = {name: self.averages[index[parameter]] for name, parameter in names} if self.count else {}
        return {
            "type": self.type,
            "count": self.count,
            "is_chosen": self.is_chosen,
            "parameters": averages,
            "statistics": dict(self.statistics),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        names = {parameter: name for name, parameter in self.task.named_parameters()}
        found = [state["parameters"][names[parameter]] for parameter in self.parameters] if self.count else []
        for average, parameter in zip(found, self.parameters, strict=bool(self.count)):
            if (average.dtype, average.shape) != (parameter.dtype, parameter.shape):
                raise TypeError(f"the average of {names[parameter]} is {average.dtype} {list(average.shape)}")
        self.averages = [average.to(self.parameters[0].device, copy=True) for average in found]
        self.statistics = {
            name: value.to(self.task.get_buffer(name).device, copy=True) for name, value in state["statistics"].items()
        }
