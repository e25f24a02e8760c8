"""The formulas of a summary: intervals over seeds and examples, paired differences, how sure a choice is.

Each figure's meaning, formula and source is in docs/statistics.md. scipy and numpy are imported where they are used.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

LEVEL = 0.95
LARGEST = 1e150  # what can still be squared; beyond it is as good as infinite
RESAMPLES = 10_000
CHUNK = 500  # resamples at once: memory for a thousand settings

# Names, of metrics or their classes, of what lies in [0, 1].
FRACTIONS = re.compile(
    r"(?<![a-z])(?:acc\d*|accuracy|top_?\d+|precision|recall|specificity|sensitivity|f1|fbeta|auc|auroc|map\d*|iou|jaccard|"
    r"dice)(?![a-z])"
)


def is_fraction(names: Sequence[str], values: Sequence[float], examples: int | None) -> bool:
    """Whether a metric is a fraction, in [0, 1] by what it is: by its name or its class's, or since every value is a
    whole number of right examples, to float32's precision.
    """
    words = [re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower() for name in names]
    if not values or not all(0 <= value <= 1 for value in values) or any(word.endswith("loss") for word in words):
        return False
    if any(FRACTIONS.search(word) for word in words):
        return True
    if examples is None or examples > 100_000:
        return False
    return all(abs(v * examples - round(v * examples)) <= examples * 1.2e-7 + 1e-9 for v in values)


def figures(values: Sequence[float | None], fraction: bool, examples: int | None) -> dict[str, Any]:
    """What is said of one metric of one setting: n, how many are not finite, mean, standard deviation (n - 1), the 95 %
    interval of the mean, min and max. None: a value that was not finite.

    Args:
        fraction: it lies in [0, 1]: the interval does too, and counts the sampling of the examples.
        examples: how many each value is a mean over; None: not known.
    """
    known = [value for value in values if value is not None]
    n = len(known)
    row: dict[str, Any] = {"n": n, "not_finite": len(values) - n, "mean": None, "std": None, "ci95": None}
    row |= {"min": None, "max": None, "examples": examples, "is_fraction": fraction}
    if n:
        row |= {"mean": mean(known), "min": min(known), "max": max(known)}
    if n > 1:
        row["std"] = math.sqrt(variance(known))
        row["ci95"] = fraction_interval(known, examples) if fraction else t_interval(known)
    return row


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def variance(values: Sequence[float]) -> float:
    """With n - 1; exactly 0 where all are equal."""
    if max(values) == min(values):
        return 0.0
    center = mean(values)
    return math.fsum((value - center) ** 2 for value in values) / (len(values) - 1)


def t_quantile(freedom: float) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.5 + LEVEL / 2, freedom))


def z_quantile() -> float:
    from scipy import stats

    return float(stats.norm.ppf(0.5 + LEVEL / 2))


def t_interval(values: Sequence[float]) -> list[float] | None:
    """Student's interval of the mean; None where all values are equal: they say nothing of their spread."""
    spread = variance(values)
    if spread == 0:
        return None
    half = t_quantile(len(values) - 1) * math.sqrt(spread / len(values))
    return [mean(values) - half, mean(values) + half]


def fraction_interval(values: Sequence[float], examples: int | None) -> list[float] | None:
    """Wilson's score interval at the effective number of examples, so that it stays in [0, 1].

    The mean's variance is that between the seeds and that of the examples, (t / z)^2 s^2 / n + p (1 - p) / N, where t
    is Student's quantile with n - 1 degrees of freedom and z the normal one; the effective number is p (1 - p) over it.
    """
    p, z = mean(values), z_quantile()
    inside = p * (1 - p)
    whole = widened(values, z) + (inside / examples if examples else 0.0)
    if whole == 0 and not examples:
        return None
    return wilson(p, inside / whole if whole > 0 else float(examples or 1), z)


def wilson(p: float, count: float, z: float) -> list[float]:
    """Wilson's score interval of a fraction p of so many examples."""
    center = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2)
    return [max(0.0, center - half), min(1.0, center + half)]


def examples_interval(p: float, examples: int) -> list[float]:
    """The 95 % interval of one run's fraction for other examples; of other seeds one run says nothing."""
    return wilson(p, examples, z_quantile())


def widened(values: Sequence[float], z: float) -> float:
    """The variance of a mean over seeds, by as much more as it takes for the normal quantile to stand for Student's."""
    return (t_quantile(len(values) - 1) / z) ** 2 * variance(values) / len(values)


