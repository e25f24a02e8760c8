"""What `tag`, `note` and `archive` share: the runs that are meant, and one change written to each."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runner.storage import labels, records
from runner.storage.run_dir import RunDir
from runner.terminal.printable import say


class WordsParser(argparse.ArgumentParser):
    """Takes words behind the first that begin with a minus for words, not for flags."""

    def parse_intermixed_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        words = list(args or [])
        if not {"-h", "--help"} & set(words):
            words = ["--", *(word for word in words if word != "--")]
        return super().parse_args(words, namespace)


def parser_of(verb: str, description: str) -> WordsParser:
    """The parser of a verb that changes the labels of the runs at a path."""
    kept = " What is changed, and when, is kept in the run's labels.jsonl; run.json stays as it is."
    made = WordsParser(prog=f"runner {verb}", description=description + kept)
    made.add_argument("path", type=Path, metavar="PATH", help="a run's folder, or a folder of runs")
    return made


def runs_at(path: Path) -> list[tuple[RunDir, dict[str, Any]]]:
    """The run in a folder, or all below it, each with its record.

    Raises:
        InputError: there is none, or one cannot be read: then none is changed.
    """
    found = [RunDir(place) for place in records.find(path)]
    pairs = [(run_dir, run_dir.read_run()) for run_dir in found]
    for run_dir in found:
        run_dir.refuse_links()
    return pairs


def add_to(
    runs: Sequence[tuple[RunDir, dict[str, Any]]],
    change: Callable[[dict[str, Any]], dict[str, Any]],
    told: Callable[[dict[str, Any]], str],
) -> None:
    """Writes a change to each run's labels, and says what holds now.

    Args:
        change: from a run's labels to what is to be written; nothing where it is so already.
    """
    for run_dir, record in runs:
        before = labels.labelled(record, labels.history(run_dir.path))
        if made := change(before):
            labels.add(run_dir, made)
            before = labels.labelled(record, labels.history(run_dir.path))
        say(f"{run_dir.path}: {told(before)}{'' if made else ' (as before)'}")
