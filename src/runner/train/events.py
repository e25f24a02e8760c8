"""What the Trainer tells, and whom: frozen facts, and functions that cannot steer it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run stands. All that it holds is counted from 0 at the start of the run."""

    epoch: int = 0  # epochs completed
    step: int = 0  # optimizer steps taken
    batch: int = 0  # batches trained on in the epoch that is not completed
    best_epoch: int | None = None  # the epoch (from 1) in which, or after which, the monitored metric was best
    best_value: float | None = None
    best_step: int | None = None  # ... and the step
    evaluated: int = 0  # the step of the last evaluation

    @property
    def epoch_now(self) -> int:
        """The epoch (from 1) that the last batch was of."""
        return self.epoch + (self.batch > 0)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Progress":
        """Out of a checkpoint."""
        return cls(**{field.name: saved[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class EpochEnd:
    """One evaluation: after an epoch, or where trainer.evaluate_every says."""

    progress: Progress
    metrics: dict[str, float]  # lr, train/*, and val/* or test/*
    seconds: float  # of training and evaluation
    examples_per_second: float  # of training
    is_best: bool

    @property
    def row(self) -> dict[str, Any]:
        """As it stands in metrics.jsonl."""
        times = {"seconds": round(self.seconds, 3), "examples_per_second": round(self.examples_per_second, 1)}
        return {"epoch": self.progress.epoch_now, "step": self.progress.step, **self.metrics, **times}


@dataclass
class Listeners:
    """Functions that are told what happened. They cannot steer."""

    batch: list[Callable[[Progress, int], None]] = field(default_factory=list)  # progress, batches in the epoch
    steps: list[Callable[[Mapping[str, float]], None]] = field(default_factory=list)  # a row of steps.jsonl
    epoch: list[Callable[[EpochEnd], None]] = field(default_factory=list)
    saving: list[Callable[[], None]] = field(default_factory=list)  # before a checkpoint: make what you wrote durable
