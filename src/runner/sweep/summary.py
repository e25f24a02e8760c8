"""What a sweep says: one row a setting, seeds as the statistical axis, and only like compared with like.

Contract: settings are ranked and subtracted only inside a table, whose settings share the monitored metric, its mode
and definition, the part and the examples that it was evaluated on, and the epochs. Jobs that ended badly stay counted.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from runner.config.names import part_of
from runner.errors import InputError
from runner.groups import length
from runner.storage import records
from runner.storage.identity import LATER
from runner.sweep import statistics
from runner.sweep.settings import Member, Setting, settings, text
from runner.terminal.progress import bar

# Of the dataset's keys those that choose no examples: they may differ inside a table.
SAME_EXAMPLES = ("augment", "random_starts", "transform", "mean", "std", "target_transform", "download")


def summarize(found: Sequence[Member]) -> dict[str, Any]:
    """The summary of a folder's jobs, as summary.json holds it.

    Inside a table the order is that of the monitored metric of the best epoch, never of a test figure (unless that is
    what was monitored).
    """
    with bar("summing up"):
        return summed(settings(found))


def summed(made: Sequence[Setting]) -> dict[str, Any]:
    tables: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    several = grouped(made)
    for kind, group in several:
        record = next((setting.record for setting in group if setting.record is not None), None)
        table = facts_of(record, kind)
        table["stopped"] = sum(bool((m.record or {}).get("stopped")) for setting in group for m in setting.done)
        of_table = sorted((row_of(setting, table) for setting in group), key=lambda row: order(row, table))
        for rank, row in enumerate(of_table):
            row |= {"table": len(tables), "rank": rank + 1 if main_of(row, table) is not None else None}
        table["settings"] = [row["name"] for row in of_table]
        compare(table, of_table)
        tables.append(table)
        rows += of_table
    only = tables[0] if len(tables) == 1 else {}
    return {
        "level": statistics.LEVEL,
        "monitor": only.get("monitor"),  # of the one table; null where there are several
        "mode": only.get("mode"),
        "paired": only.get("paired"),
        "jobs": sum(row["seeds"]["planned_in_all"] for row in rows),
        "settings": rows,
        "tables": tables,
        "apart": apart(several),
        "notes": notes(made),
    }


def grouped(made: Sequence[Setting]) -> list[tuple[dict[str, Any], list[Setting]]]:
    """The settings of each table, with what they share, the one of most jobs first; a setting that has not begun joins
    those that its config fits.
    """
    begun = [setting for setting in made if setting.record is not None]
    tables: dict[str, tuple[dict[str, Any], list[Setting]]] = {}
    for setting in [*begun, *(s for s in made if s.record is None)]:
        kind = like(setting)
        if setting.record is None:
            fits = (k for k, _ in tables.values() if all(k.get(key) == value for key, value in kind.items()))
            kind = next(fits, kind)
        tables.setdefault(json.dumps(kind, sort_keys=True, default=str), (kind, []))[1].append(setting)
    return sorted(tables.values(), key=lambda table: -sum(len(setting.members) for setting in table[1]))


def like(setting: Setting) -> dict[str, Any]:
    """What two settings must have in common to be compared, by the names that a reader knows."""
    config, record = setting.config, setting.record
    monitor = str(record["monitor"] if record else config.get("trainer.monitor"))
    metric = monitor.rpartition("/")[2]
    measured = "loss." if metric == "loss" else f"metrics.{metric}."
    kind = {f"trainer.{key}": config.get(f"trainer.{key}") for key in ("limit_batches", "dry_run", "epochs")}
    others = ("trainer.steps", "trainer.evaluate_every", "trainer.limit_eval_batches")
    kind |= {key: config[key] for key in others if config.get(key) is not None}
    if (same := config.get("trainer.overfit_batches")) is not None:
        kind |= {"trainer.overfit_batches": same, "dataloader.batch_size": config.get("dataloader.batch_size")}
    if metric == "loss":  # what it is of an evaluation is for the task to say
        kind["task._target_"] = config.get("task._target_", LATER["task._target_"])
    for key, value in config.items():
        is_data = key.startswith("dataset.") and not any(part.startswith(SAME_EXAMPLES) for part in key.split(".")[1:])
        if is_data or key.startswith(measured):
            kind[key] = value
    if record is not None:
        part = record.get("chosen_on", monitor.partition("/")[0])
        kind |= {"trainer.monitor": monitor, "mode": record["mode"], "evaluated part": part}
        kind["evaluated examples"] = record.get("examples", {}).get(part)
    return kind


def apart(tables: Sequence[tuple[Mapping[str, Any], Sequence[Setting]]]) -> list[str]:
    """In what the tables differ, each with its values; a group by its choice, where each table has one of its own."""
    found = [{**kind, **named(group)} for kind, group in tables]
    whole = [g for g in ("dataset", "loss", "task", "metrics") if len({text(kind.get(g)) for kind in found}) > 1]
    shown = []
    for key in dict.fromkeys(key for kind in found for key in kind):
        values = dict.fromkeys(text(kind[key]) for kind in found if key in kind)
        if len(values) > 1 and not any(key.startswith(f"{group}.") for group in whole):
            shown.append(f"{key} ({', '.join(values)})")
    return shown


def named(group: Sequence[Setting]) -> dict[str, str]:
    """The choices of the groups that decide what is measured, where all of a table's settings share them."""
    names = ("dataset", "loss", "task", "metrics")
    choices = [setting.members[0].choices for setting in group]
    return {name: choices[0][name] for name in names if name in choices[0] and len({c.get(name) for c in choices}) == 1}


