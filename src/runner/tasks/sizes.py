"""What a loss is a mean over: examples, elements, the weights of its targets, or what it says itself.

Contract: the loss of several batches is the sum of (loss x size) over the sum of sizes, whatever the batches were. A
size is a number, or a tensor of one number that stays on the device. A loss of anybody's may have a method
`size(output, target)` that gives it; without one, a loss that is not torch's is a mean over examples, len(target).
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.errors import InputError
from runner.losses import IGNORED, weight_of

Size = float | Tensor
SizeOf = Callable[[Any, Any], Size]

BY_CLASS: dict[Any, Any] = {nn.CrossEntropyLoss: F.cross_entropy, nn.NLLLoss: F.nll_loss}
if (since_2_15 := getattr(nn, "LinearCrossEntropyLoss", None)) is not None:
    BY_CLASS[since_2_15] = F.cross_entropy  # with a layer of its own before it
BY_ELEMENT = {
    nn.L1Loss: F.l1_loss,
    nn.MSELoss: F.mse_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
    nn.BCELoss: F.binary_cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.KLDivLoss: F.kl_div,  # with reduction=batchmean: by example
    nn.PoissonNLLLoss: F.poisson_nll_loss,
    nn.HingeEmbeddingLoss: F.hinge_embedding_loss,
    nn.SoftMarginLoss: F.soft_margin_loss,
}
MEANS = ("mean", "batchmean")


def size_of(criterion: Any) -> SizeOf:
    """The function of (output, target) that says what this loss is a mean over.

    Raises:
        InputError: a loss that gives a sum, or no single number: its figures would depend on the size of the batches.
    """
    function = criterion.func if isinstance(criterion, functools.partial) else criterion
    for owner in (criterion, function):
        if callable(said := getattr(owner, "size", None)):
            return said  # type: ignore[no-any-return]
    setting = functools.partial(_setting, criterion)
    reduction = setting("reduction", "mean")
    if isinstance(reduction, str) and reduction not in MEANS:
        _refuse("reduction", reduction)
    for key in ("size_average", "reduce"):  # torch's older words for it, still taken by its functions
        if setting(key, None) is False:
            _refuse(key, "false")
    if _is_one_of(criterion, function, BY_CLASS):
        ignored = ignored_by(criterion)
        return lambda output, target: class_size(output, target, setting("weight", None), ignored)
    return elements if _is_one_of(criterion, function, BY_ELEMENT) and reduction == "mean" else examples


def examples(output: Any, target: Any) -> int:
    return len(target)


def elements(output: Any, target: Tensor) -> int:
    return target.numel()


def class_size(output: Tensor, target: Tensor, weight: Tensor | None, ignored: int) -> Size:
    """Of torch's cross entropy and nll: the sum of the weights of the targets that are not ignored.

    Where the targets are probabilities (N, C, ...) torch divides by N x ..., whatever the weights are.
    """
    if target.is_floating_point():
        return target.numel() // target.shape[1] if target.dim() > 1 else 1
    return weight_of(target, weight, ignored)


def ignored_by(*owners: Any) -> int:
    """The target that a loss leaves out, and with it all that counts targets: the `ignore_index` that the first of the
    owners, or a module in it, says by an attribute, an argument or its default; torch's where none says one.
    """
    for owner in owners:
        for part in owner.modules() if isinstance(owner, nn.Module) else (owner,):
            known = getattr(part, "keywords", {}).get("ignore_index", getattr(part, "ignore_index", None))
            if known is None and callable(part) and not isinstance(part, nn.Module):
                with contextlib.suppress(TypeError, ValueError):  # a builtin has no signature
                    parameter = inspect.signature(part).parameters.get("ignore_index")
                    known = None if parameter is None else parameter.default
            if isinstance(known, int):
                return known
    return IGNORED


def ignored_in(task: nn.Module) -> int:
    """As ignored_by(), of a task: by its loss, else by what it holds beside its model."""
    of_model = set(getattr(task, "model", nn.Module()).modules())
    return ignored_by(getattr(task, "criterion", None), *(part for part in task.modules() if part not in of_model))


def check_size(size: Any) -> None:
    """Says what is wrong with a size that a loss of the user's gave. Waits for the device.

    Raises:
        InputError: not one number that is finite and not negative.
    """
    is_one = size.numel() == 1 if isinstance(size, Tensor) else isinstance(size, (int, float))
    if not is_one or not 0 <= float(size) < math.inf:
        raise InputError(f"loss: size(output, target) must give one number, what the loss is a mean over; got {size!r}")


@torch.no_grad()
def is_mean(criterion: Any, size: SizeOf, output: Any, target: Any) -> bool:
    """Whether the loss of these examples follows from the losses of each alone, as it does of a mean over `size`.

    True where it cannot be told: a loss that takes no batch of one, or targets that cannot be taken apart.
    """
    each = alone(criterion, size, output, target)
    return each is None or is_same_mean((criterion(output, target), size(output, target)), each)


@torch.no_grad()
def alone(criterion: Any, size: SizeOf, output: Any, target: Any) -> list[tuple[Any, Any]] | None:
    """The (loss, size) of each example; None where there is none."""
    try:
        each = [(output[i : i + 1], target[i : i + 1]) for i in range(len(target))]
        return [(criterion(*one), size(*one)) for one in each]
    except Exception:
        return None


def is_same_mean(whole: tuple[Any, Any], each: Sequence[tuple[Any, Any]]) -> bool:
    """Whether a (loss, size) of all is the mean of the (loss, size) of each; True where one is not finite."""
    total, parts = float(whole[0]) * float(whole[1]), sum(float(loss) * float(size) for loss, size in each)
    return not (math.isfinite(total) and math.isfinite(parts)) or math.isclose(total, parts, rel_tol=1e-3, abs_tol=1e-5)


def is_sum(whole: Any, each: Sequence[tuple[Any, Any]]) -> bool:
    """Whether a loss of all is the sum of the losses of each."""
    return math.isclose(float(whole), sum(float(loss) for loss, _ in each), rel_tol=1e-3, abs_tol=1e-5)


def is_elementwise(criterion: Any) -> bool:
    """Whether a loss is one of torch's that compare outputs and targets number by number."""
    return _is_one_of(criterion, getattr(criterion, "func", criterion), BY_ELEMENT)


