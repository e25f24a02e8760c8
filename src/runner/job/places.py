"""Where a run's checkpoints stand, and which of them leads to the run's end."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.train.events import Progress


def known_before(record: Mapping[str, Any]) -> dict[int, float | None]:
    """The monitored values that earlier starts have known, by step."""
    known = record.get("known_steps", {})
    if bad := [name for name in known if not str(name).isdecimal()]:
        raise InputError(f"run.json: known_steps: {bad[0]!r} is no number of a step")
    return {int(step): value for step, value in known.items()}


def counted(evaluations: int, record: Mapping[str, Any]) -> str:
    is_usual = record["config"]["trainer"].get("evaluate_every") is None
    return f"{evaluations} {'epochs' if is_usual else 'evaluations'}"


@dataclass(frozen=True)
class FileFacts:
    """What choosing needs of a checkpoint, so that not all of them are in memory at once."""

    progress: Progress
    holds_best: bool  # the best epoch's weights are in the file too

    @classmethod
    def of(cls, state: dict[str, Any]) -> "FileFacts":
        return cls(Progress.of(state["progress"]), "best_model_state_dict" in state)

    @property
    def position(self) -> tuple[int, int]:
        """The step, and that of the last evaluation."""
        return self.progress.step, self.progress.evaluated


def best_file(
    facts: FileFacts, good: dict[Path, FileFacts], known: dict[int, float | None], mode: str
) -> tuple[Path | None, bool]:
    """The good file with the best epoch's weights, if one is needed; and whether the run can go on from `facts`."""
    best = facts.progress
    if best.best_step is None or facts.holds_best:
        return None, True
    for path in sorted(good, key=lambda p: p.name != "best.pt"):
        if good[path].position == (best.best_step, best.best_step):
            return path, True
    assert best.best_value is not None
    sign = 1 if mode == "max" else -1
    later = [value for step, value in known.items() if step > best.step and value is not None]
    return None, any(sign * value > sign * best.best_value for value in later)
