"""`runner prune DIR`: deletes all but the best checkpoint of finished runs, and says what it freed."""

import argparse
import re
from pathlib import Path

from runner.errors import InputError
from runner.storage import records
from runner.storage.inside import unlink_in
from runner.storage.run_dir import RunDir, is_locked
from runner.terminal.printable import say
from runner.terminal.progress import with_bar

# What checkpoints are called, with what a killed write and a resume have left of them; other files are not ours.
OURS = re.compile(r"(best|last(-\d+)?|epoch_\d+|previous)\.pt(\.tmp|\.set-aside-\d+)?")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner prune",
        description="Deletes the checkpoints of finished runs, except best.pt (or last.pt where there is no best.pt).",
    )
    made.add_argument("folder", type=Path, metavar="DIR", help="a folder of runs")
    made.add_argument("--dry-run", action="store_true", help="only says what would be deleted")
    return made


def main(arguments: argparse.Namespace) -> int:
    freed = count = 0
    for path in with_bar(records.find(arguments.folder), "pruning"):
        run_dir = RunDir(path)
        try:
            record = run_dir.read_run()
        except InputError as error:
            say(f"skipped: {error}")
            continue
        if record["state"] != "done" or is_locked(run_dir):
            continue
        try:
            run_dir.refuse_links()
        except InputError as error:
            say(f"skipped: {error}")
            continue
        for file in superfluous(run_dir):
            # A file of two names (best.pt and last.pt of one epoch) frees nothing until both are gone.
            freed += file.stat().st_size if file.stat().st_nlink == 1 else 0
            count += 1
            say(f"{'would delete' if arguments.dry_run else 'deleted'} {file}")
            if not arguments.dry_run:
                unlink_in(run_dir.checkpoints, file.name)
    say(f"{count} files, {freed / 1e6:.1f} MB {'would be ' if arguments.dry_run else ''}freed")
    return 0


def superfluous(run_dir: RunDir) -> list[Path]:
    files = sorted(file for file in run_dir.checkpoints.glob("*.pt*") if OURS.fullmatch(file.name) and file.is_file())
    kept = next((name for name in ("best.pt", "last.pt") if (run_dir.checkpoints / name).exists()), None)
    others = [file for file in files if file.name != kept]
    if kept is None or not others:
        return others
    from runner.storage.checkpoint import Damaged
    from runner.storage.peek import verify

    try:
        verify(run_dir.checkpoints / kept)  # what is deleted may be the only good one
    except Damaged as error:
        say(f"skipped: {error}")
        return []
    return others
