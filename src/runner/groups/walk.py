"""The schedule, walked before anything trains: the run's own scheduler on a stand-in, from the first rate to the last.

Contract: the optimizer and the generators are left as they were. A scheduler that needs a metric cannot be walked: only
its arguments are looked at.
"""

import contextlib
import copy
import inspect
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from runner.config.checks import complaint, locate
from runner.errors import InputError
from runner.schedulers import lambda_lr
from runner.seeding import isolated
from runner.torch_adapter import mark_as_stepped

LONGEST = 200_000  # steps that are walked at most: some seconds
CHECKED = ("torch.optim.", "runner.schedulers")  # whose numbers are never negative; another's may mean anything
FREE = ("last_epoch", "verbose")
DERIVED = ("run_length", "batches_per_epoch")  # filled in from the data: the last to blame
LENGTHS = (  # of 1 at least
    "step_size",
    "T_max",
    "T_0",
    "T_mult",
    "total_steps",
    "run_length",
    "cycles",
    "epochs",
    "steps_per_epoch",
)
VANISHED = 1e-7  # of the highest rate
INSTEAD: tuple[Any, ...] = (1, 0.5, 10, [1], "1")  # what is tried in place of an argument, to find the one to blame

Make = Callable[[Mapping[str, Any]], Callable[[Optimizer], Any]]
Rates = list[tuple[float, ...]]  # by interval from the first: the rate of each param group


def stand_in(optimizer: Optimizer) -> Optimizer:
    """A copy whose groups a scheduler may change: the same class, settings and parameters, without state."""
    made = copy.copy(optimizer)
    made.state = defaultdict(dict)
    made.defaults = dict(optimizer.defaults)
    made.param_groups = [
        {key: value.clone() if isinstance(value, Tensor) else copy.copy(value) for key, value in group.items()}
        for group in optimizer.param_groups
    ]
    mark_as_stepped(made)
    return made


def walk(make: Callable[[Optimizer], Any], optimizer: Optimizer, length: int) -> Rates:
    """The rates of a run of `length` intervals, and the one that its last step sets: length + 1 of them at most.

    Raises:
        ValueError: a rate that is negative or not finite; or what the scheduler raises.
    """
    made = stand_in(optimizer)
    with isolated(0, torch.device("cpu")):
        scheduler = make(made)
        rates = [rates_of(made, 0)]
        if needs_metric(scheduler):
            return rates
        for step in range(1, min(length, LONGEST) + 1):
            try:
                scheduler.step()
            except ValueError:
                raise
            except Exception as error:
                message = str(error) or type(error).__name__
                raise ValueError(f"step {step} of the run's {length} fails: {message}") from error
            rates.append(rates_of(made, step))
    return rates


def needs_metric(scheduler: Any) -> bool:
    """Whether its step takes one, as ReduceLROnPlateau's."""
    parameters = inspect.signature(scheduler.step).parameters.values()
    return any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters)


def rates_of(optimizer: Optimizer, step: int) -> tuple[float, ...]:
    rates = tuple(float(group["lr"]) for group in optimizer.param_groups)
    for rate in rates:
        if not 0 <= rate < math.inf:
            raise ValueError(f"the learning rate becomes {rate:g} after {step} steps")
    return rates


def walked(target: Any, node: Mapping[str, Any], instantiate: Make, optimizer: Optimizer, length: int) -> Rates:
    """The rates of the scheduler that a node describes, without the keys that are ours.

    Args:
        instantiate: from the node to what makes the scheduler of an optimizer; anew each time.

    Raises:
        InputError: names the argument that makes it fail, and its value.
    """

    def attempt(described: Mapping[str, Any]) -> Rates:
        return walk(instantiate(described), optimizer, length)

    try:
        return attempt(node)
    except InputError:
        raise
    except Exception as error:
        raise InputError(blamed(target, node, attempt, error, (*INSTEAD, length))) from error


def blamed(
    target: Any,
    node: Mapping[str, Any],
    attempt: Callable[[Mapping[str, Any]], Any],
    error: Exception,
    instead: Sequence[Any],
) -> str:
    """The complaint, which names the arguments whose change alone would mend it; all of them where there is none."""
    message = complaint("scheduler", "", error)
    parameters = inspect.signature(target).parameters
    given = {name: value for name, value in node.items() if not name.startswith("_")}
    if any(message.startswith(f"scheduler.{name}=") for name in given):
        return message
    guilty = []
    for name in given:
        default = parameters[name].default if name in parameters else inspect.Parameter.empty
        for value in (*(() if default is inspect.Parameter.empty else (default,)), *instead):
            with contextlib.suppress(Exception):
                attempt({**node, name: value})
                guilty.append(name)
                break
    guilty = [name for name in guilty if name not in DERIVED] or guilty or list(given)
    named = ", ".join(f"scheduler.{name}={given[name]}" for name in guilty)
    return f"{named or 'scheduler'}: {target.__name__}: {message.removeprefix('scheduler: ')}"