def compares_all(function: Any, loss: Any, output: Tensor, target: Tensor) -> bool:
    """Whether this loss is the function's of each output with each target: what torch makes of (N, 1) and (N,).

    It is so where it is that of the two spread over each other, and not that of the two in one shape.
    """
    paired: list[float] = []
    try:
        shape = (output + target).shape
        spread = float(function(output.expand(shape), target.expand(shape)))
    except Exception:
        return False
    for pair in ((output.reshape(target.shape), target), (output, target.reshape(output.shape))):
        with contextlib.suppress(Exception):
            paired.append(float(function(*pair)))
    is_near = functools.partial(math.isclose, float(loss), rel_tol=1e-4)
    return is_near(spread) and bool(paired) and not any(map(is_near, paired))


def _setting(criterion: Any, key: str, default: Any) -> Any:
    """A setting of a loss: an attribute of a module, or an argument that a partial holds."""
    if isinstance(criterion, functools.partial):
        return criterion.keywords.get(key, default)
    return getattr(criterion, key, default) if isinstance(criterion, nn.Module) else default


def _is_one_of(criterion: Any, function: Any, known: dict[Any, Any]) -> bool:
    """Whether a loss is one of torch's, or computes as its class does."""
    forward = getattr(type(criterion), "forward", None)
    return function in known.values() or any(forward is module.forward for module in known)


def _refuse(key: str, value: str) -> None:
    raise InputError(
        f"loss.{key}={value}: does not give the mean over a batch, and so other figures with other sizes of batches;"
        f" take the mean; choices: {', '.join(MEANS) if key == 'reduction' else 'leave it out'}"
    )
