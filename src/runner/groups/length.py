"""How long a run is, and when it is evaluated: trainer.epochs or trainer.steps, and trainer.evaluate_every."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.errors import InputError

UNITS = ("steps", "epochs")


@dataclass(frozen=True)
class Length:
    """A run's length, in epochs (the last one may end early) and in steps, and the steps between two evaluations."""

    epochs: int
    steps: int
    every: int


def length_of(trainer: Mapping[str, Any], batches: int) -> Length:
    """What the trainer group says, for epochs of so many batches.

    Raises:
        InputError: trainer.evaluate_every is neither a count nor one with its unit.
    """
    count, unit = every_of(trainer)
    if trainer.get("dry_run"):
        return Length(1, batches, batches)
    steps = trainer.get("steps")
    epochs = trainer["epochs"] if steps is None else math.ceil(steps / batches)
    return Length(epochs, epochs * batches if steps is None else steps, count * (batches if unit == "epochs" else 1))


def evaluations(config: Mapping[str, Any]) -> int:
    """How often a run of this config is evaluated; where nobody knows its batches yet, as if an epoch were one."""
    derived = config.get("derived")
    batches = derived.get("batches_per_epoch") if isinstance(derived, Mapping) else None
    length = length_of(config["trainer"], batches if isinstance(batches, int) and batches > 0 else 1)
    return math.ceil(length.steps / length.every)


def every_of(trainer: Mapping[str, Any]) -> tuple[int, str]:
    """trainer.evaluate_every as a count and its unit: without one, that of the run's length.

    Raises:
        InputError: it is neither.
    """
    value = trainer.get("evaluate_every")
    if value is None:
        return 1, "epochs"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value, "epochs" if trainer.get("steps") is None else "steps"
    found = re.fullmatch(r"(\d{1,12}) ?([a-z]+)", str(value).strip().lower())
    unit = found[2] if found is not None else ""
    if found is not None and int(found[1]) >= 1 and f"{unit.removesuffix('s')}s" in UNITS:
        return int(found[1]), f"{unit.removesuffix('s')}s"
    near = difflib.get_close_matches(unit, UNITS, 1)
    guess = f"; did you mean '{found[1]} {near[0]}'?" if found is not None and near and int(found[1]) else ""
    raise InputError(
        f"trainer.evaluate_every={value}: must be a whole number of at least 1, or one with its unit, as '500 steps' or"
        f" '2 epochs'{guess}"
    )


def is_usual(trainer: Mapping[str, Any]) -> bool:
    """Whether a run is epochs long, and evaluated after each."""
    return trainer.get("steps") is None and trainer.get("evaluate_every") is None


def planned_epochs(cfg: Any) -> int:
    """The epochs that a run begins; of a dry run those that it would."""
    if cfg.trainer.get("steps") is None:
        return int(cfg.trainer.epochs)
    return math.ceil(int(cfg.trainer.steps) / int(cfg.derived.batches_per_epoch))


def said(trainer: Mapping[str, Any], batches: int) -> list[str]:
    """A line on a length or a moment that is not the usual one."""
    length = length_of(trainer, batches)
    if trainer.get("dry_run") or is_usual(trainer):
        return []
    whole = f"{length.steps:,} steps, {length.steps / batches:.4g} epochs of {batches:,}"
    every = f"{length.every:,} steps" if length.every % batches else f"{length.every // batches:,} epochs"
    every = "step" if length.every == 1 else "epoch" if length.every == batches else every
    return [f"length: {whole}; evaluated after every {every} and at the end"]