def doubts(target: Any, node: Mapping[str, Any], interval: str, rates: Rates) -> list[str]:
    """What a schedule does that is seldom meant."""
    found = []
    if target is lambda_lr and interval == "epoch" and re.search(r"\bstep\b", str(node.get("lr_lambda"))):
        found.append(
            f"scheduler.lr_lambda={node['lr_lambda']}: `step` counts batches, but with scheduler.interval=epoch the"
            " factor is worked out once an epoch, at its first batch; scheduler.interval=batch does it at each"
        )
    highest = max(max(group) for group in rates)
    vanished = next((n for n, group in enumerate(rates) if max(group) <= VANISHED * highest), None)
    rises_again = vanished is not None and any(max(group) > VANISHED * highest for group in rates[vanished:])
    length = len(rates) - 1
    if vanished is not None and not rises_again and vanished < length * (0.95 if not any(rates[vanished]) else 0.5):
        found.append(
            f"scheduler: the learning rate is practically 0 from {interval} {vanished + 1} of {len(rates) - 1} on;"
            f" scheduler.interval={interval} says what its lengths count"
        )
    return found + length_doubts(target, node, interval, rates)


# Of torch's schedules (and ours) those that are meant to end with the run, and the argument that says when.
ENDINGS = {"CosineAnnealingLR": "T_max", "PolynomialLR": "total_iters", "OneCycleLR": "total_steps"}
ENDINGS["one_cycle"] = "total_steps"


def length_doubts(target: Any, node: Mapping[str, Any], interval: str, rates: Rates) -> list[str]:
    """Where a schedule's own lengths and the run's are far apart: it never steps, rises again, or is not at its end."""
    length, name = len(rates) - 1, target.__name__
    if not 2 <= length < LONGEST:
        return []
    lengths = ("milestones", "step_size", "total_iters", "T_0")
    given = ", ".join(f"scheduler.{key}={node[key]}" for key in lengths if key in node) or f"scheduler: {name}"
    if len(set(rates[:-1])) == 1 and target is not lambda_lr and name != "ConstantLR":
        return [f"{given}: the learning rate never changes in the {length:,} {interval}s of this run"]
    milestones = node.get("milestones")
    if isinstance(milestones, list) and any(m >= length for m in milestones):
        return [
            f"scheduler.milestones={milestones}: the run ends after {length:,} {interval}s, before the last of them"
        ]
    ending = ENDINGS.get(name)
    end = None if ending is None else node.get(ending)
    if isinstance(end, (int, float)) and end > length:
        return [f"scheduler.{ending}={end}: the run ends before the schedule, after {length:,} {interval}s"]
    if name == "CosineAnnealingLR" and isinstance(end, (int, float)) and end < length:
        return [f"scheduler.T_max={end}: the learning rate rises again from {interval} {end + 2} of {length:,} on"]
    return []


def check_arguments(target: Any, node: Mapping[str, Any], path: str = "scheduler") -> None:
    """Refuses what torch's schedulers take without a word and make nonsense of: negative numbers, and those that are
    not finite; lengths that are no whole numbers.

    Raises:
        InputError: names the key and its value.
    """
    if not f"{getattr(target, '__module__', '')}.".startswith(CHECKED):
        return
    for name, given in node.items():
        if name.startswith("_") or name in FREE:
            continue
        for number, inner in enumerate(given if name == "schedulers" and isinstance(given, list) else ()):
            if isinstance(inner, Mapping):
                at = f"{path}.schedulers.{number}"
                check_arguments(locate(inner.get("_target_"), at), inner, at)
        key = f"{path}.{name}={given}"
        if name == "milestones" and not isinstance(given, list):
            raise InputError(f"{key}: must be a list of whole numbers")
        for value in given if isinstance(given, list) else [given]:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and not 0 <= value < math.inf:
                raise InputError(f"{key}: must be finite and not negative")
            if name == "milestones" and not (is_number and float(value).is_integer()):
                raise InputError(f"{key}: must be a list of whole numbers")
            if name in LENGTHS and value is not None and not (is_number and float(value).is_integer() and value >= 1):
                raise InputError(f"{key}: must be a whole number of at least 1")
