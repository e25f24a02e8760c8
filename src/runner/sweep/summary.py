"""What a sweep says: one row a setting, seeds as the statistical axis. Statistics by scipy."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.storage.files import write_atomically

LEVEL = 0.95


def statistics(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, standard deviation (n - 1), the 95 % confidence interval of the mean (Student's t), min and max."""
    from scipy import stats

    n, mean = len(values), math.fsum(values) / len(values)
    row: dict[str, Any] = {"n": n, "mean": mean, "std": None, "ci95": None, "min": min(values), "max": max(values)}
    if n > 1:
        row["std"] = float(stats.tstd(values)) if max(values) > min(values) else 0.0
        row["ci95"] = interval(values)
    return row


def interval(values: Sequence[float]) -> list[float]:
    from scipy import stats

    mean = math.fsum(values) / len(values)
    if max(values) == min(values):
        return [mean, mean]
    error = float(stats.sem(values))
    return [float(x) for x in stats.t.interval(LEVEL, len(values) - 1, loc=mean, scale=error)]


def metrics_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A run's figures by name; what is of the best epoch and what of the last never share a name."""
    names = {"best/" + row["monitor"]: row["best_value"], "last/" + row["monitor"]: row.get("last/" + row["monitor"])}
    names |= {key: value for key, value in row.items() if key.startswith(("test/best/", "test/last/"))}
    return {key: value for key, value in names.items() if value is not None}


def summarize(jobs: Sequence[tuple[Mapping[str, str], Mapping[str, Any]]]) -> dict[str, Any]:
    """Of finished jobs, each (settings, row of records.read): settings without the seed are one row, best first.

    The order is that of the monitored metric of the best epoch, never of a test figure.
    """
    if not jobs:
        return {"monitor": None, "settings": [], "paired": None}
    groups: dict[tuple[tuple[str, str], ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for settings, row in jobs:
        key = tuple(sorted((k, v) for k, v in settings.items() if k != "seed"))
        groups.setdefault(key, []).append((str(row["config.seed"]), row))
    monitor, mode = jobs[0][1]["monitor"], jobs[0][1]["mode"]
    rows: list[dict[str, Any]] = []
    for key, members in groups.items():
        names = list({name: None for _, row in members for name in metrics_of(row)})
        figures = {}
        for name in names:
            values = [metrics_of(row)[name] for _, row in members if name in metrics_of(row)]
            figures[name] = statistics(values)
        by_seed = {seed: row["best_value"] for seed, row in members if row["best_value"] is not None}
        rows.append({"setting": dict(key), "n": len(members), "metrics": figures, "by_seed": by_seed})
    sign = -1 if mode == "max" else 1
    main = f"best/{monitor}"
    rows.sort(key=lambda row: sign * row["metrics"][main]["mean"] if main in row["metrics"] else math.inf)
    return {"monitor": monitor, "mode": mode, "settings": rows, "paired": paired(rows)}


def paired(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The difference of the two best settings over their common seeds, with its interval."""
    if len(rows) < 2:
        return None
    one, two = rows[0]["by_seed"], rows[1]["by_seed"]
    seeds = sorted(set(one) & set(two), key=lambda s: (len(s), s))
    if len(seeds) < 2:
        return None
    differences = [one[seed] - two[seed] for seed in seeds]
    mean = math.fsum(differences) / len(differences)
    return {"seeds": seeds, "difference": mean, "ci95": interval(differences)}


def write(place: Path, summary: Mapping[str, Any]) -> None:
    """summary.json, and summary.csv with one line for each setting and metric."""
    write_atomically(place / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    keys = list({key: None for row in summary["settings"] for key in row["setting"]})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*keys, "metric", "n", "mean", "std", "ci95_low", "ci95_high", "min", "max"])
    for row in summary["settings"]:
        for name, figures in row["metrics"].items():
            low, high = figures["ci95"] or (None, None)
            values = [figures["n"], figures["mean"], figures["std"], low, high, figures["min"], figures["max"]]
            writer.writerow([*(row["setting"].get(key) for key in keys), name, *values])
    write_atomically(place / "summary.csv", text.getvalue().encode())


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary as a table for people."""
    from runner.tables import table

    if not summary["settings"]:
        return ["no job is finished: nothing to sum up"]
    monitor = summary["monitor"]
    tests = [name for name in summary["settings"][0]["metrics"] if name.startswith("test/best/")]
    shown = [f"best/{monitor}", *([t for t in tests if t.endswith("/accuracy")] or tests[:1])]
    header = ["setting", "n", *[h for name in shown for h in (name, "95 % interval")]]
    cells = []
    for row in summary["settings"]:
        setting = ", ".join(f"{k}={v}" for k, v in row["setting"].items()) or "(all)"
        line = [setting, f"{row['n']}" + (" (one seed)" if row["n"] == 1 else "")]
        for name in shown:
            figures = row["metrics"].get(name)
            if figures is None:
                line += ["-", "-"]
                continue
            spread = f" ± {figures['std']:.4f}" if figures["std"] is not None else ""
            low_high = f"{figures['ci95'][0]:.4f} to {figures['ci95'][1]:.4f}" if figures["ci95"] else "-"
            line += [f"{figures['mean']:.4f}{spread}", low_high]
        cells.append(line)
    result = table(header, cells).splitlines()
    if (pair := summary["paired"]) is not None:
        low, high = pair["ci95"]
        result.append(
            f"the best minus the second, over the {len(pair['seeds'])} common seeds: {pair['difference']:+.4f}"
            f" (95 % interval {low:+.4f} to {high:+.4f})"
        )
    return result
