"""Mistakes that a run would train on without a word: an error where one is certain, a warning where it is likely.

Contract: nothing that counts is changed. The model is called in eval mode, without gradients, all that it holds and the
generators are put back; the loss is not called. Only a new run is looked at.
"""

import contextlib
import functools
import logging
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner import losses
from runner.batches import nested
from runner.batches.loaders import Loader
from runner.batches.memory import random_transforms
from runner.batches.parts import Part, Parts, class_names, integer_targets, stray_target
from runner.errors import InputError
from runner.seeding import isolated
from runner.tasks import Step
from runner.tasks.sizes import compares_all, ignored_by
from runner.train.hidden import untouched
from runner.train.precision import as_fp32
from runner.train.steps import StepOptions, to_device

log = logging.getLogger("runner")

EXAMPLES = 8  # of the training part, through the model
LABELS = 64  # examples that are read for their labels, where the dataset does not tell them
TOLERANCE = 0.05  # of sums of probabilities, and of their logarithms: a model in bfloat16 rounds to 3 digits
ROWS = 4096  # scores that are looked at: of a segmentation, so many pixels
# What a loss of class indices makes of the model's outputs. Any other loss is left alone.
WITH_SOFTMAX = (losses.NLL, losses.Focal, nn.CrossEntropyLoss, F.cross_entropy)
OF_LOG_PROBABILITIES = (nn.NLLLoss, F.nll_loss)
OF_MARGINS = (nn.MultiMarginLoss, F.multi_margin_loss)
OF_ONE_SCORE_A_CLASS = (*WITH_SOFTMAX, *OF_LOG_PROBABILITIES, *OF_MARGINS, losses.OneHotMSE)


def check_data(cfg: Any, parts: Parts) -> None:
    """Looks at the data alone: what the parts have in common, and what is done to those that are evaluated.

    Raises:
        InputError: parts whose classes differ, or whose targets are no classes.
    """
    evaluated = {name: part for name, part in parts.all.items() if name != "train" and isinstance(part, Part)}
    for name, part in evaluated.items():
        if not part.is_held_out:
            refuse_other_classes(name, part.dataset, parts.train.dataset)
            refuse_other_targets(cfg.dataset.get("num_classes"), name, part)
    drawing = {name: found for name, part in evaluated.items() if (found := random_transforms(part.dataset))}
    if drawing:
        log.warning(
            "dataset.transform: %s draws random numbers, and is done to the examples of %s too; random transforms"
            " of the training examples alone belong into dataset.transform_train or dataset.augment",
            ", ".join(dict.fromkeys(name for found in drawing.values() for name in found)),
            " and ".join(drawing),
        )


def check_shape(shape: Any, loader: Loader) -> None:
    """Holds dataset.input_shape against an example, as the model gets it.

    Raises:
        InputError: it has another shape.
    """
    try:
        with isolated(0, torch.device("cpu")):
            data = loader.examples(1)[0]
    except Exception:
        return  # the probe says which part is to blame
    if isinstance(data, Tensor) and isinstance(shape, list) and list(data.shape[1:]) != shape:
        raise InputError(f"dataset.input_shape={shape}: an example has the shape {list(data.shape[1:])}")


def check_examples(loaders: Mapping[str, Loader | None]) -> None:
    """A warning where the examples of a part hold nothing to tell them apart by.

    Args:
        loaders: by the key of what they load.

    Raises:
        InputError: one of those that are looked at cannot be read.
    """
    for key, loader in loaders.items():
        said = None
        for count in (EXAMPLES, LABELS) if loader is not None else ():  # more of them only where the first look alike
            try:
                with isolated(0, torch.device("cpu")):
                    batch = loader.examples(count)  # type: ignore[union-attr]
            except InputError:
                raise
            except Exception:
                said = None  # the probe says which part is to blame
                break
            data = next((t for _, t in nested.tensors_in(batch) if t.dim() > 1 and t[0].numel() > 1), None)
            if (said := None if data is None or len(data) < 3 else alike(data)) is None:
                break
        if said is not None:
            log.warning("%s: the examples that were looked at %s: are they read as they should be?", key, said)


def alike(data: Tensor) -> str | None:
    """What examples (N, ...) have in common that leaves nothing to learn from; None: nothing."""
    rows = data.flatten(2) if data.dim() > 3 else data.flatten(1)  # of images each channel, which has its own mean
    if bool((rows == rows[..., :1]).all()):
        return "are each of one single value"
    return "are all equal" if bool((data == data[:1]).all()) else None


