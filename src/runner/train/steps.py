"""The two things that take batches: train_step and evaluate. Free functions of all they use."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from runner.batches import nested
from runner.batches.loaders import Loader
from runner.errors import InputError
from runner.seeding import derive, isolated
from runner.tasks import Step
from runner.tasks.sizes import Size
from runner.train.precision import Precision


class MeanLoss:
    """The mean loss of up to num_batches batches, each weighted by what its own loss is a mean over. A batch of size 0
    (all of its targets ignored) has no loss.

    What is on a device stays there until it is asked for.
    """

    def __init__(self, num_batches: int, device: torch.device) -> None:
        self.losses: list[float | None] = []  # None: lies in `measured`
        self.sizes: list[float | None] = []
        self.measured = None if device.type == "cpu" else torch.zeros(2, num_batches, device=device)

    def add(self, loss: Tensor, size: Size) -> None:
        if self.measured is None:
            self.losses.append(float(loss))
            self.sizes.append(float(size))
            return
        for row, number, known in ((0, loss, self.losses), (1, size, self.sizes)):
            if isinstance(number, Tensor):
                self.measured[row, len(known)] = number.detach()
            known.append(None if isinstance(number, Tensor) else float(number))

    @property
    def count(self) -> int:
        """Batches added."""
        return len(self.losses)

    def values(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """(losses, sizes) of the batches start to stop, fp64 on the CPU. Synchronises."""
        found = []
        for row, known in enumerate((self.losses[start:stop], self.sizes[start:stop])):
            if self.measured is not None and None in known:
                measured = self.measured[row, start:stop].tolist()
                known = [m if number is None else number for number, m in zip(known, measured, strict=True)]
            found.append(torch.tensor(known, dtype=torch.float64))
        return found[0], found[1]

    def compute(self, start: int = 0, stop: int | None = None) -> tuple[float, int | None]:
        """The mean over the batches start to stop, and the first of them whose loss is not finite. Synchronises."""
        losses, sizes = self.values(start, self.count if stop is None else stop)
        is_counted = sizes != 0
        bad = (~losses.isfinite() & is_counted).nonzero()
        first_bad = start + int(bad[0]) if len(bad) else None
        if not bool(is_counted.any()):
            return float("nan"), first_bad
        return float((losses.where(is_counted, 0.0) * sizes).sum() / sizes.sum()), first_bad

    def state_dict(self) -> dict[str, Tensor]:
        losses, sizes = self.values(0, self.count)
        return {"losses": losses, "loss_sizes": sizes}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.losses, self.sizes = state["losses"].tolist(), state["loss_sizes"].tolist()


@dataclass(frozen=True)
class StepOptions:
    """How a batch is computed: apart from rounding, only grad_clip changes what a step does.

    Args:
        grad_clip: the highest norm of the whole gradient, or absolute value of each number in it; None: no bound.
        accumulate: pieces that a batch is computed in, one after the other, each weighted by what its loss is a mean
            over. A layer that looks at the whole batch (batch norm) sees a piece.
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


def to_device(batch: Any, device: torch.device, channels_last: bool = False) -> Any:
    """A batch of any nesting on the device; copies from pinned memory do not wait."""
    if channels_last or type(batch) not in (tuple, list) or len(batch) != 2:
        return nested.moved(batch, device, channels_last)
    data, target = batch
    if not isinstance(data, Tensor) or not isinstance(target, Tensor):
        return nested.moved(batch, device, channels_last)
    return data.to(device, non_blocking=True), target.to(device, non_blocking=True)  # the usual batch, in one call


