"""The page of one run: what came out and how sure that is, its curves, its config, and what happened to it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from runner.report import curves, words
from runner.report.gather import Run, deaths_of, sweep_record
from runner.storage import records
from runner.storage.rows import Rows, axis_of
from runner.sweep import show, statistics, summary
from runner.terminal.tables import cell
from runner.terminal.words import duration

Block = dict[str, Any]


def blocks(run: Run, examples: Sequence[Block]) -> list[Block]:
    """Everything about a run, from top to bottom.

    Args:
        examples: the blocks of single examples, which took the model (runner.report.examples), or why there are none.
    """
    return [
        headline(run),
        *charts(run),
        *examples,
        words.command_block(command_of(run)),
        timeline(run),
        *words.config_blocks(run.record, not_chosen=words.filled_in(run.path)),
        environment(run.record),
    ]


def headline(run: Run) -> Block:
    """The monitored metric and the test's figures, each with its interval where it is a fraction of examples."""
    record = run.record
    items, said = [], []
    if record["notes"]:
        said.append(f"Note: {record['notes']}")
    if record["tags"]:
        said.append(f"Tags: {', '.join(map(str, record['tags']))}")
    monitor = record["monitor"]
    if record["best_value"] is not None:
        part, _, metric = str(monitor).partition("/")
        note = f"epoch {record['best_epoch']} of {record['epochs']}"
        note += f", step {record['best_step']}" if records.is_by_steps(record) else ""
        items.append(figure(run, f"best {monitor}", metric, record["best_value"], part, note))
    monitored = str(monitor).rpartition("/")[2]
    tests = [(metric, which, value) for which, values in record["test"].items() for metric, value in values.items()]
    for metric, which, value in sorted(tests, key=lambda test: (test[0] != monitored, test[0])):
        items.append(figure(run, f"test {metric}", metric, value, "test", f"{which} weights"))
    far, unit = records.done_of(record).rsplit(" ", 1)
    items.append({"label": unit, "value": far})
    if record["seconds"]:
        items[-1]["note"] = f"{duration(record['seconds'])} of training"
    if record.get("stopped"):
        said.append(f"Stopped after {records.done_of(record)}: {record['stopped']}.")
    if any("interval" in item for item in items):
        said.append(
            "95 % intervals are for other examples of the same kind (Wilson's score interval);"
            " of other seeds one run says nothing."
        )
    done = {"monitor": monitor, "mode": record["mode"], "epochs": record["epochs_done"], "compared": 1, "choice": None}
    done["evaluations"] = len(run.rows) if records.is_by_steps(record) else None
    done |= {"chosen_on": record.get("chosen_on"), "is_dry_run": bool(words.at(record, "config.trainer.dry_run"))}
    if record["best_value"] is not None:
        said += show.caveats(done)
    return {"kind": "headline", "state": run.state, "error": run.error, "items": items, "lines": said}


def figure(run: Run, label: str, metric: str, value: Any, part: str, note: str) -> Block:
    item = {"label": label, "value": "not finite" if value is None else f"{value:.4f}", "note": note}
    if value is None:
        return item
    record, examples = run.record, summary.evaluated(run.record, part)
    names = [metric, str(words.at(record, f"config.metrics.{metric}._target_")).rpartition(".")[2]]
    is_fraction = statistics.is_fraction(names, [value], examples)
    # One value may be a whole number of right examples by chance, as 0 is: so its epochs are asked as well.
    chosen_on = record.get("chosen_on") or "val"
    before = [v for row in run.rows if isinstance(v := row.get(f"{chosen_on}/{metric}"), (int, float))]
    if before:
        is_fraction &= statistics.is_fraction(names, before, summary.evaluated(record, chosen_on))
    if examples and is_fraction:
        low, high = statistics.examples_interval(value, examples)
        item["interval"] = f"{low:.4f} to {high:.4f}"
        item["note"] += f", {examples:,} examples"
    return item


# ------------------------------------------------------------------------------------------------------------ curves


