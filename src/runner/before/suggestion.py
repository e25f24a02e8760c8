"""What the curve of a learning-rate range test suggests, by which rule, and how much that is to be doubted."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MEMORY = 0.9  # of the running mean of the losses; with fastai's 0.98 it lags by half of a usual range
LEAST_STEPS = 10  # of a curve that anything can be said of
LEAST_FALL = 0.05  # of the loss at the start, for a curve that is not flat; and more than its noise


@dataclass(frozen=True)
class Suggestion:
    """Three rules' rates, each None where the curve does not say.

    Args:
        valley: half the length of the longest falling stretch before its end, as fastai's `valley`.
        steepest: where the smoothed loss falls fastest by step, within that stretch.
        below_lowest: a tenth of the rate of the lowest smoothed loss.
        doubts: sentences.
        fall: the rates between which the valley rule sees the loss fall.
    """

    valley: float | None
    steepest: float | None
    below_lowest: float | None
    doubts: list[str]
    fall: tuple[float, float] | None = None


def next_mean(before: Sequence[float], loss: float) -> float:
    """The running mean behind those before, without the bias towards 0 of its beginning."""
    mean = before[-1] * (1 - MEMORY ** len(before)) if before else 0.0
    return (MEMORY * mean + (1 - MEMORY) * loss) / (1 - MEMORY ** (len(before) + 1))


def has_diverged(smooth: Sequence[float]) -> bool:
    """Whether the loss has risen above where it began by as much as it was, or as it has fallen since."""
    first = smooth[0]
    return smooth[-1] > first + max(abs(first), first - min(smooth))


def suggest(rates: Sequence[float], losses: Sequence[float], smooth: Sequence[float], is_whole: bool) -> Suggestion:
    """Looks at a range test's curve.

    Args:
        smooth: the losses' running mean.
        is_whole: the range was gone through to its end; False: the loss diverged behind the last rate.
    """
    if not smooth:
        return Suggestion(None, None, None, ["the loss was not finite before any step: no rate is to blame"])
    if len(smooth) < LEAST_STEPS:
        return Suggestion(None, None, None, [f"steps: {len(smooth)}, which are no curve; begin lower, with --from"])
    skipped = len(smooth) // 10  # where the running mean is of few losses
    start, lowest = smooth[skipped], min(range(skipped, len(smooth)), key=smooth.__getitem__)
    if start - smooth[lowest] <= max(LEAST_FALL * abs(start), noise(losses[: lowest + 1])):
        flat = f"the loss hardly falls, from {start:.4g} to {smooth[lowest]:.4g}: another range, or more --steps"
        return Suggestion(None, None, None, [flat])
    end, length = longest_fall(smooth)
    begin = end - length + 1  # as if it had no gaps
    valley = rates[max(0, end - math.ceil(length / 2))]
    steepest = rates[min(range(begin, end), key=lambda at: smooth[at + 1] - smooth[at])]
    doubts = []
    if is_whole and lowest == len(smooth) - 1:
        doubts.append(
            f"the loss still falls at the end of the range ({rates[-1]:.4g}): higher ones may be better; --to"
        )
    if begin <= skipped:
        doubts.append(f"the loss falls from the beginning of the range ({rates[0]:.4g}): lower ones may do too; --from")
    return Suggestion(valley, steepest, rates[lowest] / 10, doubts, (rates[begin], rates[end]))


def noise(losses: Sequence[float]) -> float:
    """How much the losses of one batch and the next differ, whatever their trend: a standard deviation, by the median
    of the differences.
    """
    differences = [abs(after - before) for before, after in pairwise(losses)]
    return statistics.median(differences) * 1.4826 / math.sqrt(2) if differences else 0.0


def longest_fall(values: Sequence[float]) -> tuple[int, int]:
    """(where the longest falling subsequence ends, how many values it has); of equally long ones the first to end."""
    lasts: list[float] = []  # the highest last value of a falling subsequence of each length, negated: it rises
    end = 0
    for at, value in enumerate(values):
        place = bisect_left(lasts, -value)
        if place == len(lasts):
            lasts.append(-value)
            end = at
        else:
            lasts[place] = -value
    return end, len(lasts)
