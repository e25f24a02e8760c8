"""The tables of a page of many runs: a sweep's summary as the terminal prints it, and every run."""

from collections.abc import Mapping, Sequence
from typing import Any

from runner.report import keys, words
from runner.report.gather import Run
from runner.sweep import show
from runner.sweep.settings import text as value_text

Block = dict[str, Any]
MOST_ERRORS = 20  # that are said below the table
IN_COLOUR = 8  # settings that have a colour of their own; the others are grey


def of_settings(
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    jobs: Sequence[Sequence[int]],
    at: int,
    several: bool,
) -> Block:
    """A table of the summary, cell by cell as the terminal has it (runner.sweep.show)."""
    own = [number for number, row in enumerate(rows) if row["table"] == at]
    of_table = [rows[number] for number in own]
    shown = show.columns_of(facts, of_table)
    columns: list[Block] = [{"label": key} for key in dict.fromkeys(key for row in of_table for key in row["setting"])]
    columns = columns or [{"label": "setting"}]
    labels = [column["label"] for column in columns]
    columns.append({"label": "seeds"})
    for name, is_wide in shown:
        columns += [{"label": name if is_wide else "last epoch", "numeric": True}]
        columns += [{"label": "95 % interval", "numeric": True}] if is_wide else []
    lines = []
    for number in own:
        row = rows[number]
        cells = [value_cell(row["setting"].get(key, "" if row["setting"] else row["name"])) for key in labels]
        if show.mark(row):
            cells[0]["t"] += show.MARK
        cells.append({"t": show.seeds(row), "v": row["seeds"]["done"]})
        for name, is_wide in shown:
            figures = row["metrics"].get(name)
            texts = show.shown_figures(figures, row["n"], is_wide)
            cells.append({"t": texts[0], "v": figures["mean"] if figures else None})
            if is_wide:
                cells.append({"t": texts[1], "v": figures["ci95"][0] if figures and figures["ci95"] else None})
        lines.append({"cells": cells, "runs": list(jobs[number]), "color": number if number < IN_COLOUR else None})
    said = [*show.survivors(of_table), *show.comparison(facts, of_table), *show.caveats(facts)]
    heading = f"Summary, table {at + 1}" if several else "Summary"
    return {
        "kind": "table",
        "heading": heading,
        "note": show.heading(facts, of_table),
        "columns": columns,
        "rows": lines,
        "lines": said,
    }


def of_runs(runs: Sequence[Run], colour: Mapping[int, int]) -> Block:
    """Every run, to be sorted, filtered and chosen."""
    labels = list(dict.fromkeys(key for run in runs for key in run.labels))
    monitors = list(dict.fromkeys(str(run.record["monitor"]) for run in runs if run.record.get("monitor")))
    tests = list(dict.fromkeys(name for run in runs for name in run.record.get("test", {}).get("best", {})))[:2]
    columns: list[Block] = [{"label": "run"}, {"label": "state", "filter": True}]
    columns += [{"label": key, "filter": True} for key in labels] + [{"label": "seed", "numeric": True, "filter": True}]
    columns += [{"label": name, "numeric": True} for name in ("epochs", *(f"best {m}" for m in monitors), "best epoch")]
    columns += [{"label": name, "numeric": True} for name in (*(f"test {t}" for t in tests), "seconds")]
    has_tags = any(run.record.get("tags") for run in runs)
    columns += [{"label": "tags", "filter": True}] * has_tags
    rows = []
    for at, run in enumerate(runs):
        record = run.record
        cells: list[Block] = [
            {"t": run.name},
            {"t": run.state},
            *(value_cell(run.labels.get(key, "")) for key in labels),
        ]
        cells.append(whole(words.at(record, "config.seed")))
        done, epochs = record.get("epochs_done"), record.get("epochs")
        far = f"{done}/{epochs}" if record.get("steps") is None else f"{record['steps_done']}/{record['steps']} steps"
        cells.append({"t": "" if done is None else far, "v": done})
        cells += [decimal(record.get("best_value") if record.get("monitor") == name else None) for name in monitors]
        cells.append(whole(record.get("best_epoch")))
        cells += [decimal(record.get("test", {}).get("best", {}).get(name)) for name in tests]
        seconds = record.get("seconds")
        cells.append({"t": "" if seconds is None else f"{seconds:.1f}", "v": seconds})
        cells += [{"t": ", ".join(map(value_text, record.get("tags") or []))}] * has_tags
        rows.append({"cells": cells, "runs": [at], "color": colour.get(at)})
    errors = [f"{run.name}: {run.error}" for run in runs if run.error]
    said = errors[:MOST_ERRORS]
    said += [f"and {len(errors) - MOST_ERRORS} more with an error"] if len(errors) > MOST_ERRORS else []
    return {"kind": "table", "heading": "Runs", "columns": columns, "rows": rows, "search": True, "lines": said}


def value_cell(word: str) -> Block:
    """A cell of a setting's value, which is text and sorts as a number where it is one."""
    number = keys.number(word)
    short = words.shortened(word)
    return {"t": short, "v": word if number is None else number, **({"title": word} if short != word else {})}


def whole(value: Any) -> Block:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"t": "" if value is None else value_text(value), "v": value if is_number else None}


def decimal(value: Any) -> Block:
    return {"t": "" if value is None else f"{value:.4f}", "v": value}
