"""What a run's weights make of single examples: accuracy per class, the confusion matrix and the worst mistakes."""

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from runner.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from runner.job.built import Built

WORST = 10  # how many of the worst mistakes are shown
UNUSABLE = "the confusion matrix needs scores (N, C) and integer targets (N,)"


class TooLong(Exception):
    """The examples take longer than was allowed."""


@dataclass
class Mistake:
    example: int  # its index in the dataset, or its number among the part's targets
    target: int
    guess: int
    of_target: float  # the probability of each
    of_guess: float
    input: Any  # as the model saw it


@dataclass
class Confusion:
    """What was predicted for every example of a part."""

    names: list[str]
    counts: list[list[int]]  # rows: target, columns: predicted
    mistakes: int
    worst: list[Mistake] = field(default_factory=list)  # the least probable targets first
    noun: str = "examples"  # or "targets", of which an example has several

    def right_of(self, target: int) -> tuple[int, int]:
        """How many examples of a class were predicted rightly, of how many."""
        return self.counts[target][target], sum(self.counts[target])


def confusion(built: "Built", loader: Any, part: Any, seconds: float = math.inf) -> Confusion:
    """Takes every example of a part through the model. A target that the loss ignores is left out.

    Raises:
        InputError: what comes out is no score for each class, or the targets are no classes.
        TooLong: it takes longer than `seconds`.
    """
    import torch

    from runner.batches.parts import class_names
    from runner.tasks.sizes import ignored_in
    from runner.train.steps import to_device

    task, options = built.trainer.task.eval(), built.trainer.config.step
    ignored = ignored_in(task)
    matrix: Tensor | None = None
    worst: list[Mistake] = []
    done, until = 0, time.monotonic() + seconds
    with torch.no_grad():
        for batch in loader.batches():
            batch = to_device(batch, built.device.torch, options.channels_last)
            with options.precision.autocast:
                step = task(batch)
            if not isinstance(step.outputs, torch.Tensor) or not isinstance(step.targets, torch.Tensor):
                raise InputError(f"{UNUSABLE}, which this task has not")
            scores, targets = step.outputs.float().cpu(), step.targets.cpu()
            if scores.dim() != 2 or targets.dim() != 1 or targets.is_floating_point() or len(scores) != len(targets):
                raise InputError(UNUSABLE)
            targets = targets.long()  # bytes would be a mask
            is_counted = targets != ignored
            counted = targets[is_counted]
            if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < scores.shape[1]:
                raise InputError(f"{UNUSABLE} below C")
            if matrix is None:
                matrix = torch.zeros(scores.shape[1], scores.shape[1], dtype=torch.int64)
            matrix.index_put_((counted, scores.argmax(dim=1)[is_counted]), torch.tensor(1), accumulate=True)
            found = worst_of(scores, targets, is_counted, inputs_of(batch, len(targets)), done)
            worst = sorted([*worst, *found], key=lambda one: one.of_target)[:WORST]
            done += len(targets)
            if time.monotonic() > until:
                raise TooLong
    if matrix is None:
        raise InputError(f"{UNUSABLE}; there is no example")
    names = class_names(part.dataset) or []
    names = [name if name.strip() else repr(name) for name in names]  # a text's classes are characters
    names += [str(number) for number in range(len(names), len(matrix))]
    # A stream has no indices, and a text a target for each of its tokens: those are known by their own numbers.
    indices = getattr(part, "indices", None)
    is_one_each = indices is None or done == getattr(loader, "num_examples", lambda: len(indices))()
    if indices is not None and is_one_each:
        worst = [replace(one, example=int(indices[one.example])) for one in worst]
    noun = "examples" if is_one_each else "targets"
    return Confusion(names, matrix.tolist(), int(matrix.sum() - matrix.trace()), worst, noun)


def inputs_of(batch: Any, count: int) -> Any:
    """What a batch gives the model, where it begins with a tensor of so many examples; else None."""
    first: Any = batch[0] if isinstance(batch, (list, tuple)) and batch else None
    return first if hasattr(first, "dim") and first.dim() > 0 and len(first) == count else None


def worst_of(scores: "Tensor", targets: "Tensor", is_counted: "Tensor", data: Any, before: int) -> list[Mistake]:
    """The worst mistakes of one batch, whose first target is number `before` of the part."""
    predicted, probabilities = scores.argmax(dim=1), scores.softmax(dim=1)
    of_target = probabilities.gather(1, targets.long().where(is_counted, 0).unsqueeze(1)).squeeze(1)
    wrong = (is_counted & (predicted != targets)).nonzero().squeeze(1)
    found = []
    for at in wrong[of_target[wrong].argsort(stable=True)][:WORST].tolist():
        guess = int(predicted[at])
        image = None if data is None else data[at].cpu()
        chances = float(of_target[at]), float(probabilities[at, guess])
        found.append(Mistake(before + at, int(targets[at]), guess, *chances, image))
    return found
