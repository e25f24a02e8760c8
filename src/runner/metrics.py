"""Metrics with torchmetrics' protocol: update(output, target), compute(), reset(), state_dict, to(device)."""

import re
from typing import Any, Protocol

import torch
from torch import Tensor

from runner.errors import InputError

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
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Metric(Protocol):
    """What the Trainer calls; a torchmetrics.Metric has it already. compute() gives one number.

    An attribute `higher_is_better` (True or False) says which of its values is the best.
    """

    def update(self, output: Tensor, target: Tensor, /) -> Any: ...
    def compute(self) -> Any: ...
    def reset(self) -> Any: ...


class Accuracy:
    """The fraction of examples whose target is among the top_k highest of output (N, C); target is (N,).

    The counts stay on the device until compute() is called.

    Raises:
        InputError: other shapes, or targets that are not integers: their share of equal numbers means nothing.
    """

    higher_is_better = True

    def __init__(self, top_k: int = 1) -> None:
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: must be at least 1")
        self.top_k = top_k
        self.correct = torch.zeros((), dtype=torch.int64)
        self.total = 0

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
        if self.top_k == 1:
            self.correct += (output.argmax(dim=1) == target).sum()
        else:
            top = output.topk(min(self.top_k, output.shape[1]), dim=1).indices
            self.correct += (top == target.unsqueeze(1)).sum()
        self.total += len(target)

    def compute(self) -> float:
        return self.correct.item() / self.total if self.total else float("nan")

    def reset(self) -> None:
        self.correct = torch.zeros_like(self.correct)
        self.total = 0

    def state_dict(self) -> dict[str, Any]:
        return {"correct": self.correct.clone(), "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.correct = state["correct"].to(self.correct.device)
        self.total = state["total"]


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
    if hasattr(metric, "_update_count"):  # torchmetrics would warn that compute() comes before update()
        metric._update_count = max(1, metric._update_count)
    prepare(metric, device)
