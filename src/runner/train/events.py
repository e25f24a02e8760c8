"""What the Trainer tells: frozen facts, nothing that could steer it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Progress:
    """Where a run stands. All that it holds is counted from 0 at the start of the run."""

    epoch: int = 0  # epochs completed: trained and evaluated
    step: int = 0  # optimizer steps taken
    batch: int = 0  # batches trained on in the epoch that is not completed
    best_epoch: int | None = None  # the completed epoch (from 1) with the best monitored metric
    best_value: float | None = None


@dataclass(frozen=True)
class EpochEnd:
    """One completed epoch."""

    progress: Progress
    metrics: dict[str, float]  # lr, train/*, and val/* or test/*
    seconds: float  # of training and evaluation
    examples_per_second: float  # of training
    is_best: bool
    row: dict[str, Any] = field(default_factory=dict)  # as it stands in metrics.jsonl
