"""`runner compare PATH PATH ...`: the settings of several sweeps in one table."""

import argparse
import json
import sys
from pathlib import Path

from runner.cli.columns import width
from runner.terminal.printable import is_terminal, say


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner compare",
        description="Sums up several sweeps, or runs, as one: a row a setting, over its seeds, by the statistics of a"
        " sweep's summary. What was measured on other data, by another metric or over other epochs stands in a table of"
        " its own and is not compared; other code is another setting.",
    )
    made.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="a sweep's folder, a run's, or one of runs")
    made.add_argument("--json", action="store_true", help="everything, as JSON")
    return made


def main(arguments: argparse.Namespace) -> int:
    from runner.cli.show_sweep import tables
    from runner.sweep import show
    from runner.sweep.compare import compared

    summed = compared(arguments.paths)
    if arguments.json:
        say(*json.dumps(summed, indent=2, default=str).splitlines())
    else:
        say(*(tables(summed, width(), most=None) if is_terminal(sys.stdout) else show.lines(summed)))
    return 0