def facts_of(record: Mapping[str, Any] | None, kind: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "monitor": kind.get("trainer.monitor") if record else None,
        "mode": kind.get("mode"),
        "chosen_on": kind.get("evaluated part"),
        "examples": kind.get("evaluated examples"),
        "epochs": record["epochs"] if record else kind.get("trainer.epochs"),
        "steps": record.get("steps") if record else None,
        "evaluations": evaluations_of(record),
        "is_dry_run": bool(kind.get("trainer.dry_run")),
    }


def evaluations_of(record: Mapping[str, Any] | None) -> int | None:
    """How often a run is evaluated, where that is not after each epoch."""
    if record is None or not records.is_by_steps(record):
        return None
    try:
        return length.evaluations(record["config"])
    except (InputError, KeyError, TypeError, ZeroDivisionError):
        return None  # by other hands: no run was built of that


def row_of(setting: Setting, table: Mapping[str, Any]) -> dict[str, Any]:
    """One setting: its counts, and the figures of its finished jobs; none where a search has given it up."""
    is_pruned = any(member.state == "pruned" for member in setting.members)
    whole = [] if is_pruned else setting.done
    values = {member.seed: metrics_of(member.record) for member in whole if member.record is not None}
    names = list(dict.fromkeys(name for metrics in values.values() for name in metrics))
    main = f"best/{table['monitor']}"
    return {
        "name": setting.name,
        "setting": setting.labels,
        "n": len(values),
        "seeds": counts(setting),
        "is_whole": len(values) == len(setting.members),
        "is_pruned": is_pruned,
        "metrics": {
            name: figures_of(name, [metrics[name] for metrics in values.values() if name in metrics], setting)
            for name in names
        },
        "by_seed": {seed: metrics.get(main) for seed, metrics in values.items()},
        "jobs": [member.name for member in setting.members],
        "failures": [{"job": m.name, "error": m.error} for m in setting.members if m.state == "failed"],
    }


def counts(setting: Setting) -> dict[str, int]:
    """How many seeds are in which state; `planned_in_all` is how many there are."""
    states = [member.state for member in setting.members]
    diverged = sum(member.is_diverged for member in setting.members)
    found = {"planned_in_all": len(states), "done": states.count("done"), "diverged": diverged}
    found["failed"] = states.count("failed") - diverged
    found |= {state: states.count(state) for state in ("pruned", "interrupted", "killed", "running")}
    return {**found, "not_begun": states.count("planned")}


