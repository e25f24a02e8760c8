"""Whether a metric is better low or high: asked of the metric, told by a usual name, and never guessed.

Contract: best epoch, plateau and Optuna ask mode_of() here; what it found for every metric stands in run.json as
`modes`, {metric: min | max}, for the verbs that read records.
"""

import logging
from collections.abc import Mapping
from typing import Any

from runner.config.checks import locate
from runner.errors import InputError
from runner.groups.instantiate import make
from runner.metrics import usual_mode

log = logging.getLogger("runner")

MODES = ("min", "max")


def monitoring(config: Mapping[str, Any]) -> list[str]:
    """The groups that have a metric and a mode: trainer, and a scheduler such as plateau."""
    return [group for group in ("trainer", "scheduler") if "monitor" in config[group] and "mode" in config[group]]


def mode_of(group: str, config: Mapping[str, Any], is_new: bool = True) -> str | None:
    """The mode of config[group]'s `monitor`: the given one, or what the metric says, or what its name usually means.

    Args:
        group: trainer or scheduler.
        is_new: False keeps what an earlier version took for a run that is continued.

    Raises:
        InputError: nobody says; or the given mode is against what the metric says.
    """
    monitor, given = str(config[group]["monitor"]), config[group].get("mode")
    name = metric_name(monitor)
    if given is not None and (given not in MODES or not is_new):
        return str(given)  # a word that is none of ours is refused by who takes it
    said, usual = told(config["metrics"], name), usual_mode(name)
    if given is None and monitor == str(config["trainer"]["monitor"]):
        given = config["trainer"]["mode"]  # a scheduler that watches the same metric goes the same way
    if given is None:
        if said is None and usual is None and name in config["metrics"]:
            raise InputError(
                f"{group}.monitor={monitor}: is it better low or high? metrics.{name} does not say"
                f" (higher_is_better), nor does its name; set {group}.mode=min or {group}.mode=max"
            )
        return said or usual or "max"  # of what is no metric: the Trainer says what is logged
    if said not in (None, given):
        raise InputError(
            f"{group}.mode={given}: {monitor} is better {'low' if said == 'min' else 'high'}; leave {group}.mode out,"
            f" or choose another {group}.monitor"
        )
    if said is None and usual not in (None, given):
        log.warning("%s.mode=%s: a metric named %s is usually better the other way", group, given, name)
    return str(given)


def modes(config: Mapping[str, Any]) -> dict[str, str]:
    """The mode of the loss and of every metric that has one, by its name without the part."""
    found = {name: told(config["metrics"], name) or usual_mode(name) for name in ("loss", *config["metrics"])}
    found[metric_name(config["trainer"]["monitor"])] = config["trainer"]["mode"]
    return {name: mode for name, mode in found.items() if mode is not None}


def metric_name(monitor: str) -> str:
    """accuracy, of val/accuracy."""
    return monitor.partition("/")[2] or monitor


def told(metrics: Mapping[str, Any], name: str) -> str | None:
    """What a loss or metric says of itself: its class where that is enough, else one that is made for the question."""
    if name == "loss":
        return "min"
    if name not in metrics or not isinstance(metrics[name], Mapping):
        return None
    higher = getattr(locate(metrics[name].get("_target_"), f"metrics.{name}"), "higher_is_better", None)
    if not isinstance(higher, bool):
        try:
            higher = getattr(make(metrics, name, "metrics"), "higher_is_better", None)
        except InputError:  # before the data is there it may lack num_classes; if it is wrong, that is said when built
            return None
    return None if not isinstance(higher, bool) else "max" if higher else "min"
