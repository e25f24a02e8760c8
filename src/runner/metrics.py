"""Metrics with torchmetrics' protocol: update(output, target), compute(), reset(), state_dict, to(device)."""

import math
import re
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from runner.errors import InputError
from runner.losses import IGNORED, as_labels, weight_of

# Of the words in a metric's name: which way is better. What is not here is asked for, not guessed.
LOW = (
    "loss error errors err mae mse rmse msle rmsle mape smape wmape medae perplexity ppl nll wer cer ece brier kl fid"
    " lpips hinge hamming deviance distance divergence bpc bpd regret"
)
HIGH = (
    "accuracy acc f1 f2 fbeta auroc auc rocauc auprc ap map precision recall sensitivity specificity iou miou jaccard"
    " dice r2 psnr ssim bleu rouge meteor chrf mrr ndcg kappa mcc pearson spearman kendall"
)
TURNS_ROUND = "neg negative negated minus inverse"
MOST_EXPONENT = 700.0  # exp() of more is no float
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Metric(Protocol):
    """What the Trainer calls; a torchmetrics.Metric has it already. compute() gives one number.

    An attribute `higher_is_better` (True or False) says which of its values is the best. One whose constructor takes
    `ignore_index` is given the loss's, unless its YAML gives one: what the loss leaves out no metric counts.
    """

    def update(self, output: Tensor, target: Tensor, /) -> Any: ...
    def compute(self) -> Any: ...
    def reset(self) -> Any: ...


