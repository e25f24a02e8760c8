"""A summary for people and for spreadsheets: the lines on the screen, summary.json, summary.csv, summary_long.csv."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.storage.files import write_atomically
from runner.terminal.printable import csv_row
from runner.terminal.tables import table

COUNTS = ("planned_in_all", "done", "diverged", "failed", "pruned", "interrupted", "killed", "running", "not_begun")
FACTS = ("table", "monitor", "mode", "chosen_on", "epochs", "compared")
MARK = " !"  # behind the name of a setting whose figures are of the survivors


def write(place: Path, summary: Mapping[str, Any]) -> None:
    """summary.json holds everything; summary.csv a line for each setting, summary_long.csv for each of its metrics."""
    write_atomically(place / "summary.json", (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    write_atomically(place / "summary.csv", wide(summary).encode())
    write_atomically(place / "summary_long.csv", long(summary).encode())


def wide(summary: Mapping[str, Any]) -> str:
    keys, metrics = keys_of(summary), names_of(summary)
    text = io.StringIO()
    writer = csv.writer(text)
    parts = ("", " std", " low", " high", " n", " not finite")
    columns = [f"{name}{part}" for name in metrics for part in parts]
    writer.writerow(csv_row(["name", *keys, "rank", *COUNTS, *FACTS, *columns]))
    for row in summary["settings"]:
        facts = {**summary["tables"][row["table"]], "table": row["table"] + 1}
        cells = [cell for name in metrics for cell in cells_of(row["metrics"].get(name))]
        own = [row["setting"].get(key) for key in keys]
        counted = [row["seeds"][key] for key in COUNTS]
        writer.writerow(csv_row([row["name"], *own, row["rank"], *counted, *(facts[key] for key in FACTS), *cells]))
    return text.getvalue()


def cells_of(figures: Mapping[str, Any] | None) -> list[Any]:
    if figures is None:
        return [None] * 6
    low, high = figures["ci95"] or (None, None)
    return [figures["mean"], figures["std"], low, high, figures["n"], figures["not_finite"]]


def long(summary: Mapping[str, Any]) -> str:
    keys = keys_of(summary)
    text = io.StringIO()
    writer = csv.writer(text)
    header = ["metric", "n", "mean", "std", "ci95_low", "ci95_high", "min", "max", "not_finite"]
    writer.writerow(csv_row([*keys, *header, *COUNTS]))
    for row in summary["settings"]:
        own, counted = [row["setting"].get(key) for key in keys], [row["seeds"][key] for key in COUNTS]
        for name, figures in row["metrics"].items():
            value, std, low, high, n, not_finite = cells_of(figures)
            found = [name, n, value, std, low, high, figures["min"], figures["max"], not_finite]
            writer.writerow(csv_row([*own, *found, *counted]))
        if not row["metrics"]:
            writer.writerow(csv_row([*own, None, 0, *[None] * 7, *counted]))
    return text.getvalue()


def keys_of(summary: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(key for row in summary["settings"] for key in row["setting"]))


def names_of(summary: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in summary["settings"] for name in row["metrics"]))


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary as tables for people, with what must be known to read them."""
    if not summary["settings"]:
        return ["there is no job: nothing to sum up"]
    said = []
    if len(summary["tables"]) > 1:
        differ = ", ".join(summary["apart"])
        said.append(f"{len(summary['tables'])} tables, not compared with each other: they differ in {differ}")
    for number, facts in enumerate(summary["tables"]):
        rows = [row for row in summary["settings"] if row["table"] == number]
        said += ["", *of_table(facts, rows)] if len(summary["tables"]) > 1 else of_table(facts, rows)
    return [*said, *summary["notes"]]