def refuse_other_classes(name: str, dataset: Any, train: Any) -> None:
    """Refuses an official part whose classes have other names, or another order, than the training set's."""
    own, known = (class_names(d) for d in (dataset, train))
    if own is None or known is None or own == known:
        return
    differing = [*(f"{c!r} only in {name}" for c in own if c not in known)]
    differing += [*(f"{c!r} only in train" for c in known if c not in own)]
    raise InputError(
        f"dataset.{name}: its {len(own)} classes are not the {len(known)} of dataset.train, so the same target would"
        f" mean another class ({', '.join(differing[:3]) or 'the same names in another order'})"
    )


def refuse_other_targets(classes: int | None, name: str, part: Part) -> None:
    """Refuses an official part with a target that is no class."""
    if classes is not None and (most := stray_target(part.dataset, classes)) is not None:
        raise InputError(
            f"dataset.num_classes={classes}: the targets of dataset.{name} go up to {most}, and must be 0"
            f" to {classes - 1}"
        )


def check_outputs(
    cfg: Mapping[str, Any], model: nn.Module, criterion: Any, loader: Loader, part: Part, options: StepOptions
) -> None:
    """Takes a few training examples through the model, and holds the outputs against what the loss takes.

    Args:
        loader: of the training part `part`.

    Raises:
        InputError: a mistake that is certain.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with isolated(0, device), torch.no_grad(), untouched(model):
            data, target = to_device(loader.examples(EXAMPLES), device, options.channels_last)
            with options.precision.autocast:
                output = as_fp32(model.eval()(data))
                half = as_fp32(model(data[: len(data) // 2])) if len(data) > 3 else None
    except Exception:
        return  # the probe says which part is to blame
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or not output.is_floating_point():
        return
    is_class_index = not target.is_floating_point() and target.dtype is not torch.bool
    if not is_class_index or output.dim() < 2 or target.shape != (output.shape[0], *output.shape[2:]):
        return
    rows = output.flatten(2).movedim(1, -1).flatten(0, 1) if output.dim() > 2 else output
    rows = rows[:: -(-len(rows) // ROWS)].double()
    if rows.isfinite().all():
        if output.dim() == 2 and half is not None:
            refuse_normalised_columns(output, half)
        check_rows(criterion, rows)
    if is_one_of(criterion, OF_ONE_SCORE_A_CLASS):
        check_labels(cfg, criterion, output.shape[1], *labels_of(part, loader, target))


def refuse_spread(criterion: Any, step: Step, is_sure: bool = False) -> None:
    """Refuses outputs and targets that torch spreads over each other: of (N, 1) and (N,) it makes N x N pairs.

    Args:
        is_sure: the loss compares just these two, number by number; else it is looked at, and left alone where it may
            be meant so.

    Raises:
        InputError: what to type.
    """
    output, target = step.outputs, step.targets
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.shape == target.shape:
        return
    is_alike = output.shape[:1] == target.shape[:1] and output.numel() == target.numel()
    if not is_sure:
        functions = [criterion] if callable(criterion) else []
        functions += [F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.binary_cross_entropy_with_logits]
        if not is_alike or not any(compares_all(f, step.loss, output, target) for f in functions):
            return
    shapes = f"loss: the outputs are {list(output.shape)} and the targets {list(target.shape)}"
    if is_alike:
        raise InputError(
            f"{shapes}: each output would be compared with each target; give both one shape: outputs"
            f" .reshape({', '.join(map(str, (-1, *target.shape[1:])))}) in the model, or targets of shape"
            f" {list(output.shape[1:])} in the dataset"
        )
    is_class = not target.is_floating_point() and target.shape == (output.shape[0], *output.shape[2:])
    for_classes = "; for targets that are classes choose loss=cross_entropy, or loss=mse (one-hot)" if is_class else ""
    name = getattr(criterion, "__name__", type(criterion).__name__)
    raise InputError(f"{shapes}: {name} compares them number by number, and needs one shape for both{for_classes}")


def is_one_of(criterion: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a loss is one of the functions, or an object of one of the classes."""
    function = criterion.func if isinstance(criterion, functools.partial) else criterion
    return any(function is kind or (isinstance(kind, type) and isinstance(function, kind)) for kind in kinds)


def are_probabilities(scores: Tensor, dim: int) -> bool:
    is_sum = (scores.sum(dim) - 1).abs().max() < TOLERANCE
    return scores.shape[dim] > 1 and bool((scores >= 0).all()) and bool(is_sum)


def are_log_probabilities(scores: Tensor, dim: int) -> bool:
    return scores.shape[dim] > 1 and bool(scores.logsumexp(dim).abs().max() < TOLERANCE)