class Accuracy:
    """The fraction of targets that are among the top_k highest of output (N, C); target is (N,).

    The counts stay on the device until compute() is called.

    Args:
        ignore_index: a target that does not count.

    Raises:
        InputError: other shapes, or targets that are not integers: their share of equal numbers means nothing.
    """

    higher_is_better = True

    def __init__(self, top_k: int = 1, ignore_index: int | None = None) -> None:
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: must be at least 1")
        self.top_k, self.ignore_index = top_k, IGNORED if ignore_index is None else ignore_index
        self.correct = torch.zeros((), dtype=torch.int64)
        self.total: Tensor | int = 0

    def to(self, device: torch.device) -> "Accuracy":
        self.correct = self.correct.to(device)
        return self

    def update(self, output: Tensor, target: Tensor) -> None:
        is_scores = output.dim() == 2 and output.shape[1] > 1
        if not is_scores or target.dim() != 1 or target.dtype not in INTEGERS:
            raise InputError(
                "Accuracy is for scores (N, C) of two classes or more and integer targets (N,); got scores"
                f" {list(output.shape)} and targets {list(target.shape)} of {str(target.dtype).removeprefix('torch.')};"
                " give another metric, or none: '~metrics.accuracy' trainer.monitor=val/loss"
            )
        ignored = self.ignore_index
        if ignored >= 0:  # a class, that a score may be highest of
            target = target.long()
            target, ignored = target.where(target != ignored, IGNORED), IGNORED
        if self.top_k == 1:
            self.correct += (output.argmax(dim=1) == target).sum()
        else:
            top = output.topk(min(self.top_k, output.shape[1]), dim=1).indices
            self.correct += (top == target.unsqueeze(1)).sum()
        self.total += weight_of(target, None, ignored)

    def compute(self) -> float:
        total = int(self.total)
        return self.correct.item() / total if total else float("nan")

    def reset(self) -> None:
        self.correct = torch.zeros_like(self.correct)
        self.total = 0

    def state_dict(self) -> dict[str, Any]:
        return {"correct": self.correct.clone(), "total": int(self.total)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.correct = state["correct"].to(self.correct.device)
        self.total = state["total"]


class Mean:
    """A metric that is a mean over something: subclasses add to `total` and `count`, which stay on the device."""

    higher_is_better = False

    def __init__(self) -> None:
        self.total, self.count = torch.zeros((), dtype=torch.float64), 0

    def to(self, device: torch.device) -> Any:
        # fp64 where the device has it
        self.total = self.total.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self

    def compute(self) -> float:
        return self.total.item() / self.count if self.count else float("nan")

    def reset(self) -> None:
        self.total, self.count = torch.zeros_like(self.total), 0

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total.clone(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.count = state["total"].to(self.total), state["count"]


class MeanAbsoluteError(Mean):
    """The mean of |output - target| over all numbers; both have one shape.

    Args:
        scale: the unit's size: what a target of 1 stands for, where the targets were standardised.
    """

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale={scale}: must be above 0")
        self.scale = scale

    def update(self, output: Tensor, target: Tensor) -> None:
        refuse_other_shapes("MeanAbsoluteError", output, target)
        self.total += (output - target).abs().sum() * self.scale
        self.count += target.numel()


class R2:
    """The coefficient of determination: 1 - (squared errors) / (squared deviations from the targets' mean).

    Over all numbers of a part together. Of targets that are all equal it is NaN.
    """

    higher_is_better = True

    def __init__(self) -> None:
        # squared errors, sum of targets, sum of their squares: in fp64, since two large numbers are subtracted
        self.sums, self.count = torch.zeros(3, dtype=torch.float64), 0

    def to(self, device: torch.device) -> "R2":
        self.sums = self.sums.to(device, torch.float32 if device.type == "mps" else torch.float64)
        return self

    def update(self, output: Tensor, target: Tensor) -> None:
        refuse_other_shapes("R2", output, target)
        wanted, off = target.to(self.sums.dtype), (output - target).to(self.sums.dtype)
        self.sums += torch.stack([off.square().sum(), wanted.sum(), wanted.square().sum()])
        self.count += target.numel()

    def compute(self) -> float:
        errors, total, squares = self.sums.tolist()
        deviations = squares - total * total / self.count if self.count else 0.0
        return 1 - errors / deviations if deviations > 0 else float("nan")

    def reset(self) -> None:
        self.sums, self.count = torch.zeros_like(self.sums), 0

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.clone(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.count = state["sums"].to(self.sums), state["count"]


class Perplexity(Mean):
    """exp of the mean cross entropy of scores (N, C) against targets (N,) that are not `ignore_index`."""

    def __init__(self, ignore_index: int | None = None) -> None:
        super().__init__()
        self.ignore_index = IGNORED if ignore_index is None else ignore_index

    def update(self, output: Tensor, target: Tensor) -> None:
        self.total += F.cross_entropy(output, target, reduction="sum", ignore_index=self.ignore_index)
        self.count += int((target != self.ignore_index).sum())

    def compute(self) -> float:
        mean = super().compute()
        return math.exp(mean) if mean < MOST_EXPONENT else float("inf") if mean == mean else mean


class LabelAccuracy(Mean):
    """The fraction of labels (N, K) of 0 or 1 that raw scores (N, K) tell by their sign; or class indices (N,)."""

    higher_is_better = True

    def update(self, output: Tensor, target: Tensor) -> None:
        target = as_labels(output, target)
        refuse_other_shapes(type(self).__name__, output, target)
        self.add(output > 0, target > 0.5)

    def add(self, guess: Tensor, label: Tensor) -> None:
        self.total += (guess == label).sum()
        self.count += label.numel()


class LabelF1(LabelAccuracy):
    """The harmonic mean of precision and recall, over all labels together (micro)."""

    def add(self, guess: Tensor, label: Tensor) -> None:
        self.total += 2 * (guess & label).sum()
        self.count += int(guess.sum() + label.sum())


def refuse_other_shapes(name: str, output: Tensor, target: Tensor) -> None:
    """
    Raises:
        InputError: (N,) and (N, 1), which torch would make (N, N) of, or others that differ.
    """
    if output.shape != target.shape:
        raise InputError(
            f"{name} is for outputs and targets of one shape; got {list(output.shape)} and {list(target.shape)}"
        )


def usual_mode(name: str) -> str | None:
    """Whether less ("min") or more ("max") is better of what usually has such a name; None: nobody knows."""
    words = {word for word in re.split(r"[^a-z0-9]+", name.lower()) if word}
    words |= {word.rstrip("0123456789") for word in words}  # acc5, ndcg10
    is_low, is_high = not words.isdisjoint(LOW.split()), not words.isdisjoint(HIGH.split())
    is_low |= name.lower().endswith("loss")
    if is_low == is_high or not words.isdisjoint(TURNS_ROUND.split()):
        return None
    return "min" if is_low else "max"


def can_be_saved(metric: Any) -> bool:
    """Whether a metric's running state can go into a checkpoint inside an epoch."""
    return hasattr(metric, "state_dict") and hasattr(metric, "load_state_dict")


def prepare(metric: Any, device: torch.device) -> Any:
    """Moves a metric to the device, and makes a torchmetrics metric's states persistent (by default none is saved)."""
    if hasattr(metric, "persistent"):
        metric.persistent(True)
    return metric.to(device) if hasattr(metric, "to") else metric


def load_metric(metric: Any, state: dict[str, Any], device: torch.device) -> None:
    """Puts a saved running state back, on the device."""
    metric.load_state_dict(state)
    # A private name of torchmetrics: if it moves, a run that goes on warns that compute() comes before update().
    if hasattr(metric, "_update_count"):
        metric._update_count = max(1, metric._update_count)
    prepare(metric, device)
