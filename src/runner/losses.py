"""Losses on raw scores. Each takes output (N, C) and target (N,) of class indices, and returns the batch's mean.

Targets that are `ignore_index` do not count. A target for each pixel (N, ...) has scores (N, C, ...).

A loss, of ours or of yours, may have a method `size(output, target)`: what its mean is over, where that is not the
examples, as a number or a tensor of one number. It weights the batch in an epoch's mean, in an evaluation and in
`trainer.accumulate`, so that the size of the batches changes no figure. NLL here is the example to copy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = Sequence[float] | Mapping[Any, float] | str | None  # one factor a class; "balanced" where a config is filled
IGNORED = -100  # torch's own ignore_index
COUNTED_IN_PYTHON = 512  # targets: a small batch is counted in a third of the time of torch's calls


def _as_weight(weight: Weights, name: str = "weight") -> Tensor | None:
    if weight is None:
        return None
    if isinstance(weight, (str, Mapping)):
        raise ValueError(f"{name}={weight}: must be a list here; what a config says by a word or by names is filled in")
    made = torch.tensor(list(weight), dtype=torch.float32)
    if not len(made) or not bool((made >= 0).all()) or not bool(made.isfinite().all()) or not bool(made.any()):
        raise ValueError(f"{name}={list(weight)}: must hold one factor a class, none below 0 and not all of them 0")
    return made


def weight_of(target: Tensor, weight: Tensor | None = None, ignored: int = IGNORED) -> Tensor | int:
    """The sum of the weights (C numbers; None: 1 each) of all targets that are not `ignored`; on their device."""
    if weight is None and (count := target.numel()) <= COUNTED_IN_PYTHON and target.is_cpu:
        return count - (target if target.dim() == 1 else target.flatten()).tolist().count(ignored)
    target = target.long()  # bytes would be a mask, and hold no -100
    is_counted = target != ignored
    return is_counted.sum() if weight is None else (weight[target.where(is_counted, 0)] * is_counted).sum()


class NLL(nn.Module):
    """Negative log likelihood of log_softmax(output), weighted by class where `weight` (C numbers) is given.

    As in torch, the mean is over the weights of the targets.
    """

    weight: Tensor | None

    def __init__(self, weight: Weights = None, ignore_index: int = IGNORED) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.register_buffer("weight", _as_weight(weight))  # a buffer: it follows the model's device

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        scores = F.log_softmax(output, dim=1)
        return F.nll_loss(scores, target, weight=self.weight, ignore_index=self.ignore_index)

    def size(self, output: Tensor, target: Tensor) -> Tensor | int:
        return weight_of(target, self.weight, self.ignore_index)


class CrossEntropy(nn.CrossEntropyLoss):
    """torch's CrossEntropyLoss with `weight` as a plain list of C numbers."""

    def __init__(self, weight: Weights = None, label_smoothing: float = 0.0, ignore_index: int = IGNORED) -> None:
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing={label_smoothing}: must be between 0 and 1")
        super().__init__(weight=_as_weight(weight), ignore_index=ignore_index, label_smoothing=label_smoothing)


class Focal(nn.Module):
    """Focal loss, mean of -(1 - p)^gamma log p over the targets, p being the probability of the target.

    Source: Lin et al., "Focal Loss for Dense Object Detection", 2017, equation 5 (`weight` is its alpha, by class).
    With gamma 0 and no weight it is the cross entropy.
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Weights = None, ignore_index: int = IGNORED) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"gamma={gamma}: must not be negative")
        self.gamma, self.ignore_index = gamma, ignore_index
        self.register_buffer("weight", _as_weight(weight))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        is_counted = target != self.ignore_index
        known = target.where(is_counted, 0)
        log_p = F.log_softmax(output, dim=1).gather(1, known.unsqueeze(1)).squeeze(1)
        losses = -((1 - log_p.exp()) ** self.gamma) * log_p
        if self.weight is not None:
            if len(self.weight) != output.shape[1]:  # one too many would be taken without a word
                raise ValueError(f"weight: holds {len(self.weight)} factors, and there are {output.shape[1]} classes")
            losses = losses * self.weight[known]
        return losses.where(is_counted, 0).sum() / is_counted.sum()  # of no targets NaN, as torch's

    def size(self, output: Tensor, target: Tensor) -> Tensor | int:
        return weight_of(target, None, self.ignore_index)


class OneHotMSE(nn.Module):
    """Mean squared error between the raw scores and the one-hot target, over targets and classes."""

    def __init__(self, ignore_index: int = IGNORED) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        is_counted = target != self.ignore_index
        wanted = F.one_hot(target.where(is_counted, 0), output.shape[1]).movedim(-1, 1).to(output.dtype)
        off = output.where(is_counted.unsqueeze(1), wanted)
        return F.mse_loss(off, wanted) / (is_counted.sum() / target.numel())  # of all, that is exactly 1

    def size(self, output: Tensor, target: Tensor) -> Tensor | int:
        return weight_of(target, None, self.ignore_index)


class BCE(nn.BCEWithLogitsLoss):
    """Binary cross entropy of raw scores (N, K) and K labels of 0 or 1 each (N, K), a mean over all labels.

    Class indices (N,) are the label that is 1, of K; of a single score (N, 1) they are the label.

    Args:
        pos_weight: K factors, of the labels that are 1.
    """

    def __init__(self, pos_weight: Weights = None) -> None:
        super().__init__(pos_weight=_as_weight(pos_weight, "pos_weight"))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return super().forward(output, as_labels(output, target).to(output.dtype))

    def size(self, output: Tensor, target: Tensor) -> int:
        return output.numel()


def as_labels(output: Tensor, target: Tensor) -> Tensor:
    """A label for each score (N, K); of class indices (N,), 1 for the class and 0 for the others."""
    if target.dim() != output.dim() - 1:
        return target
    if output.shape[1] == 1:
        return target.unsqueeze(1)
    return target if target.is_floating_point() else F.one_hot(target.long(), output.shape[1]).movedim(-1, 1)
