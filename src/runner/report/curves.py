"""Curves out of rows: columns on one axis, short enough for a page, and the mean over seeds with its band."""

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Values = list[float | None]
MOST_POINTS = 2_000  # of a curve on a run's page
MOST_NUMBERS = 60_000  # of all curves on a page of many runs: half a megabyte
NO_CURVE = ("epoch", "step", "examples_per_second")


def columns(rows: Sequence[Row]) -> dict[str, Values]:
    """The rows' numbers by name; a list (a learning rate for each group of parameters) is as many columns."""
    flat = [expanded(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return {name: [finite(row.get(name)) for row in flat] for name in names}


def expanded(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list) and len(set(value)) > 1:
            found |= {f"{name}[{number}]": one for number, one in enumerate(value[:8])}
        else:
            found[name] = (value[0] if value else None) if isinstance(value, list) else value
    return found


def finite(value: Any) -> float | None:
    """The value with six digits, which is more than a chart shows; None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        return None
    return float(f"{value:.6g}") if isinstance(value, float) else value


def thinned(rows: Sequence[Row], most: int) -> tuple[list[Row], int]:
    """Every n-th row, with the last one, so that there are about `most`; and n."""
    every = max(1, math.ceil(len(rows) / most))
    kept = list(rows[::every])
    if rows and kept[-1] is not rows[-1]:
        kept.append(rows[-1])
    return kept, every


def on_axis(axis: Sequence[int], at: Sequence[int], values: Sequence[float | None]) -> Values:
    """Values at some places of an axis, as one value for each place; nothing behind the last one."""
    known = dict(zip(at, values, strict=True))
    found = [known.get(place) for place in axis]
    while found and found[-1] is None:
        found.pop()
    return found


def mean_and_band(curves: Sequence[Sequence[float | None]]) -> tuple[Values, Values, Values]:
    """(mean, lowest, highest) at each place that every curve has reached; a gap where one of them has none."""
    length = min((len(curve) for curve in curves), default=0)
    means: Values = []
    lows: Values = []
    highs: Values = []
    for place in range(length):
        values = [value for curve in curves if (value := curve[place]) is not None]
        is_whole = len(values) == len(curves)
        means.append(finite(math.fsum(values) / len(values)) if is_whole else None)
        lows.append(min(values) if is_whole else None)
        highs.append(max(values) if is_whole else None)
    return means, lows, highs


def is_spaced_by_factors(values: Sequence[float]) -> bool:
    """Whether an axis of logarithms spreads the values more evenly: 0.01, 0.1, 1; not 1, 2, 3."""
    places = sorted(set(values))
    if len(places) < 2 or places[0] <= 0 or places[-1] / places[0] < 8:
        return False
    if len(places) == 2:
        return True
    return largest_gap([math.log(place) for place in places]) < largest_gap(places)


def largest_gap(places: Sequence[float]) -> float:
    """As a share of the whole."""
    return max(b - a for a, b in itertools.pairwise(places)) / (places[-1] - places[0])


def lines_chart(
    title: str, x: Sequence[Any], named: Mapping[str, Sequence[Any]], x_label: str = "epoch"
) -> dict[str, Any]:
    """A chart of named curves on one axis, for a block of kind "charts" (see runner.report.page)."""
    series = [
        {"label": name, "y": list(values), "color": color_of(name, at)}
        for at, (name, values) in enumerate(named.items())
    ]
    return {"kind": "lines", "title": title, "xLabel": x_label, "x": list(x), "series": series}


def color_of(name: str, number: int) -> int:
    """Each part has the same colour in each chart."""
    return {"val": 0, "overfit": 0, "train": 1, "test": 2}.get(name.partition("/")[0], number)
