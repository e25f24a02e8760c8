"""Which parameters are trained how: the optimizer's groups, and what is frozen, by patterns of names and module types.

A pattern (with * and ?) is of a parameter's name (`conv1.weight`, `loss.scale`), of a module it lies in (`conv1`), or
of the type of one (`BatchNorm2d`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer

from runner.config.checks import complaint
from runner.errors import InputError
from runner.groups.instantiate import containers
from runner.groups.length import planned_epochs
from runner.train.freezing import Freezing, has_running_statistics
from runner.train.weights import as_written
from runner.values import guess, is_number


@dataclass(frozen=True, eq=False)
class Named:
    """A parameter, its name as the user knows it, and the types of the modules it lies in."""

    name: str
    parameter: nn.Parameter
    types: frozenset[str]

    def fits(self, pattern: str) -> bool:
        names = (self.name, *self.types)
        return fnmatchcase(self.name, f"{pattern}.*") or any(fnmatchcase(name, pattern) for name in names)

    @property
    def decays(self) -> bool:
        """Whether it is neither a norm's nor a bias: those have one dimension at most. A preview may not know."""
        return nn.parameter.is_lazy(self.parameter) or self.parameter.dim() > 1


def named_parameters(task: nn.Module) -> list[Named]:
    """All parameters of a task, each with the types of the model, the loss, and what they hold."""
    return [Named(as_written(name), one, types_above(task, name)) for name, one in task.named_parameters()]


def types_above(task: nn.Module, name: str) -> frozenset[str]:
    """The types of the modules that a task's parameter or buffer lies in, the task itself left out."""
    parts = name.split(".")[:-1]
    return frozenset(type(task.get_submodule(".".join(parts[: n + 1]))).__name__ for n in range(len(parts)))


def patterns_of(value: Any, key: str) -> list[str]:
    """A pattern, or a list of them.

    Raises:
        InputError: it is neither.
    """
    patterns = value if isinstance(value, (list, tuple)) else [value]
    patterns = [str(one) if type(one) is int else one for one in patterns]  # Sequential counts its modules
    if not all(isinstance(one, str) and one for one in patterns):
        raise InputError(f"{key}={value}: must be a pattern of parameter names or module types, or a list of them")
    return patterns


def matching(patterns: Sequence[str], among: Sequence[Named], key: str, where: str = "") -> list[Named]:
    """The parameters that one of the patterns fits.

    Raises:
        InputError: one of them fits none, with the nearest names.
    """
    for pattern in patterns:
        if not any(one.fits(pattern) for one in among):
            raise InputError(f"{key}={pattern}: fits no parameter{where}; {choices(pattern, among)}")
    return [one for one in among if any(one.fits(pattern) for pattern in patterns)]


def choices(pattern: str, among: Sequence[Named]) -> str:
    modules = {one.name.rpartition(".")[0]: None for one in among if "." in one.name}
    types = sorted({name for one in among for name in one.types})
    known = [*modules, *types, *(one.name for one in among)]
    shown = [*list(modules)[:12], *(["..."] if len(modules) > 12 else []), *types]
    return f"{guess(pattern.strip('*'), known)}choices: {', '.join(shown)}"


# ------------------------------------------------------------------------------------------------------ param groups


@dataclass(frozen=True)
class Group:
    """Parameters that are trained alike."""

    says: str  # as the log has it
    members: list[Named]
    options: dict[str, Any]  # what differs from the optimizer's own arguments


def make_groups(
    task: nn.Module,
    rules: Sequence[Any],
    no_decay: bool,
    known: Mapping[str, Any],
    try_out: Callable[[dict[str, Any]], Any],
) -> list[Group]:
    """The parameters of a task by the rules of optimizer.groups and no_decay: first what no rule takes.

    Args:
        known: the optimizer's arguments: what a group may say, and what holds where it says nothing.
        try_out: makes an optimizer with other arguments; a constructor looks at those alone, and never at a group's.

    Raises:
        InputError: a rule that takes nothing, or that says what the optimizer does not know.
    """
    if not all(isinstance(rule, dict) for rule in rules):
        raise InputError(f"optimizer.groups={rules}: must be a list of {{match: PATTERN, lr_scale: 0.1, ...}}")
    if no_decay and "weight_decay" not in known:
        raise InputError("optimizer.no_decay=true: this optimizer has no weight_decay")
    left = [one for one in named_parameters(task) if one.parameter.requires_grad]
    all_of, taken = left, []
    for number, rule in enumerate(rules):
        key = f"optimizer.groups.{number}"
        options = options_of(rule, key, known)
        try:
            try_out(options)
        except Exception as error:
            raise InputError(complaint(key, "", error, options)) from error
        patterns = patterns_of(rule.get("match"), f"{key}.match")
        wanted = matching(patterns, all_of, f"{key}.match", " that trains")
        members = [one for one in wanted if one in left]
        if not members:
            raise InputError(f"{key}.match={rule['match']}: all that it fits is taken by the groups before it")
        left = [one for one in left if one not in members]
        taken.append(Group(", ".join(patterns), members, options))
    groups = [Group("all others" if taken else "all", left, {}), *taken]
    return [part for group in groups for part in parted(group, no_decay) if part.members]