def charts(run: Run) -> list[Block]:
    rows, every = curves.thinned(run.rows, curves.MOST_POINTS)
    found = curves.columns(rows)
    key = axis_of(run.rows)
    axis = found.get(key, [])
    named: dict[str, list[str]] = {}  # train/loss, val/loss: one chart
    for name in found:
        if name not in (*curves.NO_CURVE, "seconds"):
            named.setdefault(name.rpartition("/")[2].partition("[")[0], []).append(name)
    monitored = str(run.record["monitor"]).rpartition("/")[2]
    made = []
    for metric in sorted(named, key=lambda name: (name == "lr", name != monitored, name != "loss")):
        title = "learning rate" if metric == "lr" else metric
        chart = curves.lines_chart(title, axis, {name: found[name] for name in named[metric]}, x_label=key)
        if run.record[f"best_{key}"] is not None:
            chart["marks"] = [{"x": run.record[f"best_{key}"], "label": "best"}]
        made.append(chart)
    said = [f"One in {every} of {len(run.rows):,} evaluations is drawn."] if every > 1 else []
    steps = Rows(run.path / "steps.jsonl", "step").read()
    kept, every = curves.thinned(steps, curves.MOST_POINTS)
    of_steps = curves.columns(kept)
    for name in [name for name in of_steps if name.endswith("loss")][:1]:
        made.append(curves.lines_chart(f"{name} by step", of_steps["step"], {name: of_steps[name]}, x_label="step"))
        said += [f"One in {every} of {len(steps):,} rows of steps is drawn."] if every > 1 else []
    if "seconds" in found:
        title = "seconds an epoch" if key == "epoch" else "seconds to each evaluation"
        chart = curves.lines_chart(title, axis, {"seconds": found["seconds"]}, x_label=key)
        made.append({**chart, "zero": True})
    if not made:
        return []
    return [{"kind": "charts", "heading": "Curves", "charts": made, "lines": said}]


# ------------------------------------------------------------------------------------------- where and how it was run


def command_of(run: Run) -> list[str]:
    """What the person typed: of a sweep's job the sweep's command."""
    sweep = sweep_record(run.path.parent) if (run.path / "job.json").exists() else None
    return (sweep or {}).get("command") or run.record.get("command") or []


def timeline(run: Run) -> Block:
    """The start, every resumption, every death of a worker and the end, in the order of time."""
    record = run.record
    events = [{"at": record["started"], "what": "started", "text": ""}]
    for event in record["resumed"]:
        where = f"after epoch {event['epoch']}" + (f", batch {event['batch']}" if event["batch"] else "")
        changes = f"; {', '.join(event['changes'])}" if event.get("changes") else ""
        events.append({"at": event["at"], "what": "resumed", "text": f"{where}{changes}"})
    for death in deaths_of(run.path):
        code = f"exit code {cell(death.get('exit_code'))}"
        events.append({"at": str(death.get("at")), "what": "died", "text": f"{code}; {cell(death.get('error'))}"})
    if record.get("ended"):
        events.append({"at": record["ended"], "what": run.state, "text": run.error or ""})
    times = [seconds_of(event["at"]) for event in events]
    known = [time for time in times if time is not None]
    first, length = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    for event, time in zip(events, times, strict=True):
        event["at"] = event["at"][:19].replace("T", " ")
        event["place"] = (time - first) / length if time is not None and length > 0 else None
        event["after"] = duration(time - first) if time is not None else ""
    events.sort(key=lambda event: -1.0 if event["place"] is None else event["place"])
    return {"kind": "timeline", "heading": "Time line", "events": events}


def seconds_of(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def environment(record: Mapping[str, Any]) -> Block:
    git = record.get("git") or {}
    commit = f"{git['commit']}{' and what git.diff holds' if git.get('dirty') else ''}" if git.get("commit") else None
    examples = ", ".join(f"{name} {count:,}" for name, count in record["examples"].items() if count is not None)
    facts = {"seed": record.get("seed"), "parameters": record.get("parameters"), "examples": examples or None}
    facts |= {key: record.get(key) for key in ("device", "device_name", "threads", "precision", "placement")}
    facts |= {"deterministic": record.get("deterministic"), "commit": commit}
    facts |= {key: record.get(key) for key in ("python", "host", "cpu", "platform", "working_directory", "id")}
    rows = [
        [key.replace("_", " "), f"{v:,}" if key == "parameters" and isinstance(v, int) else cell(v)]
        for key, v in facts.items()
        if v is not None
    ]
    rows += [[key, cell(value)] for key, value in record["packages"].items()]
    return {"kind": "pairs", "heading": "Environment", "rows": rows}
