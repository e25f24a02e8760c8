"""`runner archive PATH`: leaves runs out of `ls` and `best` from now on; nothing is moved or deleted."""

import argparse
from pathlib import Path

from runner.cli.labelling import add_to, runs_at


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner archive",
        description="Marks a run, or all runs below a folder, as archived: ls and best leave them out, unless asked"
        " with --archived. Nothing is moved or deleted, and a sweep's summary still counts them.",
    )
    made.add_argument("path", type=Path, metavar="PATH", help="a run's folder, or a folder of runs")
    made.add_argument("--undo", action="store_true", help="takes the mark away")
    return made


def main(arguments: argparse.Namespace) -> int:
    wanted = not arguments.undo
    add_to(
        runs_at(arguments.path),
        lambda labels: {} if labels["archived"] is wanted else {"archived": wanted},
        lambda labels: "archived" if labels["archived"] else "not archived",
    )
    return 0