def parted(group: Group, no_decay: bool) -> list[Group]:
    """A group, or its two parts: norms and biases without weight decay where the group says nothing of it."""
    if not no_decay or "weight_decay" in group.options:
        return [group]
    bare = [one for one in group.members if not one.decays]
    rest = [one for one in group.members if one.decays]
    says = f"{group.says}: norms and biases"
    return [Group(group.says, rest, group.options), Group(says, bare, {**group.options, "weight_decay": 0.0})]


def options_of(rule: Mapping[str, Any], key: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """What a rule says of its parameters, lr_scale as a rate."""
    names = ["match", "lr_scale", *known]
    for name in rule:
        if name not in names:
            choices = f"{guess(str(name), names)}choices: {', '.join(names)}"
            raise InputError(f"{key}.{name}: nothing takes this key; {choices}")
    options = {name: value for name, value in rule.items() if name not in ("match", "lr_scale")}
    if "lr_scale" in rule:
        scale = rule["lr_scale"]
        if "lr" in options:
            raise InputError(f"{key}.lr_scale={scale}: lr is given too; choose one")
        if not is_finite_rate(scale) or not is_finite_rate(known.get("lr")):
            raise InputError(f"{key}.lr_scale={scale}: must be a number of at least 0, times optimizer.lr")
        options["lr"] = known["lr"] * scale
    if "lr" in options and not is_finite_rate(options["lr"]):
        raise InputError(f"{key}.lr={options['lr']}: must be a number of at least 0")
    return options


def is_finite_rate(value: Any) -> bool:
    return is_number(value) and 0 <= value < math.inf


def described(optimizer: Optimizer) -> list[str]:
    """A line for each group that was made by a rule."""
    lines = []
    for number, group in enumerate(optimizer.param_groups):
        if "says" in group:
            count = sum(parameter.numel() for parameter in group["params"])
            decay = f", weight_decay {group['weight_decay']:g}" if "weight_decay" in group else ""
            rate, first = group.get("initial_lr", group["lr"]), group["lr"]  # a warm-up has scaled it by now
            start = "" if rate == first else f" (at first {first:g})"
            what = f"{count:,} parameters in {len(group['params'])} tensors, lr {rate:g}{start}{decay}"
            lines.append(f"optimizer group {number} ({group['says']}): {what}")
    return lines


# ------------------------------------------------------------------------------------------------------------ frozen


def make_freezing(cfg: DictConfig, task: nn.Module) -> Freezing:
    """What freeze and unfreeze_at say of a task: what never trains is taken from the optimizer at once.

    Raises:
        InputError: a pattern that fits nothing, an epoch that never comes, or nothing that is left to train.
    """
    patterns = patterns_of(containers(cfg, "freeze") or [], "freeze")
    later = containers(cfg, "unfreeze_at") or {}
    if not isinstance(later, dict):
        raise InputError(f"unfreeze_at={later}: must be {{PATTERN: EPOCH}}")
    every, epochs = named_parameters(task), planned_epochs(cfg)
    frozen = matching(patterns, every, "freeze")
    for pattern, epoch in later.items():
        if not isinstance(epoch, int) or isinstance(epoch, bool) or not 2 <= epoch <= epochs:
            raise InputError(f"unfreeze_at.{pattern}={epoch}: must be an epoch from 2 to the run's last, {epochs}")
        if not frozen:
            raise InputError(f"unfreeze_at={pattern}: freeze holds nothing")
        matching([pattern], frozen, "unfreeze_at", " that freeze holds")

    def thaws(one: Named) -> int | None:
        return next((epoch for pattern, epoch in later.items() if one.fits(pattern)), None)

    parameters = [(one.parameter, thaws(one)) for one in frozen]
    held = {id(one.parameter) for one in frozen}
    if frozen and not any(one.parameter.requires_grad and id(one.parameter) not in held for one in every):
        raise InputError(f"freeze={patterns}: leaves nothing to train in epoch 1")
    norms = [(module, thaws(one)) for module, one in running_norms(task) if is_frozen(module, one, held, patterns)]
    for parameter, epoch in parameters:
        parameter.requires_grad_(epoch is not None)  # what thaws is the optimizer's from the start
    return Freezing(parameters, norms)


def frozen(freezing: Freezing) -> list[str]:
    """A line on what is frozen, for each time at which it thaws."""
    lines = []
    for thaws in sorted({thaws for _, thaws in freezing.parameters}, key=lambda epoch: epoch or 0):
        held = [parameter for parameter, epoch in freezing.parameters if epoch == thaws]
        until = "for good" if thaws is None else f"until epoch {thaws} begins"
        lines.append(f"frozen {until}: {sum(one.numel() for one in held):,} parameters in {len(held)} tensors")
    return lines


def running_norms(task: nn.Module) -> list[tuple[nn.Module, Named]]:
    """The modules that keep running statistics, by the name of one of their parameters, or of their statistics."""
    named, found = {id(one.parameter): one for one in named_parameters(task)}, []
    for path, module in task.named_modules():
        if has_running_statistics(module):
            own = [named[id(parameter)] for parameter in module.parameters(recurse=False)]
            name = f"{path}.running_mean"
            found.append((module, own[0] if own else Named(as_written(name), nn.Parameter(), types_above(task, name))))
    return found


def is_frozen(module: nn.Module, one: Named, held: set[int], patterns: Sequence[str]) -> bool:
    own = [id(parameter) in held for parameter in module.parameters(recurse=False)]
    return all(own) if own else any(one.fits(pattern) for pattern in patterns)
