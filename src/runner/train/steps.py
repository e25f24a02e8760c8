"""The two things that know a batch: train_step and evaluate. Free functions of all they use."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.errors import InputError
from runner.train.precision import Precision, as_fp32

Criterion = Callable[[Any, Any], Tensor]


class MeanLoss:
    """The mean loss over the examples of up to num_batches batches; on the device until it is asked for."""

    def __init__(self, num_batches: int, device: torch.device) -> None:
        self.losses = torch.zeros(num_batches, dtype=torch.float32, device=device)
        self.sizes: list[int] = []  # examples in each batch

    def add(self, loss: Tensor, size: int) -> None:
        self.losses[len(self.sizes)] = loss
        self.sizes.append(size)

    @property
    def count(self) -> int:
        """Batches added."""
        return len(self.sizes)

    @property
    def examples(self) -> int:
        return sum(self.sizes)

    def compute(self, start: int = 0, stop: int | None = None) -> tuple[float, int | None]:
        """The mean over the batches start to stop, and the first of them whose loss is not finite. Synchronises."""
        stop = self.count if stop is None else stop
        losses = self.losses[start:stop].cpu().double()
        sizes = torch.tensor(self.sizes[start:stop])
        bad = (~losses.isfinite()).nonzero()
        first_bad = start + int(bad[0]) if len(bad) else None
        return float((losses * sizes).sum() / sizes.sum()) if len(losses) else float("nan"), first_bad

    def state_dict(self) -> dict[str, Tensor]:
        return {"losses": self.losses[: self.count].cpu(), "sizes": torch.tensor(self.sizes)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sizes = state["sizes"].tolist()
        self.losses[: self.count] = state["losses"].to(self.losses.device)


@dataclass(frozen=True)
class StepOptions:
    """How a batch is computed: apart from rounding, only grad_clip changes what a step does.

    Args:
        grad_clip: the highest norm of the whole gradient, or absolute value of each number in it; None: no bound.
        accumulate: pieces that a batch is computed in, one after the other. Where a layer or the loss looks at the
            whole batch (batch norm, a loss weighted by class), it sees a piece.
        channels_last: images (N, C, H, W) are laid out as NHWC; the model must be, too.

    Raises:
        ValueError: a value out of range.
    """

    precision: Precision = field(default_factory=Precision)
    grad_clip: float | None = None
    grad_clip_by: str = "norm"
    accumulate: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        clip = self.grad_clip
        if clip is not None and (isinstance(clip, bool) or not isinstance(clip, (int, float)) or not clip > 0):
            raise ValueError(f"grad_clip={clip}: must be above 0, or null for no bound")
        if self.grad_clip_by not in ("norm", "value"):
            raise ValueError(f"grad_clip_by={self.grad_clip_by}: unknown; choices: norm, value")
        if clip is None and self.grad_clip_by != "norm":
            raise ValueError(f"grad_clip_by={self.grad_clip_by}: needs a grad_clip")
        if isinstance(self.accumulate, bool) or not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise ValueError(f"accumulate={self.accumulate}: must be a whole number of at least 1")


def to_device(batch: Any, device: torch.device, channels_last: bool = False) -> tuple[Any, Any]:
    """A (data, target) batch on the device; copies from pinned memory do not wait."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise InputError(f"dataset: a batch must be a pair (data, target), got {type(batch).__name__}")
    data, target = batch
    data, target = data.to(device, non_blocking=True), target.to(device, non_blocking=True)
    return (data.to(memory_format=torch.channels_last) if channels_last and data.dim() == 4 else data), target


def train_step(
    model: nn.Module,
    criterion: Criterion,
    optimizer: Optimizer,
    data: Tensor,
    target: Tensor,
    options: StepOptions,
) -> tuple[Tensor, Tensor]:
    """One optimizer step on a batch; returns the output and the batch's mean loss, both detached, on the device."""
    optimizer.zero_grad()
    outputs, losses = [], []
    for x, y in pieces(data, target, options.accumulate):
        output, loss = forward_and_backward(model, criterion, options.precision, x, y, len(y) / len(target))
        outputs.append(output)
        losses.append(loss)
    if options.grad_clip is not None:
        options.precision.unscale(optimizer)
        clip_gradient(model, options.grad_clip, options.grad_clip_by)
    options.precision.step(optimizer)
    return (outputs[0], losses[0]) if len(losses) == 1 else (torch.cat(outputs), torch.stack(losses).sum())


def forward_and_backward(
    model: nn.Module, criterion: Criterion, precision: Precision, data: Tensor, target: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of share x the mean loss; returns the output and that loss, detached."""
    with precision.autocast():
        output = model(data)
    output = as_fp32(output)
    loss = criterion(output, target)
    if share != 1:
        loss = loss * share
    precision.backward(loss)
    output = output.detach()
    return (output if share == 1 else output.clone()), loss.detach()  # a CUDA graph's next piece overwrites its output


def pieces(data: Tensor, target: Tensor, count: int) -> Iterable[tuple[Tensor, Tensor]]:
    """A batch cut into up to count pieces, of sizes that differ by one at most and of at least two examples."""
    count = min(count, len(target) // 2)  # batch norm takes no batch of one
    if count <= 1:
        return [(data, target)]
    return zip(data.tensor_split(count), target.tensor_split(count), strict=True)


def clip_gradient(model: nn.Module, bound: float, by: str) -> None:
    if by == "norm":
        nn.utils.clip_grad_norm_(model.parameters(), bound)
    else:
        nn.utils.clip_grad_value_(model.parameters(), bound)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    criterion: Criterion,
    batches: Iterable[Any],
    num_batches: int,
    metrics: Mapping[str, Any],
    device: torch.device,
    options: StepOptions,
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
            data, target = to_device(batch, device, options.channels_last)
            with options.precision.autocast():
                output = model(data)
            output = as_fp32(output)
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
