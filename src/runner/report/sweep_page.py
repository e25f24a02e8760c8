"""The page of many runs: a sweep's summary as the terminal prints it, curves, each key against the metric, the runs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from runner.report import curves, keys, search, tables, words
from runner.report.gather import Found, Run, sweep_record
from runner.report.tables import IN_COLOUR
from runner.storage.rows import axis_of
from runner.sweep import show, summary
from runner.sweep.settings import text as value_text
from runner.terminal.words import duration
from runner.values import flatten

Block = dict[str, Any]
UNLIKE_TABLES = "Runs of all tables are drawn together, though what they reached is not comparable from table to table."
UNLIKE_RUNS = "These runs may have been evaluated on different examples: only a sweep's summary looks after that."


def blocks(found: Found) -> list[Block]:
    """A sweep or a search, from top to bottom."""
    summed = summary.summarize(found.members)
    number = {run.name: at for at, run in enumerate(found.runs)}
    of_settings = [[number[name] for name in row["jobs"]] for row in summed["settings"]]
    for row, own in zip(summed["settings"], of_settings, strict=True):
        for at in own:
            found.runs[at].labels = row["setting"]
    record = sweep_record(found.place) or {}
    made = [headline(found, summed)]
    for at, facts in enumerate(summed["tables"]):
        made.append(tables.of_settings(facts, summed["settings"], of_settings, at, len(summed["tables"]) > 1))
    if len(summed["tables"]) > 1:
        differ = ", ".join(summed["apart"])
        made[1]["lines"].insert(
            0, f"{len(summed['tables'])} tables, not compared with each other: they differ in {differ}"
        )
    if summed["notes"]:
        made.append({"kind": "lines", "heading": "Notes", "lines": summed["notes"]})
    made += search.blocks(found, record)
    made += charts(found.runs, groups_of(summed, of_settings, found.runs))
    several = len(summed["tables"]) > 1
    made += keys.blocks(
        found.runs, colours(of_settings), UNLIKE_TABLES if several else None, record.get("arguments", [])
    )
    made += [tables.of_runs(found.runs, colours(of_settings)), words.command_block(record.get("command") or [])]
    return made if several else [*made, *best_config(found.runs)]


def varying(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The config keys in which the runs differ, without what is worked out from others."""
    keys_of_all = {key: None for row in rows for key in row}
    ours = tuple(f"config.{key}" for key in ("derived.", "name", "tags", "notes", "quiet", "sweep"))
    differing = (key for key in keys_of_all if any(row.get(key) != rows[0].get(key) for row in rows[1:]))
    return [key for key in differing if not key.startswith(ours)]


def blocks_of_runs(found: Found) -> list[Block]:
    """Runs from anywhere: the same, without statistics, which only a sweep's settings have."""
    flat = [{f"config.{key}": value for key, value in flatten(run.record["config"]).items()} for run in found.runs]
    for key in varying(flat)[:12]:
        name = key.removeprefix("config.")
        for run, row in zip(found.runs, flat, strict=True):
            if name != "seed" and key in row:
                value = row[key]
                run.labels[name] = str(value).rpartition(".")[2] if name.endswith("._target_") else value_text(value)
    own = [[at] for at in best_first(found.runs)]
    several = [{"name": found.runs[at].name, "runs": [at]} for (at,) in own]
    made = [headline(found, None), *charts(found.runs, several)]
    return [
        *made,
        *keys.blocks(found.runs, colours(own), UNLIKE_RUNS),
        tables.of_runs(found.runs, colours(own)),
        *best_config(found.runs),
    ]


def headline(found: Found, summed: Mapping[str, Any] | None) -> Block:
    """How many runs are in which state; of a sweep of one table also its first setting."""
    states: dict[str, int] = {}
    for run in found.runs:
        states[run.state] = states.get(run.state, 0) + 1
    items: list[Block] = []
    if summed is not None and len(summed["tables"]) == 1:
        first, facts = summed["settings"][0], summed["tables"][0]
        figures = first["metrics"].get(f"best/{facts['monitor']}")
        if figures is not None and figures["mean"] is not None:
            value, interval = show.shown_figures(figures, first["n"], True)
            note = f"{words.label_of(first['setting'], first['name'])}; seeds: {show.seeds(first)}"
            items.append({"label": f"first setting, best {facts['monitor']}", "value": value, "note": note})
            if interval != "-":
                items[0]["interval"] = interval
    items.append(
        {"label": "runs", "value": str(len(found.runs)), "note": ", ".join(f"{n} {s}" for s, n in states.items())}
    )
    if summed is not None:
        items.append({"label": "settings", "value": str(len(summed["settings"]))})
    seconds = sum(run.record.get("seconds") or 0.0 for run in found.runs)
    items.append({"label": "training in all", "value": duration(seconds)})
    state = "running" if found.is_running else "done" if set(states) <= {"done", "pruned"} else "ended"
    return {"kind": "headline", "state": state, "items": items, "lines": []}


def colours(of_settings: Sequence[Sequence[int]]) -> dict[int, int]:
    """run -> the colour of its setting; a run whose setting has none is not in it."""
    return {at: number for number, own in enumerate(of_settings[:IN_COLOUR]) for at in own}


# ------------------------------------------------------------------------------------------------------------- curves