def metrics_of(record: Mapping[str, Any]) -> dict[str, float | None]:
    """A run's figures by name; what is of the best epoch and what of the last never share a name. None: not finite,
    or so large that it has no variance.
    """
    monitor = record["monitor"]
    names = {f"best/{monitor}": record["best_value"]}
    if monitor in record.get("last", {}):
        names[f"last/{monitor}"] = record["last"][monitor]
    for which in ("best", "last"):
        names |= {f"test/{which}/{key}": value for key, value in record.get("test", {}).get(which, {}).items()}
    return {name: v if v is not None and abs(v) < statistics.LARGEST else None for name, v in names.items()}


def figures_of(name: str, values: Sequence[float | None], setting: Setting) -> dict[str, Any]:
    metric, part = name.rpartition("/")[2], name.split("/")[0 if name.startswith("test/") else 1]
    examples = evaluated(setting.record or {}, part)
    names = [metric, str(setting.config.get(f"metrics.{metric}._target_", "")).rpartition(".")[2]]
    fraction = statistics.is_fraction(names, [value for value in values if value is not None], examples)
    return statistics.figures(values, fraction, examples)


def evaluated(record: Mapping[str, Any], part: str) -> int | None:
    """How many examples of a part an evaluation sees; None where the record does not tell, and of those that were
    trained on: they are no sample of others.
    """
    part = part_of(part)
    if part == "train":
        return None
    whole, config = record.get("examples", {}).get(part), record.get("config", {})
    nodes = (config.get(key) for key in ("trainer", "dataloader"))
    trainer, loading = (node if isinstance(node, Mapping) else {} for node in nodes)
    batches = 1 if trainer.get("dry_run") else trainer.get("limit_eval_batches") or trainer.get("limit_batches")
    if whole is None or batches is None:
        return None if whole is None else int(whole)
    size = loading.get("eval_batch_size") or 1
    if not all(isinstance(count, int) and count > 0 for count in (batches, size)):
        return None  # by other hands: no run was built of that
    return min(int(whole), batches * size)


def main_of(row: Mapping[str, Any], table: Mapping[str, Any]) -> float | None:
    """The value that a table is ordered by."""
    figures = row["metrics"].get(f"best/{table['monitor']}")
    return None if figures is None else figures["mean"]


def order(row: Mapping[str, Any], table: Mapping[str, Any]) -> float:
    value = main_of(row, table)
    if value is None:
        return math.inf
    return -value if table["mode"] == "max" else value


def compare(table: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds what is said across a table's rows: the two best in pairs, and how likely the first is really the best."""
    ranked = [row for row in rows if main_of(row, table) is not None]
    table |= {"compared": len(ranked), "paired": None, "choice": None}
    if len(ranked) < 2:
        return
    figures = [row["metrics"][f"best/{table['monitor']}"] for row in ranked]
    fraction, examples = all(f["is_fraction"] for f in figures), figures[0]["examples"]
    table["paired"] = statistics.paired(ranked[0]["by_seed"], ranked[1]["by_seed"], fraction, examples)
    repeated = [row["by_seed"] for row, found in zip(ranked, figures, strict=True) if found["n"] > 1]
    if figures[0]["n"] > 1:  # the first is among them
        table["choice"] = statistics.choice(repeated, table["mode"], fraction, examples)


def notes(made: Sequence[Setting]) -> list[str]:
    """What a reader must know of single jobs: run outside their plan, left out, or of other code."""
    said = []
    for setting in made:
        for member in setting.members:
            if member.outside:
                said.append(f"{member.name}: run outside its plan ({'; '.join(member.outside)}): a setting of its own")
        for left_out, kept in setting.twice:
            said.append(f"{left_out.name}: the same config and seed as {kept.name}: counted once")
        codes = {json.dumps(m.record.get("code"), sort_keys=True) for m in setting.done if m.record is not None}
        if len(codes) > 1:
            said.append(f"{setting.name}: its seeds ran {len(codes)} versions of the code")
        sizes = {json.dumps(m.record.get("examples"), sort_keys=True) for m in setting.done if m.record is not None}
        if len(sizes) > 1:
            said.append(f"{setting.name}: its seeds saw different numbers of examples: the data has changed")
    return said