def of_table(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    said = [heading(facts, rows)]
    shown = columns_of(facts, rows)
    header = ["setting", "seeds"]
    for name, is_wide in shown:
        header += [name, "95 % interval"] if is_wide else ["last epoch"]
    cells = []
    for row in rows:
        line = [row["name"] + mark(row), seeds(row)]
        for name, is_wide in shown:
            line += shown_figures(row["metrics"].get(name), row["n"], is_wide)
        cells.append(line)
    said += table(header, cells).splitlines()
    said += survivors(rows)
    return [*said, *comparison(facts, rows), *caveats(facts)]


def heading(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    better = {"max": " (higher is better)", "min": " (lower is better)"}.get(facts["mode"], "")
    examples = f", {facts['examples']:,} examples" if facts["examples"] is not None else ""
    epochs = f"{facts['epochs']} epoch{'s' if facts['epochs'] != 1 else ''}"
    epochs = epochs if facts.get("steps") is None else f"{facts['steps']:,} steps"
    epochs += f" ({facts['stopped']} stopped earlier)" if facts.get("stopped") else ""
    done, planned, pruned = (sum(row["seeds"][key] for row in rows) for key in ("done", "planned_in_all", "pruned"))
    monitor = facts["monitor"] or "nothing measured yet"
    given_up = f", {pruned} of them pruned" if pruned else ""
    return f"{monitor}{better}{examples}, {epochs}; {done + pruned} of {planned} jobs done{given_up}"


def columns_of(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, bool]]:
    """The figures on the screen, each with whether its interval is shown: the monitored metric at the best and at the
    last epoch, and the test's counterpart, else its accuracy, else its first.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    monitor = str(facts["monitor"])
    metric = monitor.partition("/")[2]
    tests = [name for name in names if name.startswith("test/best/")]
    wanted = [name for name in (f"test/best/{metric}", "test/best/accuracy") if name in tests] or tests
    if facts["monitor"] is None:
        return []
    return [(f"best/{monitor}", True), (f"last/{monitor}", False), *[(name, True) for name in wanted[:1]]]


def mark(row: Mapping[str, Any]) -> str:
    """What stands behind the name of a setting that is not whole, and was not given up."""
    return "" if row["is_whole"] or row["is_pruned"] else MARK


def seeds(row: Mapping[str, Any]) -> str:
    """`3 of 6, 3 diverged`; a setting of one seed says so."""
    counted = row["seeds"]
    bad = [f"{counted[key]} {key.replace('_', ' ')}" for key in COUNTS[2:] if counted[key]]
    text = ", ".join([f"{counted['done']} of {counted['planned_in_all']}", *bad])
    return f"{text} (one seed)" if counted["done"] == 1 else text


def shown_figures(figures: Mapping[str, Any] | None, jobs: int, is_wide: bool) -> list[str]:
    if figures is None or figures["mean"] is None:
        bad = f"- ({figures['not_finite']} not finite)" if figures is not None else "-"
        return [bad, "-"] if is_wide else [bad]
    spread = f" ± {figures['std']:.4f}" if figures["std"] is not None and is_wide else ""
    missing = [f"{figures['not_finite']} not finite"] if figures["not_finite"] else []
    missing += [f"of {figures['n']} seeds"] if not missing and figures["n"] < jobs else []
    value = f"{figures['mean']:.4f}{spread}" + (f" ({missing[0]})" if missing else "")
    low_high = f"{figures['ci95'][0]:.4f} to {figures['ci95'][1]:.4f}" if figures["ci95"] else "-"
    return [value, low_high] if is_wide else [value]


def survivors(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    for row in rows:
        counted, name = row["seeds"], f"{MARK.strip()} {row['name']}"
        died, n = counted["diverged"] + counted["failed"], counted["planned_in_all"]
        if died and counted["done"]:
            said.append(f"{name}: {died} of {n} seeds failed; its figures are of the survivors only")
        elif died:
            said.append(f"{name}: no seed is done, {died} of {n} failed")
        elif not row["is_whole"] and not row["is_pruned"]:
            said.append(f"{name}: not finished, {counted['done']} of {n} seeds are done")
    if pruned := sum(row["is_pruned"] for row in rows):
        said.append(f"{pruned} of {len(rows)} settings were given up by the search (pruned): no figures, no rank")
    return said


def comparison(facts: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    if (pair := facts["paired"]) is not None:
        parts = []
        if pair["ci95"] is not None:
            parts.append(f"{signed(pair['ci95'])} for other seeds")
        if pair["ci95_examples"] is not None:
            parts.append(f"{signed(pair['ci95_examples'])} for other examples too")
        interval = f" (95 %: {'; '.join(parts)})" if parts else " (the same at each seed)"
        count = len(pair["seeds"])
        said.append(f"first minus second, over {count} common seeds: {pair['difference']:+.4f}{interval}")
    if (choice := facts["choice"]) is not None:
        coarse = f"; coarse: {choice['seeds']} seeds" if choice["seeds"] < 5 else ""
        too = choice["first_is_best_examples"]
        examples = f", {probability(too, choice)} for other examples too" if too is not None else ""
        said.append(
            f"the first is really the best of {choice['settings']} with probability"
            f" {probability(choice['first_is_best'], choice)} for other seeds{examples} (bootstrap{coarse})"
        )
        if left_out := facts["compared"] - choice["settings"]:
            said.append(f"of one seed, and so left out of that probability: {left_out} of {facts['compared']} settings")
    elif facts["compared"] > 1:
        said.append(
            f"how likely the first is really the best of {facts['compared']} cannot be said:"
            " it takes two seeds of the first and of another"
        )
    return said


def probability(share: float, choice: Mapping[str, Any]) -> str:
    """`0.88 or more` where the resamples would say more than so few seeds can show."""
    return f"{share:.2f} or more" if share >= choice["most"] else f"{share:.2f}"


def signed(interval: Sequence[float]) -> str:
    return f"{interval[0]:+.4f} to {interval[1]:+.4f}"


def caveats(facts: Mapping[str, Any]) -> list[str]:
    """How the figures were chosen, and so which of them are too good."""
    if facts["monitor"] is None or not facts["compared"]:
        return []
    said = []
    compared, best, several = facts["compared"], f"best/{facts['monitor']}", facts.get("evaluations")
    count, unit = (facts["epochs"], "epochs") if several is None else (several, "evaluations")
    extreme = {"max": "maximum", "min": "minimum"}.get(str(facts["mode"]), "best")
    over = [f"over {'up to ' if facts.get('stopped') else ''}{count} {unit}"] if count != 1 else []
    over += [f"for the first over {compared} settings"] if compared > 1 else []
    if over:
        excess = facts["choice"]["excess"] if facts["choice"] is not None else None
        by = f" (for the settings by about {excess:.4f})" if excess is not None else ""
        said.append(f"{best} is the {extreme} {' and '.join(over)}: a little too good{by}")
    if facts["chosen_on"] == "test":
        said.append(
            "chosen on the test set (there is no validation part; dataset.val_size): best epoch, order and test/best"
            " are no independent figures"
        )
    if facts["chosen_on"] == "overfit":
        said.append("trainer.overfit_batches: figures of the very examples that were trained on, and of no others")
    if facts["chosen_on"] == "train":
        said.append("chosen on the training set (there is no validation and no test part)")
    if facts["is_dry_run"]:
        said.append("trainer.dry_run=true: one batch of everything, nothing to compare")
    return said
