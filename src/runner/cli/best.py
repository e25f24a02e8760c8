"""`runner best DIR`: the best run in a folder, by its monitored metric."""

import argparse
from pathlib import Path

from runner.printable import say
from runner.storage import records


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner best", description="Prints the run with the best monitored metric: its folder first."
    )
    made.add_argument("folder", type=Path, nargs="?", default=Path("outputs"), metavar="DIR", help="default: outputs")
    return made


def main(arguments: argparse.Namespace) -> int:
    row = records.best(records.runs(arguments.folder))
    say(row["path"])
    say(f"{row['monitor']} {row['best_value']!r} in epoch {row['best_epoch']}")
    for key, value in row.items():
        if key.startswith("test/best/"):
            say(f"{key} {value!r}")
    return 0