def refuse_normalised_columns(output: Tensor, half: Tensor) -> None:
    """Refuses a softmax over the batch: with other examples beside it, an example then has another output.

    Raises:
        InputError: the outputs of `half`, half of the same batch, sum up over the examples too.
    """
    for name, is_so in (("softmax", are_probabilities), ("log_softmax", are_log_probabilities)):
        if all(is_so(scores.double(), 0) for scores in (output, half)):
            raise InputError(
                f"model: its {name} is over the examples of a batch (dim=0) and not over the classes: an example's"
                f" output depends on its neighbours; {name} over the classes is dim=1"
            )


def check_rows(criterion: Any, rows: Tensor) -> None:
    """Holds the outputs (N, C) against what the loss makes of them.

    Raises:
        InputError: anything but log-probabilities for torch's nll_loss; one score for a loss of classes.
    """
    name = getattr(criterion, "__name__", None) or type(criterion).__name__
    name = criterion.func.__name__ if isinstance(criterion, functools.partial) else name
    if rows.shape[1] == 1 and is_one_of(criterion, (*WITH_SOFTMAX, *OF_LOG_PROBABILITIES)):
        raise InputError(
            f"model: gives one score an example, and the loss {name} needs one a class (of a single one it is always"
            " 0); for two classes give two scores; does the data hold one class only?"
        )
    if is_one_of(criterion, OF_LOG_PROBABILITIES) and not are_log_probabilities(rows, 1):
        given = "probabilities (a softmax)" if are_probabilities(rows, 1) else "raw scores"
        raise InputError(
            f"loss: torch's {name} takes log-probabilities, and the model gives {given}, of which it makes no"
            " likelihood; choose loss=nll or loss=cross_entropy, which take raw scores, or end the model in"
            " log_softmax(dim=1)"
        )
    if is_one_of(criterion, WITH_SOFTMAX) and are_probabilities(rows, 1):
        log.warning(
            "model: its outputs are probabilities (a softmax at its end?), and the loss %s has a softmax of its own:"
            " with two of them it learns slowly, and the loss stays far above 0; leave out the model's",
            name,
        )


def labels_of(part: Part, loader: Loader, target: Tensor) -> tuple[Tensor, bool]:
    """(labels of the part, whether they are all of its): all where the dataset tells them, and these are what it gives.

    Args:
        target: that of EXAMPLES examples.
    """
    labels, known = target.cpu().reshape(-1), integer_targets(part.dataset)
    if target.dim() > 1:
        return labels, False
    if known is not None and torch.equal(known[part.spread(EXAMPLES)], labels.long()):
        return known[part.indices], True
    with isolated(0, torch.device("cpu")), contextlib.suppress(Exception):  # an example that cannot be read
        labels = loader.examples(LABELS)[1].cpu()
    return labels, False


def check_labels(cfg: Mapping[str, Any], criterion: Any, scores: int, labels: Tensor, is_all: bool) -> None:
    """Holds the labels, all of the training part's or some of them, against the number of scores.

    Raises:
        InputError: a label without a score.
    """
    classes = cfg["dataset"].get("num_classes")
    if not is_one_of(criterion, OF_MARGINS):  # torch's has nothing that is left out
        labels = labels[labels != ignored_by(criterion)]
    if not len(labels):
        return
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise InputError(f"dataset: its targets go down to {least}, and classes are counted from 0")
    if most >= scores:
        start = f"; they start at {least}: do they count from 1 instead of 0? Then subtract 1" if least > 0 else ""
        rest = labels[labels != most]
        if len(rest) and int(rest.max()) < scores and most > scores:
            start += f"; if {most} marks what is to be left out: +loss.ignore_index={most}"
        raise InputError(
            f"model: gives {scores} scores an example, and the targets go up to {most}, for which there is none{start};"
            f" model.num_classes must be {most + 1 if classes is None else classes}"
        )
    if isinstance(classes, int) and classes > scores:
        raise InputError(
            f"model: gives {scores} scores an example, and dataset.num_classes is {classes};"
            f" model.num_classes must be {classes}"
        )
    if isinstance(classes, int) and classes < scores:
        log.warning(
            "model: gives %d scores an example, and dataset.num_classes is %d: is model.num_classes right?",
            scores,
            classes,
        )
    if is_all and least == 1 and most == scores - 1 and len(torch.unique(labels)) == most:
        log.warning(
            "dataset: its targets run from 1 to %d, and no example is of class 0: do they count from 1 instead of 0?"
            " Then subtract 1, and dataset.num_classes is %d",
            most,
            most,
        )
