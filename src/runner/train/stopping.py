"""When a run ends before its length, and why: asked after each evaluation, of the rows alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stopping:
    """The `stopping` group. Only max_minutes asks a clock: all else follows from the rows, so a run that is continued
    ends where it would have ended.

    Args:
        patience: evaluations in a row that are not better than the best before them by more than min_delta.
        threshold: the monitored metric is as good as this.
        divergence: it is worse than this, or not finite, in evaluation divergence_after (from 1) or a later one.
        max_minutes: of training and evaluation.

    Raises:
        ValueError: a key that does nothing without another one.
    """

    patience: int | None = None
    min_delta: float = 0.0
    threshold: float | None = None
    divergence: float | None = None
    divergence_after: int = 1
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        if self.min_delta and self.patience is None:
            raise ValueError(f"min_delta={self.min_delta}: needs a stopping.patience")
        if self.divergence_after != 1 and self.divergence is None:
            raise ValueError(f"divergence_after={self.divergence_after}: needs a stopping.divergence")

    def reason(self, rows: Sequence[Mapping[str, Any]], monitor: str, mode: str, seconds: float) -> str | None:
        """Why a run ends after its last row; None: it goes on.

        Args:
            rows: of metrics.jsonl so far. seconds: of training and evaluation so far.
        """
        if not rows:
            return None
        sign = 1 if mode == "max" else -1
        value = number(rows[-1].get(monitor))
        is_finite = math.isfinite(value)
        if self.threshold is not None and is_finite and sign * value >= sign * self.threshold:
            return f"{monitor} is {value:.6g}, and {self.threshold:g} was asked for"
        bound = self.divergence if len(rows) >= self.divergence_after else None
        if bound is not None and (not is_finite or sign * value < sign * bound):
            said = f"{value:.6g}" if is_finite else "not finite"
            return f"{monitor} is {said} after {evaluations(len(rows))}, worse than {bound:g}"
        if self.patience is not None:
            *_, (best, since) = self.bests(rows, monitor, sign)
            if since >= self.patience:
                more = f" by more than {self.min_delta:g}" if self.min_delta else ""
                than = f"than that of epoch {best}" if best is not None else "than no number"
                return f"{monitor} has not been better {than}{more} for {evaluations(since)}"
        if self.max_minutes is not None and seconds >= self.max_minutes * 60:
            return f"max_minutes={self.max_minutes:g} have passed"
        return None

    def bests(self, rows: Sequence[Mapping[str, Any]], monitor: str, sign: int) -> Iterator[tuple[int | None, int]]:
        """After each row, the epoch of the best so far, and the evaluations since."""
        best, since = -math.inf, 0
        epoch: int | None = None
        for row in rows:
            value = number(row.get(monitor))
            is_better = math.isfinite(value) and sign * value - best > self.min_delta
            since = 0 if is_better else since + 1
            if is_better:
                best, epoch = sign * value, row["epoch"]
            yield epoch, since


def number(value: float | None) -> float:
    """A row's value: what is not finite is null in a row that was read."""
    return math.nan if value is None else value


def evaluations(count: int) -> str:
    return f"{count} evaluation{'s' if count != 1 else ''}"
