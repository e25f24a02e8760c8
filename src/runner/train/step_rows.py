"""The rows of steps.jsonl, told once their losses are known: a device that computes on its own makes one wait."""

import time
from typing import Any

from runner.train.events import Listeners, Progress
from runner.train.state import TrainState

SECONDS_BETWEEN_WAITS = 1.0  # such a device is asked for its losses no more often between two evaluations


class StepRows:
    """A row each `every` steps, with the mean loss since the one before; 0: none."""

    def __init__(self, every: int, state: TrainState, listeners: Listeners) -> None:
        self.every, self.state, self.listeners = every, state, listeners
        self.pending: list[tuple[int, int, dict[str, Any]]] = []  # still without a loss
        self.last_wait = time.monotonic()

    def add(self, progress: Progress) -> None:
        """A row for the step that is done."""
        count = self.state.loss.count
        row = {"step": progress.step, "epoch": progress.epoch + 1, "lr": self.state.lr}
        self.pending.append((max(0, count - self.every), count, row))
        if self.state.device.type == "cpu" or time.monotonic() - self.last_wait >= SECONDS_BETWEEN_WAITS:
            self.tell()

    def tell(self) -> None:
        """Tells the rows that are due."""
        for start, stop, row in self.pending:
            row["train/loss"] = self.state.finite_loss(start, stop)
            for tell in self.listeners.steps:
                tell(row)
        self.pending.clear()
        self.last_wait = time.monotonic()
