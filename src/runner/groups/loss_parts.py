"""The group loss: its object, and the weights of classes that a word or names stand for."""

import functools
import inspect
import typing
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn

from runner.batches.parts import Part, Parts, Stream, integer_targets
from runner.config.checks import complaint, locate
from runner.errors import InputError
from runner.groups.instantiate import containers, instantiate
from runner.losses import IGNORED
from runner.seeding import isolated
from runner.values import guess, hints_of

WEIGHTS = ("weight", "pos_weight")  # factors of classes, of labels


def make_loss(cfg: DictConfig, where: torch.device) -> Any:
    """The loss, on the device where it is a module; None where the config has none. What it declares as a tensor (the
    weights of torch's losses) it gets as one, of a list.
    """
    node = containers(cfg, "loss")
    if node.get("_target_") is None:
        return None
    known = containers(cfg, "derived").get("loss") or {}  # a preview without data knows none
    node = {key: known.get(key) if is_word(cfg, key, value) else value for key, value in node.items()}
    target = locate(node["_target_"], "loss")
    hints = {key: hint for key, hint in hints_of(target).items() if Tensor in (hint, *typing.get_args(hint))}
    try:
        given = {key: tensor(key, node[key]).to(where) for key in hints if isinstance(node.get(key), list)}
        rest = {key: value for key, value in node.items() if key not in given}
        criterion = instantiate({**rest, "_partial_": True} if given else rest, "loss")
        if given:
            criterion = criterion(**given) if inspect.isclass(target) else functools.partial(criterion, **given)
    except (TypeError, ValueError) as error:
        raise InputError(complaint("loss", node["_target_"], error, node)) from error
    if not callable(criterion):
        raise InputError(f"loss: must be a function or a module of (output, target), got {type(criterion).__name__}")
    if isinstance(criterion, nn.Module):
        criterion.to(where)
    return criterion


def tensor(key: str, values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32 if key in WEIGHTS else None)


def is_word(cfg: DictConfig, key: str, value: Any) -> bool:
    """Whether a key of the loss stands for a list that the data tells: "balanced", or {name of a class: factor}."""
    is_ours = str(cfg.loss.get("_target_")).startswith(("runner.", "torch."))
    is_named = is_ours and isinstance(value, dict) and "_target_" not in value
    return key in WEIGHTS and (is_named or value == "balanced")


def fill_weights(cfg: DictConfig, parts: Parts) -> None:
    """Keeps in derived.loss the lists that loss.weight and loss.pos_weight stand for: of a run's record, as they were.

    Raises:
        InputError: another word, a class that is none, or one that no training example has.
    """
    classes = getattr(parts.train.dataset, "classes", None)
    names = [str(name) for name in classes] if isinstance(classes, (list, tuple)) else []
    count, found = cfg.dataset.get("num_classes"), {}
    for key, given in containers({"loss": cfg.loss}, "loss").items():
        if key in WEIGHTS and isinstance(given, str) and given != "balanced":
            if str(cfg.loss.get("_target_")).startswith(("runner.", "torch.")):
                choices = "balanced, {name: factor}, or a factor for each class: [1.0, ...]"
                raise InputError(f"loss.{key}={given}: unknown; choices: {choices}")
        elif is_word(cfg, key, given):
            known = OmegaConf.select(cfg, f"derived.loss.{key}")
            ignored = cfg.loss.get("ignore_index")
            if known is not None:
                found[key] = list(known)
            elif given == "balanced":
                found[key] = balanced(key, parts.train, count, names, IGNORED if ignored is None else ignored)
            else:
                found[key] = by_name(key, given, names or [str(index) for index in range(count or 0)])
    if found:
        with open_dict(cfg):
            cfg.derived.loss = found


def by_name(key: str, given: dict[Any, Any], names: list[str]) -> list[float]:
    """A factor for each class: those of the classes that are named, 1 for the others. Numbers name them too."""
    factors = [1.0] * len(names)
    for name, factor in given.items():
        index = names.index(str(name)) if str(name) in names else name
        if not isinstance(index, int) or not 0 <= index < len(names) or not isinstance(factor, (int, float)):
            choices = f"{guess(str(name), names)}choices: {', '.join(names) or 'none'}"
            raise InputError(f"loss.{key}.{name}={factor}: must be the name of a class and a number; {choices}")
        factors[index] = float(factor)
    return factors


def balanced(key: str, part: Part | Stream, count: Any, names: list[str], ignored: int) -> list[float]:
    """Factors by which all classes weigh alike (their mean over the examples is 1); of pos_weight: by which the labels
    that are 1 weigh as much as those that are 0.
    """
    if isinstance(part, Stream):
        raise InputError(f"loss.{key}=balanced: a stream is not counted before training; give a list of factors")
    targets = targets_of(key, part)
    if key == "weight":
        labels = targets.flatten()
        if labels.is_floating_point():
            raise InputError("loss.weight=balanced: the targets are no class indices; for labels: loss.pos_weight")
        labels = labels[labels != ignored].long()
        there = torch.bincount(labels, minlength=count or 0)
        factors = len(labels) / (len(there) * there.double())
    else:
        is_index = targets.dim() == 1 and not targets.is_floating_point() and (count or 1) > 1
        labels = F.one_hot(targets.long(), count) if is_index else targets.reshape(len(targets), -1)
        there = (labels > 0.5).sum(0)
        factors = (len(labels) - there.double()) / there
    if missing := (there == 0).nonzero().flatten().tolist():
        named = names[missing[0]] if missing[0] < len(names) else missing[0]
        raise InputError(f"loss.{key}=balanced: no training example is of class {named}; give a list of factors")
    return [float(factor) for factor in factors]


def targets_of(key: str, part: Part) -> Tensor:
    """The targets of all examples of a part: told by the dataset where it tells what its examples have, else read."""
    known = integer_targets(part.dataset)

    def read(indices: Tensor) -> list[Tensor]:
        with isolated(0, torch.device("cpu")):
            return [torch.as_tensor(part.dataset[index][1]) for index in indices.tolist()]

    try:
        few = part.spread(8)
        if known is not None and known[few].tolist() == [target.tolist() for target in read(few)]:
            return known[part.indices]
        return torch.stack(read(part.indices))
    except Exception as error:
        raise InputError(
            f"loss.{key}=balanced: the targets of dataset.train cannot be counted ({type(error).__name__}:"
            f" {' '.join(str(error).split())}); give a list of factors"
        ) from error
