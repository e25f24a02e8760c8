"""`runner ls [DIR]`: the runs in a folder."""

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

from runner.printable import csv_row, say
from runner.storage import records
from runner.tables import table


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner ls", description="Lists the runs in a folder: state, what varies between them, key metrics."
    )
    made.add_argument("folder", type=Path, nargs="?", default=Path("outputs"), metavar="DIR", help="default: outputs")
    made.add_argument("--sort", metavar="KEY", help="best first: a metric of the best epoch, or a config key")
    made.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this value")
    made.add_argument("--tag", action="append", default=[], help="only runs with this tag")
    form = made.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, as JSON")
    form.add_argument("--csv", action="store_true", help="everything, as CSV")
    return made


def main(arguments: argparse.Namespace) -> int:
    rows = records.where(records.runs(arguments.folder), arguments.where)
    rows = [row for row in rows if all(tag in row["tags"] for tag in arguments.tag)]
    if arguments.sort is not None:
        rows = records.ordered(rows, arguments.sort)
    if arguments.json:
        say(*json.dumps(rows, indent=2).splitlines())
    elif arguments.csv:
        names = list({name: None for row in rows for name in row})
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(csv_row(names))
        writer.writerows(csv_row([row.get(name) for name in names]) for row in rows)
    else:
        show(rows, arguments.folder, arguments.sort)
    return 0


def show(rows: list[dict[str, Any]], folder: Path, sort: str | None) -> None:
    varying = records.varying(rows) if rows else []
    metrics = list({row["monitor"]: None for row in rows})
    extra = [sort] if sort is not None and sort not in metrics and f"config.{sort}" not in varying else []
    header = ["run", "state", "epochs", *[key.removeprefix("config.") for key in varying], *metrics, *extra]
    header += ["best epoch", "test/accuracy" if any("test/best/accuracy" in row for row in rows) else "test/loss"]
    key = header[-1].replace("test/", "test/best/")
    lines = [
        [
            os.path.relpath(row["path"], folder) if row["path"] != str(folder) else row["path"],
            row["state"],
            f"{row['epochs_done']}/{row['epochs']}",
            *[row.get(name) for name in varying],
            *[row["best_value"] if row["monitor"] == name else None for name in metrics],
            *[records.value_of(row, name) for name in extra],
            row["best_epoch"],
            row.get(key),
            row["seconds"],
        ]
        for row in rows
    ]
    say(*table([*header, "seconds"], lines).splitlines())
