"""What a run's weights make of single examples: accuracy per class, the confusion matrix and the worst mistakes."""

import base64
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runner.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from runner.job.build import Built

WORST = 10  # how many of the worst mistakes are shown
PIXELS = 96  # of an image's longer side on a page, at most
MOST_CLASSES = 60  # of a matrix on a page; of more the most frequent confusions
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
    """Takes every example of a part through the model.

    Raises:
        InputError: what comes out is no score for each class, or the targets are no classes.
        TooLong: it takes longer than `seconds`.
    """
    import torch

    from runner.batches.nested import length
    from runner.train.steps import to_device

    task, options = built.trainer.task.eval(), built.trainer.options
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
            if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < scores.shape[1]:
                raise InputError(f"{UNUSABLE} below C")
            if matrix is None:
                matrix = torch.zeros(scores.shape[1], scores.shape[1], dtype=torch.int64)
            matrix.index_put_((targets, scores.argmax(dim=1)), torch.tensor(1), accumulate=True)
            # A stream has no indices, and a text a target for each of its tokens: those are known by their own numbers.
            indices = getattr(part, "indices", None) if length(batch) == len(targets) else None
            found = worst_of(scores, targets, inputs_of(batch, len(targets)), indices, done)
            worst = sorted([*worst, *found], key=lambda one: one.of_target)[:WORST]
            done += len(targets)
            if time.monotonic() > until:
                raise TooLong
    if matrix is None:
        raise InputError(f"{UNUSABLE}; there is no example")
    names = [str(name) for name in getattr(part.dataset, "classes", range(len(matrix)))]
    names = [name if name.strip() else repr(name) for name in names]  # a text's classes are characters
    names += [str(number) for number in range(len(names), len(matrix))]
    noun = "targets" if done > len(getattr(part, "indices", range(done))) else "examples"
    return Confusion(names, matrix.tolist(), int(matrix.sum() - matrix.trace()), worst, noun)


def inputs_of(batch: Any, count: int) -> Any:
    """What a batch gives the model, where it begins with a tensor of so many examples; else None."""
    first: Any = batch[0] if isinstance(batch, (list, tuple)) and batch else None
    return first if hasattr(first, "dim") and first.dim() > 0 and len(first) == count else None


def worst_of(scores: "Tensor", targets: "Tensor", data: Any, indices: Any, before: int) -> list[Mistake]:
    """The worst mistakes of one batch, whose first example is number `before` of the part."""
    predicted, probabilities = scores.argmax(dim=1), scores.softmax(dim=1)
    of_target = probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
    wrong = (predicted != targets).nonzero().squeeze(1)
    found = []
    for at in wrong[of_target[wrong].argsort(stable=True)][:WORST].tolist():
        guess = int(predicted[at])
        example = before + at if indices is None else int(indices[before + at])
        image = None if data is None else data[at].cpu()
        chances = float(of_target[at]), float(probabilities[at, guess])
        found.append(Mistake(example, int(targets[at]), guess, *chances, image))
    return found


# ------------------------------------------------------------------------------------------------------------ a page


def blocks(found: Confusion, what: str, dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The blocks of a page.

    Args:
        what: which part, and by which weights.
        dataset: the run's `dataset` config, whose mean and std the images were brought to.
    """
    total, names = sum(map(sum, found.counts)), found.names
    said = [f"{what}: {total - found.mistakes:,} of {total:,} {found.noun} are right, {found.mistakes:,} wrong."]
    shares = [(name, *found.right_of(at)) for at, name in enumerate(names) if sum(found.counts[at])]
    shares.sort(key=lambda one: one[1] / one[2])
    more = f"; the {MOST_CLASSES} worst of {len(shares)}" if len(shares) > MOST_CLASSES else ""
    bars = [[name, right / of, f"{right / of:.4f}  ({right} of {of})"] for name, right, of in shares[:MOST_CLASSES]]
    classes = {"title": f"accuracy per class{more}", "bars": bars, "most": 1}
    first: dict[str, Any] = {"kind": "examples", "heading": "Confusion", "classes": classes, "lines": said}
    if len(names) <= MOST_CLASSES:
        first["matrix"] = {"names": names, "counts": found.counts}
    else:
        cells = [(n, t, g) for t, row in enumerate(found.counts) for g, n in enumerate(row) if n and t != g]
        pairs = [[f"{names[t]}, taken for {names[g]}", n, str(n)] for n, t, g in sorted(cells, reverse=True)[:30]]
        first["pairs"] = {"title": "most frequent confusions", "bars": pairs}
    return [first, *([images(found, dataset)] if found.worst else [])]


def images(found: Confusion, dataset: Mapping[str, Any]) -> dict[str, Any]:
    items = [
        {
            "example": f"{found.noun[:-1]} {one.example}",
            "target": found.names[one.target],
            "guess": found.names[one.guess],
            "pTarget": f"{one.of_target:.4f}",
            "pGuess": f"{one.of_guess:.4f}",
            "src": png_of(one.input, dataset),
        }
        for one in found.worst
    ]
    said = [
        f"The {len(items)} of {found.mistakes:,} whose own class has the lowest probability, the worst first;"
        " with each class its probability."
    ]
    if not any(item["src"] for item in items):
        said.append("The examples are no images of 1 or 3 channels, so there is nothing to draw.")
    return {"kind": "images", "heading": "Worst mistakes", "items": items, "lines": said}


def png_of(data: Any, dataset: Mapping[str, Any]) -> str | None:
    """An input (1 or 3, H, W) as a PNG in a data: address; None where it is no image.

    Where the config says by which mean and std it was brought to this form, that is undone; else its lowest value is
    black and its highest white.
    """
    import torch
    from PIL import Image

    if data is None or data.dim() != 3 or data.shape[0] not in (1, 3) or min(data.shape[1:]) < 2:
        return None
    data = data.float().nan_to_num()
    mean, std = (channels(dataset.get(key), data.shape[0]) for key in ("mean", "std"))
    if mean is not None and std is not None:
        data = data * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    else:
        data = (data - data.min()) / (data.max() - data.min()).clamp(min=1e-12)
    pixels = (data.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((PIXELS, PIXELS))
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def channels(value: Any, count: int) -> list[float] | None:
    """A mean or std of the config, one for each channel."""
    values: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, count) or not all(isinstance(one, (int, float)) for one in values):
        return None
    return [float(values[0])] * count if len(values) == 1 else [float(one) for one in values]
