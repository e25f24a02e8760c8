"""What the Trainer tells, and whom: frozen facts, and functions that cannot steer it."""

from collections.abc import Callable, Mapping
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


@dataclass
class Listeners:
    """Functions that are told what happened. They cannot steer."""

    batch: list[Callable[[Progress, int], None]] = field(default_factory=list)  # progress, batches in the epoch
    steps: list[Callable[[Mapping[str, float]], None]] = field(default_factory=list)  # a row of steps.jsonl
    epoch: list[Callable[[EpochEnd], None]] = field(default_factory=list)
    saving: list[Callable[[], None]] = field(default_factory=list)  # before a checkpoint: make what you wrote durable
