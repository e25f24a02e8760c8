"""The two things that know a batch: train_step and evaluate. Free functions of all they use."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.errors import InputError

Criterion = Callable[[Any, Any], Tensor]


class MeanLoss:
    """The mean loss over the examples of up to num_batches batches; on the device until it is asked for."""

    def __init__(self, num_batches: int, device: torch.device) -> None:
        self.losses = torch.zeros(num_batches, dtype=torch.float32, device=device)
        self.sizes = torch.zeros(num_batches, dtype=torch.int64)  # examples in each batch, on the CPU
        self.count = 0  # batches added

    def add(self, loss: Tensor, size: int) -> None:
        self.losses[self.count] = loss
        self.sizes[self.count] = size
        self.count += 1

    @property
    def examples(self) -> int:
        return int(self.sizes[: self.count].sum())

    def compute(self, start: int = 0) -> tuple[float, int | None]:
        """The mean over the batches from `start` on, and the first of them whose loss is not finite. Synchronises."""
        losses = self.losses[start : self.count].cpu().double()
        sizes = self.sizes[start : self.count]
        bad = (~losses.isfinite()).nonzero()
        first_bad = start + int(bad[0]) if len(bad) else None
        return float((losses * sizes).sum() / sizes.sum()) if len(losses) else float("nan"), first_bad

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self.losses[: self.count].cpu(), "sizes": self.sizes[: self.count].clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.count = len(state["losses"])
        self.losses[: self.count] = state["losses"].to(self.losses.device)
        self.sizes[: self.count] = state["sizes"]


def to_device(batch: Any, device: torch.device) -> tuple[Any, Any]:
    """A (data, target) batch on the device; copies from pinned memory do not wait."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(f"dataset: a batch must be a pair (data, target), got {type(batch).__name__}")
    data, target = batch
    return data.to(device, non_blocking=True), target.to(device, non_blocking=True)


def train_step(
    model: nn.Module, criterion: Criterion, optimizer: Optimizer, data: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """One optimizer step on a batch; returns the output and the batch's mean loss, both detached, on the device."""
    optimizer.zero_grad()
    output = model(data)
    loss = criterion(output, target)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return output.detach(), loss.detach()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    criterion: Criterion,
    batches: Iterable[Any],
    num_batches: int,
    metrics: Mapping[str, Any],
    device: torch.device,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The mean loss over all examples and every metric, in eval mode; every layer's mode is put back.

    Args:
        after_batch: called after each batch; what it raises ends the evaluation.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    mean_loss = MeanLoss(num_batches, device)
    for metric in metrics.values():
        metric.reset()
    try:
        for batch in batches:
            data, target = to_device(batch, device)
            output = model(data)
            mean_loss.add(criterion(output, target), len(target))
            for metric in metrics.values():
                metric.update(output, target)
            after_batch()
    finally:
        for module, was_training in modes:
            module.training = was_training
    return {"loss": mean_loss.compute()[0], **computed(metrics)}


def computed(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Each metric's value as a float.

    Raises:
        InputError: a metric that gives more than one number.
    """
    values = {}
    for name, metric in metrics.items():
        value = metric.compute()
        if isinstance(value, Tensor) and value.numel() != 1:
            raise InputError(f"metrics.{name}: compute() must give one number, got a tensor of {list(value.shape)}")
        try:
            values[name] = float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"metrics.{name}: compute() must give one number, got {value!r}") from error
    return values