def paired(
    one: Mapping[str, float | None], two: Mapping[str, float | None], fraction: bool, examples: int | None
) -> dict[str, Any] | None:
    """The difference of two settings over their common seeds; None where fewer than two are common.

    ci95 is Student's paired interval, of other seeds on these examples (None where all differences are equal);
    ci95_examples is of other examples too, as if the two settings' mistakes were independent (None where unknown).
    """
    seeds = [seed for seed, value in one.items() if value is not None and two.get(seed) is not None]
    if len(seeds) < 2:
        return None
    pairs = [(value, other) for s in seeds if (value := one[s]) is not None and (other := two[s]) is not None]
    differences = [value - other for value, other in pairs]
    low, high = (-1.0, 1.0) if fraction else (-math.inf, math.inf)
    found: dict[str, Any] = {"seeds": seeds, "difference": mean(differences), "ci95": None, "ci95_examples": None}
    if (interval := t_interval(differences)) is not None:
        found["ci95"] = [max(low, interval[0]), min(high, interval[1])]
    if fraction and examples:
        z, means = z_quantile(), [mean([pair[side] for pair in pairs]) for side in (0, 1)]
        half = z * math.sqrt(widened(differences, z) + sum(p * (1 - p) for p in means) / examples)
        found["ci95_examples"] = [max(low, found["difference"] - half), min(high, found["difference"] + half)]
    return found


def choice(
    by_seed: Sequence[Mapping[str, float | None]], mode: str, fraction: bool, examples: int | None
) -> dict[str, Any] | None:
    """How likely the first setting, the one that was chosen, is really the best; None where there is one setting, or
    one with fewer than two seeds.

    `first_is_best` is of other seeds on these examples; `first_is_best_examples` of other examples too (None where
    unknown). Neither is more than 1 - 2^-n with n seeds: so often all n agree on a sign where there is no difference.
    `excess` is by how much the value in first place is too good on average, being the best of several.
    """
    known = [{seed: value for seed, value in values.items() if value is not None} for values in by_seed]
    if len(known) < 2 or min(len(values) for values in known) < 2:
        return None
    seeds = min(len(values) for values in known)
    most = 1 - 0.5**seeds
    share, excess = bootstrap(known, mode, None)
    found: dict[str, Any] = {"first_is_best": min(share, most), "first_is_best_examples": None, "excess": excess}
    if fraction and examples:
        share, found["excess"] = bootstrap(known, mode, examples)
        found["first_is_best_examples"] = min(share, most)
    return {**found, "most": most, "settings": len(known), "resamples": RESAMPLES, "seeds": seeds}


def bootstrap(known: Sequence[Mapping[str, float]], mode: str, examples: int | None) -> tuple[float, float]:
    """The share of resamples in which the first setting is the best, ties shared; and the mean excess of the best.

    A seed is drawn for all settings together: what it does to all of them alike cancels. Deviations from a setting's
    mean are widened by sqrt(n / (n - 1)); with `examples`, its right ones are then drawn as a binomial of N.
    """
    import numpy as np

    seeds = list(dict.fromkeys(seed for values in known for seed in values))
    sign = 1.0 if mode == "max" else -1.0
    has = np.array([[seed in values for values in known] for seed in seeds], dtype=float)  # (seeds, settings)
    table = np.array([[values.get(seed, 0.0) for values in known] for seed in seeds])
    counts = has.sum(axis=0)
    means = table.sum(axis=0) / counts
    widen = np.sqrt(counts / (counts - 1))
    generator = np.random.default_rng(0)
    share, excess = 0.0, 0.0
    for _ in range(RESAMPLES // CHUNK):
        weights = generator.multinomial(len(seeds), [1 / len(seeds)] * len(seeds), size=CHUNK)
        total = weights @ has
        drawn = np.where(total > 0, (weights @ table) / np.maximum(total, 1), means)
        drawn = means + widen * (drawn - means)
        if examples is not None:
            drawn = generator.binomial(examples, np.clip(drawn, 0, 1)) / examples
        gain = np.round(sign * drawn, 12)  # sums in another order are no difference
        is_best = gain == gain.max(axis=1, keepdims=True)
        first = is_best / is_best.sum(axis=1, keepdims=True)
        share += float(first[:, 0].sum())
        excess += float((sign * (drawn - means) * first).sum())
    return round(share / RESAMPLES, 4), max(0.0, excess / RESAMPLES)
