"""`runner report PATH...`: one HTML file about a run, a sweep, a search or any folders of runs."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from runner.cli import trust
from runner.errors import InputError
from runner.report.page import check_target, page
from runner.storage.files import write_atomically
from runner.terminal import notices
from runner.terminal.printable import say
from runner.terminal.progress import bar

NAME = "report.html"
EVERY_SECONDS = 5  # between two writings with --watch; more where one takes long


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner report",
        description="Writes one HTML file about a run, a sweep, a search or any folders of runs: results, curves,"
        " tables. It needs no network and no other file.",
    )
    made.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="the folder of a run or sweep, or of several")
    made.add_argument("-o", "--output", type=Path, metavar="FILE", help=f"default: {NAME} in the folder")
    made.add_argument("--open", action="store_true", help="open it in the browser")
    made.add_argument("--watch", action="store_true", help="write it again until nothing runs any more")
    examples = made.add_mutually_exclusive_group()
    examples.add_argument(
        "--examples",
        action="store_const",
        const=True,
        help="of a run: confusion matrix and worst mistakes, whatever it takes (default: of your own finished run)",
    )
    examples.add_argument(
        "--no-examples", action="store_const", const=False, dest="examples", help="of a run: from its records alone"
    )
    trust.add_flags(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    target = target_of(arguments)
    trust.grant(arguments)
    began = time.monotonic()
    is_running = write(arguments, target)
    say(target, flush=True)
    if arguments.open:
        import webbrowser

        webbrowser.open(target.resolve().as_uri())
    while arguments.watch and is_running:
        time.sleep(max(EVERY_SECONDS, min(60, 3 * (time.monotonic() - began))))
        notices.take()  # those of the last page are said at the end
        began = time.monotonic()
        is_running = write(arguments, target)
    return 0


def target_of(arguments: argparse.Namespace) -> Path:
    """Where the page goes.

    Raises:
        InputError: a folder is missing, or what is there is not ours to replace.
    """
    for path in arguments.paths:
        if not path.is_dir():
            raise InputError(f"{path}: {'is a file; give a folder' if path.exists() else 'there is no such folder'}")
    if arguments.output is None and len(arguments.paths) > 1:
        raise InputError("of several folders -o FILE must say where the page goes")
    target: Path = arguments.output or arguments.paths[0] / NAME
    check_target(target, "-o")
    return target


def write(arguments: argparse.Namespace, target: Path) -> bool:
    """Writes the page; returns whether anything of it is still running."""
    from runner.report.gather import gather

    with bar("gathering the report"):
        found = gather(arguments.paths)
        title, blocks = content(found, arguments)
    refresh = 2 * EVERY_SECONDS if arguments.watch and found.is_running else None
    subtitle = ", ".join(str(path) for path in arguments.paths)
    text = page(title, blocks, refresh, subtitle=subtitle, runs=[run.name for run in found.runs])
    write_atomically(target, text.encode())
    return found.is_running


def content(found: Any, arguments: argparse.Namespace) -> tuple[str, list[dict[str, Any]]]:
    """The title and the blocks of what was found."""
    from runner.report import examples, run_page, sweep_page

    name = Path(os.path.abspath(found.place)).name
    if found.kind == "run":
        (run,) = found.runs
        return str(run.record.get("name") or name), run_page.blocks(run, examples.blocks(run, arguments.examples))
    if arguments.examples:
        raise InputError("--examples is for one run; give the folder of one")
    if found.kind == "sweep":
        return name, sweep_page.blocks(found)
    return name if len(arguments.paths) == 1 else f"{len(found.runs)} runs", sweep_page.blocks_of_runs(found)
