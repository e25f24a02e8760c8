"""`runner ls [DIR ...]`: the runs in folders, one a line."""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.cli import select
from runner.cli.columns import Listing, chosen, column_of, named, varying, width
from runner.storage import records
from runner.storage.records import Row
from runner.terminal.printable import csv_row, put, say
from runner.terminal.tables import Column, joined


class SortParser(argparse.ArgumentParser):
    """Takes `--sort -KEY` too, where argparse sees another flag."""

    def parse_intermixed_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        words = list(args or [])
        for at, word in enumerate(words[:-1]):
            if word == "--sort" and words[at + 1].startswith("-"):
                words[at : at + 2] = [f"--sort={words[at + 1]}"]
        return super().parse_intermixed_args(words, namespace)


def parser() -> argparse.ArgumentParser:
    made = SortParser(
        prog="runner ls",
        description="Lists the runs in folders: state, what varies between them (choices of groups, config keys), key"
        " metrics. As wide as the terminal (without one 100 columns); what does not fit is named on stderr.",
    )
    made.add_argument("folders", type=Path, nargs="*", default=[], metavar="DIR", help="default: outputs")
    made.add_argument(
        *("--sort",),
        metavar="KEY",
        help="best first: metrics by their mode, other numbers from the highest, text from A; --sort -KEY: the other"
        " way round",
    )
    made.add_argument(
        *("--where",),
        action="append",
        default=[],
        metavar="CONDITION",
        help="only runs that fulfil it: KEY, one of = != < <= > >= ~ (a regular expression), VALUE; of a group, a"
        " config key, a metric (of the best epoch; test/...; last/...), state, tag, ...; several: once more, or after"
        " a comma",
    )
    made.add_argument("--tag", action="append", default=[], help="only runs with this tag")
    made.add_argument("--archived", action="store_true", help="archived runs too")
    made.add_argument("--columns", metavar="A,B", help="these columns, by the names that --where takes")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--wide", action="store_true", help="every column that varies, and nothing is cut")
    form.add_argument("--json", action="store_true", help="everything, as JSON")
    form.add_argument("--csv", action="store_true", help="everything, as CSV")
    return made


def main(arguments: argparse.Namespace) -> int:
    folders = arguments.folders or [Path("outputs")]
    rows, note = selected(folders, arguments)
    if arguments.sort is not None:
        rows = select.ordered(rows, arguments.sort)
    if arguments.json:
        say(*json.dumps(rows, indent=2).splitlines())
    elif arguments.csv:
        names = list({name: None for row in rows for name in row})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(csv_row(names))
        writer.writerows(csv_row([row.get(name) for name in names]) for row in rows)
        put(text.getvalue(), sys.stdout)
    else:
        show(rows, folders, arguments)
        say(*note, file=sys.stderr) if note else None
    return 0


def selected(folders: Sequence[Path], arguments: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """The runs that the flags ask for, and what to say of the others."""
    asks = (arguments.json, arguments.csv, arguments.where, arguments.sort, arguments.columns)
    rows = records.runs(*folders, with_config=any(asks))
    found = select.where(rows, arguments.where)
    found = [row for row in found if all(tag in row["tags"] for tag in arguments.tag)]
    if not found:
        return [], [f"note: none of {len(rows)} runs fulfils all conditions"]
    kept = found if arguments.archived else [row for row in found if not row["archived"]]
    hidden = len(found) - len(kept)
    return kept, [f"note: archived and not listed: {hidden} (--archived lists them too)"] if hidden else []


def show(rows: list[Row], folders: Sequence[Path], arguments: argparse.Namespace) -> None:
    limit = None if arguments.wide else width()
    if arguments.columns is not None:
        columns = chosen(rows, arguments.columns) if rows else {}
        say(*joined([Column(name, values) for name, values in columns.items()]))
        return
    listing = Listing([name_of(row, folders) for row in rows], limit)
    fill(listing, rows, arguments.sort)
    lines, left_out = listing.lines()
    say(*lines)
    if left_out:
        shown = ", ".join(left_out)
        say(f"note: no room for {shown} (--wide shows all, --columns a,b those that you name)", file=sys.stderr)


def name_of(row: Row, folders: Sequence[Path]) -> str:
    path = str(row["path"])
    if len(folders) > 1:
        return os.path.relpath(path)
    above = os.path.join(folders[0], "")
    return path[len(above) :] if path.startswith(above) else path


def fill(listing: Listing, rows: list[Row], sort: str | None) -> None:
    """The columns, and which of them go first where there is no room: settings that no command has named, then what is
    said of each run from the right.
    """
    asked = named(rows)
    settings = [name for name in varying(rows, asked) if name != "config.trainer.epochs"]  # `epochs` says it
    names = {name: select.shown_name(name) for name in settings}
    states = ["pruned" if row["state"] == "done" and records.is_pruned(row.record) else row["state"] for row in rows]
    listing.add("state", states, may_go=False)
    listing.add("epochs", [far(row) for row in rows])
    for name in settings:
        listing.add(names[name], column_of(rows, name))
    monitors = list(dict.fromkeys(row["monitor"] for row in rows))
    for name, values in metrics(rows, monitors).items():
        listing.add(name, values, may_go=False)
    if sort is not None:
        key = sort.removeprefix("-")
        found = select.Columns(rows).named(key, f"--sort {key}") if rows else []
        if select.shown_name(found[0] if found else key) not in listing.values:
            listing.add(key, [select.value_of(row, found) for row in rows], may_go=False)
    listing.add("best epoch", [row["best_epoch"] for row in rows])
    tested = test_metric(rows, monitors)
    if tested is not None:
        listing.add(f"test/{tested}", [row.get(f"test/best/{tested}") for row in rows])
    listing.add("seconds", [row["seconds"] for row in rows])
    if any(row["tags"] for row in rows):
        listing.add("tags", [row["tags"] or None for row in rows])
    kept = [names[name] for name in settings if name.startswith("choices.") or names[name] in asked]
    order = [*kept, *(name for name in listing.worth if name not in names.values()), *names.values()]
    listing.worth.sort(key=order.index)


def far(row: Row) -> str:
    if row.record["steps"] is not None:
        return f"{row.record['steps_done']}/{row.record['steps']} steps"
    return f"{row['epochs_done']}/{row['epochs']}"


def metrics(rows: Sequence[Row], monitors: Sequence[Any]) -> dict[str, list[Any]]:
    """The monitored metrics' values of the best epoch; of more than two kinds in one column, each with its name."""
    if len(monitors) <= 2:
        return {str(m): [row["best_value"] if row["monitor"] == m else None for row in rows] for m in monitors}
    known = [None if row["best_value"] is None else f"{row['monitor']} {row['best_value']:.4g}" for row in rows]
    return {"best": known}


def test_metric(rows: Sequence[Row], monitors: Sequence[Any]) -> str | None:
    """The test's counterpart of what was monitored, else its accuracy, else its loss."""
    wanted = [*(str(monitor).partition("/")[2] for monitor in monitors), "accuracy", "loss"]
    return next((name for name in wanted if any(f"test/best/{name}" in row for row in rows)), None)
