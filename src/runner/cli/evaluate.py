"""`runner evaluate RUN_DIR`: the same numbers as the run's own, to the last digit, or why they are others."""

import argparse
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.cli import trust
from runner.errors import InputError
from runner.job.confusion import Confusion, confusion
from runner.job.own_code import as_it_was_started
from runner.report.confusion import blocks
from runner.report.examples import dataset_of, part_of
from runner.report.page import check_target, page
from runner.storage.files import write_atomically
from runner.storage.rows import strict_json
from runner.terminal.printable import printable, say
from runner.terminal.progress import Bar, bar

if TYPE_CHECKING:
    from runner.job.built import Built
    from runner.job.saved import Saved

log = logging.getLogger("runner")

LAST_DIGITS = 1e-4  # relative: what another processor or thread count may change


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner evaluate",
        description="Evaluates a run's weights on its test or validation part: the same data, threads and numbers."
        " Where they are not what the run says of these weights, that is said, with what has changed. Exit code 0: they"
        " are the same, but for last digits; 1: they are not.",
    )
    made.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that holds a run")
    made.add_argument(
        "--which", default="best", metavar="best|last|ema|swa|raw|FILE", help="the weights (default: best)"
    )
    part = "the part (default: test; of trainer.overfit_batches: overfit), or one of dataset.evaluate"
    made.add_argument("--split", metavar="test|val|overfit|NAME", help=part)
    made.add_argument(
        "--confusion", action="store_true", help="accuracy per class, the confusion matrix and the worst mistakes"
    )
    made.add_argument("--html", type=Path, metavar="FILE", help="the same as a page, the mistakes as images")
    trust.add_flags(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    trust.grant(arguments)
    if arguments.html is not None:
        check_target(arguments.html, "--html")
    from runner.job.rebuilding import rebuilt
    from runner.job.saved import open_saved

    with bar("reading the checkpoint"):
        saved = open_saved(arguments.run_dir, arguments.which)
    with as_it_was_started(saved.record, saved.folder), closing(rebuilt(saved)) as built:
        try:
            return evaluate(built, arguments, saved)
        except (IndexError, RuntimeError, ValueError, TypeError, KeyError) as error:
            from runner.job.rebuilding import changed_since

            if isinstance(error, InputError) or not (found := changed_since(saved.record, built)):
                raise
            what, changes = f"{type(error).__name__}: {' '.join(str(error).split())}", "; ".join(found)
            raise InputError(
                f"{arguments.run_dir}: cannot be evaluated any more ({what}); what has changed since: {changes}"
            ) from error


class Counted:
    """A loader whose batches a bar counts."""

    def __init__(self, loader: Any, done: Bar) -> None:
        self.loader, self.done = loader, done

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        for batch in self.loader.batches(epoch, start):
            yield batch
            self.done.add()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def evaluate(built: "Built", arguments: argparse.Namespace, saved: "Saved") -> int:
    """Prints the figures, and says where the run itself has found others; returns the exit code."""
    if arguments.split is None:
        arguments.split = "overfit" if built.parts.eval_split == "overfit" else "test"
    part, loader = part_of(built, arguments.split)
    with bar(f"evaluating {arguments.split}", len(loader)) as done:
        counted: Any = Counted(loader, done)
        figures = built.trainer.evaluate_on(counted)
    for name, value in figures.items():
        say(f"{arguments.split}/{name}: {value!r}")
    code = compare(built, arguments, saved, figures)
    if not arguments.confusion and arguments.html is None:
        return code
    found = confusion(built, loader, part)
    if arguments.confusion:
        show_confusion(found)
    if arguments.html is not None:
        write_page(found, figures, arguments, saved.record)
    return code


def compare(built: "Built", arguments: argparse.Namespace, saved: "Saved", figures: Mapping[str, float]) -> int:
    """Holds the figures against what the run says of the same weights and examples, and says what may be the reason
    where they differ; returns 1 where they differ in more than last digits.
    """
    from runner.job.rebuilding import changed_since, recorded

    known = recorded(saved, arguments.which, arguments.split)
    pairs = {name: (strict_json(value), known[name]) for name, value in figures.items() if name in known}
    others = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if not others:
        return 0
    found = ", ".join(f"{arguments.split}/{name} {then}" for name, (_, then) in others.items())
    changes = "; ".join(changed_since(saved.record, built)) or "nothing that the record knows of"
    log.warning("these figures are not the run's own, which has found %s; what has changed since: %s", found, changes)
    return int(not all(None not in pair and math.isclose(*pair, rel_tol=LAST_DIGITS) for pair in others.values()))


def show_confusion(found: Confusion) -> None:
    """Prints accuracy per class, the confusion matrix (rows: target, columns: predicted) and the worst mistakes."""
    names = [printable(name) for name in found.names]
    width = max(6, *(len(name) for name in names)) + 1
    say("", "accuracy per class")
    for row, name in enumerate(names):
        right, total = found.right_of(row)
        share = f"{right / total:.4f}" if total else "-"
        say(f"{name:>{width}} {share:>8}  ({right} of {total})")
    say("", "confusion matrix (rows: target, columns: predicted)")
    say(" " * width + "".join(f"{name:>{width}}" for name in names))
    for name, counts in zip(names, found.counts, strict=True):
        say(f"{name:>{width}}" + "".join(f"{count:>{width}}" for count in counts))
    say("", f"worst mistakes ({len(found.worst)} of {found.mistakes})")
    for one in found.worst:
        say(
            f"{found.noun[:-1]} {one.example}: target {names[one.target]} (p {one.of_target:.4f}),"
            f" predicted {names[one.guess]} (p {one.of_guess:.4f})"
        )


def write_page(
    found: Confusion, figures: Mapping[str, Any], arguments: argparse.Namespace, record: Mapping[str, Any]
) -> None:
    """The same as a page."""
    items = [{"label": f"{arguments.split} {name}", "value": f"{value:.4f}"} for name, value in figures.items()]
    what = f"{arguments.split} part, {arguments.which} weights"
    made = [{"kind": "headline", "items": items, "lines": []}, *blocks(found, what, dataset_of(record))]
    text = page(
        f"{arguments.run_dir.resolve().name}: {arguments.split}", made, subtitle=str(arguments.run_dir), runs=[]
    )
    write_atomically(arguments.html, text.encode())
    say(arguments.html)
