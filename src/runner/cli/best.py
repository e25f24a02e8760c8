"""`runner best DIR`: the best run in a folder, by its monitored metric."""

import argparse
from pathlib import Path

from runner.errors import InputError
from runner.storage import records
from runner.terminal.printable import say


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner best", description="Prints the run with the best monitored metric: its folder first."
    )
    made.add_argument("folder", type=Path, nargs="?", default=Path("outputs"), metavar="DIR", help="default: outputs")
    made.add_argument("--archived", action="store_true", help="archived runs too")
    return made


def main(arguments: argparse.Namespace) -> int:
    rows = records.runs(arguments.folder)
    kept = [row for row in rows if arguments.archived or not row["archived"]]
    if not kept:
        raise InputError(f"{arguments.folder}: all {len(rows)} runs are archived; --archived takes them too")
    row = records.best(kept)
    say(row["path"])
    say(f"{row['monitor']} {row['best_value']!r} in epoch {row['best_epoch']}")
    for key, value in row.items():
        if key.startswith("test/best/"):
            say(f"{key} {value!r}")
    return 0
