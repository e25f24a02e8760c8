"""Each key in which runs differ against what came out: charts of one key, and all keys as parallel coordinates."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from runner.report import curves
from runner.report.gather import Run
from runner.terminal.words import plural

Block = dict[str, Any]
ENDED = ("done", "pruned", "failed", "diverged")  # what a run reached is no figure of its setting before
MOST_CHARTS = 12
MOST_CHOICES = 30  # of a key whose values are words: more fit no axis


def blocks(
    runs: Sequence[Run], colour: Mapping[int, int], caveat: str | None = None, words: Sequence[str] = ()
) -> list[Block]:
    """The charts of the keys that have more than one value, and the parallel coordinates of more than two.

    Args:
        caveat: what to say where the runs are not all alike.
        words: of the command: a search says of a key that its values lie apart by factors.
    """
    monitors = {(run.record["monitor"], run.record["mode"]) for run in runs if run.record.get("monitor")}
    if len(monitors) != 1:
        return []
    monitor, mode = next(iter(monitors))
    logarithmic = {word.partition("=")[0] for word in words if re.match(r"[^=]+=tag\(\s*log\b", word)}
    found = [axis_of(key, runs, key in logarithmic) for key in dict.fromkeys(key for run in runs for key in run.labels)]
    axes = [axis for axis in found if axis is not None][:MOST_CHARTS]
    is_open = [run.state not in ENDED for run in runs]
    for axis in axes:
        axis["at"] = [None if left_out else at for left_out, at in zip(is_open, axis["at"], strict=True)]
    values = [
        None if left_out else curves.finite(run.record.get("best_value"))
        for left_out, run in zip(is_open, runs, strict=True)
    ]
    done = [run.state == "done" for run in runs]
    if not axes or not any(value is not None for value in values):
        return []
    charts = [chart_of(axis, values, done, f"best {monitor}", colour) for axis in axes]
    lines = [
        "Each dot is a run, a bar the mean of the finished ones at one value of the key; a cross at the edge is a run"
        " without a value."
    ]
    if any(is_open):
        lines.append(
            f"Left out: {plural(sum(is_open), 'run')} that {'has' if sum(is_open) == 1 else 'have'} not ended."
        )
    lines += [caveat] if caveat else []
    made: list[Block] = [{"kind": "charts", "heading": "Keys", "charts": charts, "lines": lines}]
    if len(axes) > 2:
        made.append(parallel(axes, values, f"best {monitor}", str(mode), colour))
    return made


def number(word: Any) -> float | int | None:
    """The finite number that a value's text is; None where it is none. Whole numbers stay whole."""
    try:
        found = float(word)
        return None if not math.isfinite(found) else int(word) if str(word).lstrip("-").isdigit() else found
    except (TypeError, ValueError, OverflowError):
        return None


def axis_of(key: str, runs: Sequence[Run], is_log: bool = False) -> Block | None:
    """A key's axis and where each run lies on it; None where all runs have one value, or too many words."""
    texts = [run.labels.get(key) for run in runs]
    known = dict.fromkeys(text for text in texts if text is not None)
    if len(known) < 2:
        return None
    numbers = {text: number(text) for text in known}
    if all(value is not None for value in numbers.values()):
        places = [value for value in numbers.values() if value is not None]
        at = [None if text is None else numbers[text] for text in texts]
        return {"label": key, "log": (is_log and min(places) > 0) or curves.is_spaced_by_factors(places), "at": at}
    words = sorted(known, key=lambda text: math.inf if numbers[text] is None else float(text))  # null comes last
    if len(words) > MOST_CHOICES:
        return None
    return {"label": key, "words": words, "at": [None if text is None else words.index(text) for text in texts]}


def chart_of(axis: Block, values: Sequence[Any], done: Sequence[bool], label: str, colour: Mapping[int, int]) -> Block:
    points = [[at, values[run], run, colour.get(run)] for run, at in enumerate(axis["at"]) if at is not None]
    places: dict[float, list[float]] = {}
    for at, value, run, _ in points:
        if value is not None and done[run]:
            places.setdefault(at, []).append(value)
    means = [[at, curves.finite(math.fsum(found) / len(found)), len(found)] for at, found in sorted(places.items())]
    is_repeated = any(len(found) > 1 for found in places.values())
    facts = {key: value for key, value in axis.items() if key != "at"}
    return {
        "kind": "dots",
        "title": axis["label"],
        "yLabel": label,
        "x": facts,
        "points": points,
        "means": means if is_repeated else [],
    }


def parallel(axes: Sequence[Block], values: Sequence[Any], label: str, mode: str, colour: Mapping[int, int]) -> Block:
    """A line for each run that has a value, across all keys to the metric."""
    last = {"label": label, "log": False}
    lines = [
        {"run": run, "at": [*(axis["at"][run] for axis in axes), value]}
        for run, value in enumerate(values)
        if value is not None
    ]
    facts = [{key: value for key, value in axis.items() if key != "at"} for axis in axes]
    better = "higher" if mode == "max" else "lower"
    note = (
        f"A line is a run, the stronger its colour the better ({better} is better). Runs without a value, or that have"
        " not ended, are left out."
    )
    return {
        "kind": "parallel",
        "heading": "All keys",
        "axes": [*facts, last],
        "lines": lines,
        "mode": mode,
        "note": note,
    }