def train_step(task: nn.Module, optimizer: Optimizer, batch: Any, options: StepOptions) -> Step:
    """One optimizer step on a batch; returns what the task made of it, detached, on the device."""
    optimizer.zero_grad()
    precision = options.precision
    parts = nested.pieces(batch, options.accumulate) if options.accumulate > 1 else ()
    if len(parts) > 1:
        whole = OfPieces(parts)
        for part in parts:
            with precision.autocast:
                step = Step(*task(part))
            if (loss := whole.add(step, part)) is not None:
                precision.scaled(loss).backward()  # type: ignore[no-untyped-call]
        if not whole.losses:  # nothing counts: what torch makes of that
            precision.scaled(step.loss).backward()  # type: ignore[no-untyped-call]
            whole.losses.append(step.loss.detach())
        step = whole.finished(task)
    else:
        with precision.autocast:
            loss, size, outputs, targets = task(batch)
        (loss if precision.scaler is None else precision.scaled(loss)).backward()
        outputs = outputs.detach() if isinstance(outputs, Tensor) else nested.mapped(Tensor.detach, outputs)
        step = Step(loss.detach(), size.detach() if isinstance(size, Tensor) else size, outputs, targets)
    if options.grad_clip is not None:
        precision.unscale(optimizer)
        clip_gradient(task, options.grad_clip, options.grad_clip_by)
    if precision.scaler is None:
        optimizer.step()
    else:
        precision.step(optimizer)
    return step


class OfPieces:
    """The gradient and the Step of a whole batch, out of its pieces.

    The loss of all is sum(loss x size) / sum(size), and the last size is known after the first gradient. So each piece
    is weighted as if all had the first one's size per example, and what that is off by is made good in the end: it is
    exactly 1 where it is so. A size that is a tensor is waited for: a piece of size 0 has no loss and no gradient.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self.examples = sum(nested.length(part) for part in parts)
        self.total, self.as_first = 0.0, 0.0  # the sum of the sizes, and what it is if all are as the first one
        self.losses: list[Tensor] = []
        self.given: list[tuple[Any, Any]] = []

    def add(self, step: Step, part: Any) -> Tensor | None:
        """The weighted loss of a piece, whose gradient is its share of the whole; None: it counts for nothing."""
        # a CUDA graph's next piece overwrites its output
        self.given.append((nested.mapped(lambda tensor: tensor.detach().clone(), step.outputs), step.targets))
        size = float(step.size.detach() if isinstance(step.size, Tensor) else step.size)
        if size == 0:
            return None
        if not self.losses:
            self.as_first = self.examples * (size / nested.length(part))
        loss = step.loss * (size / self.as_first)
        self.losses.append(loss.detach())
        self.total += size
        return loss

    def finished(self, task: nn.Module) -> Step:
        """The Step of all; the task's gradients become those of the whole batch."""
        mean, off = torch.stack(self.losses).sum(), self.as_first / self.total if self.total else 1.0
        if off != 1:
            mean = mean * off
            for parameter in task.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(off)
        outputs, targets = (nested.joined(each) for each in zip(*self.given, strict=True))
        return Step(mean, self.total, outputs, targets)


def clip_gradient(task: nn.Module, bound: float, by: str) -> None:
    if by == "norm":
        nn.utils.clip_grad_norm_(task.parameters(), bound)
    else:
        nn.utils.clip_grad_value_(task.parameters(), bound)


def evaluate(
    task: nn.Module,
    loader: Loader,
    metrics: Mapping[str, Any],
    device: torch.device,
    options: StepOptions,
    seed: int,
    after_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The mean loss over all that it is a mean over, and every metric, in eval mode.

    Args:
        seed: what a model draws while it is evaluated follows from it alone; the generators are put back.
        after_batch: called after each batch; what it raises ends the evaluation.
    """
    with isolated(derive(seed, "evaluate"), device), torch.no_grad(), eval_mode(task):
        mean_loss = MeanLoss(len(loader), device)
        for metric in metrics.values():
            metric.reset()
        for batch in loader.batches():
            batch = to_device(batch, device, options.channels_last)
            with options.precision.autocast:
                loss, size, outputs, targets = task(batch)
            mean_loss.add(loss, size)
            for metric in metrics.values():
                metric.update(outputs, targets)
            after_batch()
        return {"loss": mean_loss.compute()[0], **computed(metrics)}


@contextmanager
def eval_mode(task: nn.Module) -> Iterator[None]:
    """The task is in eval mode while the body runs; then every layer's own mode is put back."""
    modes = [(module, module.training) for module in task.modules()]
    task.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


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