def groups_of(summed: Mapping[str, Any], of_settings: Sequence[Sequence[int]], runs: Sequence[Run]) -> list[Block]:
    """The settings in the summary's order; of each the runs that its mean is of: the finished ones, as in the table."""
    made = []
    for row, own in zip(summed["settings"], of_settings, strict=True):
        done = [at for at in own if runs[at].state == "done"]
        alive = [at for at in own if runs[at].rows and runs[at].state not in ("failed", "diverged")]
        made.append({"name": words.label_of(row["setting"], row["name"]), "runs": list(own), "mean": done or alive})
    known = {at for own in of_settings for at in own}
    return [*made, *({"name": run.name, "runs": [at]} for at, run in enumerate(runs) if at not in known)]


def charts(runs: Sequence[Run], several: Sequence[Block]) -> list[Block]:
    """A chart of each metric, the monitored one first: each run's curve, and of each setting the mean with its band."""
    every, found = read_columns(runs)
    monitors = [str(run.record.get("monitor")) for run in runs if run.rows]
    names = list(
        dict.fromkeys(name for columns in found for name in columns if name not in (*curves.NO_CURVE, "seconds"))
    )
    if not names:
        return []
    rank = {name: at for at, name in enumerate(names)}
    names.sort(key=lambda name: (name not in monitors, name == "lr", not name.startswith("val/"), rank[name]))
    key = "step" if any(axis_of(run.rows) == "step" for run in runs) else "epoch"
    axis = sorted({place for columns in found for place in columns.get(key, []) if place is not None})
    made = [chart_of(name, key, axis, found, several) for name in names[:8]]
    repeated = any(len(group.get("mean", [])) > 1 for group in several)
    said = []
    if repeated:
        said.append(
            "Thick: the mean over a setting's finished seeds (where none has finished, of those that have not failed),"
            " as far as all of them go; the band: from the lowest to the highest of them; thin: each run."
        )
    if len(several) > IN_COLOUR:
        said.append(f"The first {IN_COLOUR} have colours of their own; choose a row of a table to bring out any other.")
    said += [f"One in {every} evaluations is drawn."] if every > 1 else []
    said += [f"{len(names) - 8} more metrics are not drawn: {', '.join(names[8:])}."] if len(names) > 8 else []
    legend = [
        {"label": group["name"], "color": at, "runs": group["runs"]} for at, group in enumerate(several[:IN_COLOUR])
    ]
    return [{"kind": "charts", "heading": "Curves", "charts": made, "lines": said, "legend": legend}]


def read_columns(runs: Sequence[Run]) -> tuple[int, list[dict[str, Any]]]:
    """Each run's columns, thinned so that all together fit a page; and of how many rows one was kept."""
    numbers = sum(len(run.rows) * max(1, len(run.rows[0]) - 3) for run in runs if run.rows)
    every = max(1, -(-numbers // curves.MOST_NUMBERS))
    found = []
    for run in runs:
        kept = [row for number, row in enumerate(run.rows) if row is run.rows[-1] or number % every == 0]
        found.append(curves.columns(kept))
    return every, found


def chart_of(
    name: str, key: str, axis: Sequence[Any], found: Sequence[Mapping[str, Any]], several: Sequence[Block]
) -> Block:
    """The curves of a metric over the epochs, or over the steps."""
    series: list[Block] = []
    for number, group in reversed(list(enumerate(several))):  # the first are drawn last, on top
        color = number if number < IN_COLOUR else None
        lines = {at: curves.on_axis(axis, found[at][key], found[at][name]) for at in group["runs"] if name in found[at]}
        counted = [lines[at] for at in group.get("mean", []) if at in lines]
        if len(counted) > 1:
            mean, low, high = curves.mean_and_band(counted)
            label = f"{group['name']}, mean of {len(counted)}"
            one: Block = {"label": label, "y": mean, "runs": group["runs"], "color": color, "isMean": True}
            series.append(one | ({"band": [low, high]} if low != high else {}))
        for at, line in lines.items():
            series.append({"run": at, "y": line, "color": color, "runs": [at], "faint": len(counted) > 1})
    title = "learning rate" if name == "lr" else name
    return {"kind": "lines", "title": title, "xLabel": key, "x": list(axis), "series": series}


def best_first(runs: Sequence[Run]) -> list[int]:
    """The runs' numbers by what they reached, where all monitored the same metric; else as they are."""
    numbers = list(range(len(runs)))
    if len({(run.record["monitor"], run.record["mode"]) for run in runs if run.record.get("monitor")}) != 1:
        return numbers
    sign = -1 if any(run.record["mode"] == "max" for run in runs) else 1
    values: list[Any] = [run.record.get("best_value") for run in runs]
    return sorted(numbers, key=lambda at: math.inf if values[at] is None else sign * values[at])


def best_config(runs: Sequence[Run]) -> list[Block]:
    """The config of the best run, where all monitored the same metric."""
    if len({(run.record["monitor"], run.record["mode"]) for run in runs if run.record.get("monitor")}) != 1:
        return []
    best = runs[best_first(runs)[0]]
    if best.record.get("best_value") is None:
        return []
    return words.config_blocks(
        best.record, f"Config of the run with the best value: {best.name}", words.filled_in(best.path)
    )
