"""`runner label PATH +TAG -TAG --note TEXT --archive`: what a person says of runs, at any time."""

import argparse
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage import labels, records
from runner.storage.run_dir import RunDir
from runner.terminal.printable import say


class LabelParser(argparse.ArgumentParser):
    """Takes words that begin with one minus for tags to remove, not for flags."""

    def parse_intermixed_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        words = list(args or [])
        removed = [word for word in words if word.startswith("-") and word[1:2] != "-" and word != "-h"]
        found = super().parse_intermixed_args([word for word in words if word not in removed], namespace)
        found.removed = removed
        return found


def parser() -> argparse.ArgumentParser:
    made = LabelParser(
        prog="runner label",
        description="Changes the tags and the note of a run, or of all runs below a folder, and archives them: ls and"
        " best then leave them out, unless asked with --archived; nothing is moved or deleted, and a sweep's summary"
        " still counts them. What was changed, and when, is kept in the run's labels.jsonl; run.json stays as it is.",
    )
    made.add_argument("path", type=Path, metavar="PATH", help="a run's folder, or a folder of runs")
    made.add_argument("added", nargs="*", metavar="TAG", help="TAG or +TAG: adds it; -TAG: removes it")
    made.add_argument("--note", metavar="TEXT", help='the note, in place of the one before; "": takes it away')
    marks = made.add_mutually_exclusive_group()
    marks.add_argument("--archive", action="store_true", default=None, help="leaves the runs out of ls and best")
    marks.add_argument("--unarchive", action="store_false", dest="archive", help="takes that back")
    return made


def main(arguments: argparse.Namespace) -> int:
    added = [word.removeprefix("+") for word in arguments.added]
    removed = [word.removeprefix("-") for word in arguments.removed]
    for tag in (*added, *removed):
        if not tag.strip():
            raise InputError(f"tag {tag!r}: must not be empty")
    if both := [tag for tag in added if tag in removed]:
        raise InputError(f"tag {both[0]!r}: is both added and removed")
    if not added and not removed and arguments.note is None and arguments.archive is None:
        raise InputError(f"{arguments.path}: no label given; give +TAG, -TAG, --note TEXT, --archive or --unarchive")
    for run_dir, record in runs_at(arguments.path):
        before = labels.labelled(record, labels.history(run_dir.path))
        wanted: dict[str, Any] = {
            "added": [tag for tag in added if tag not in before["tags"]],
            "removed": [tag for tag in removed if tag in before["tags"]],
        }
        change = {key: tags for key, tags in wanted.items() if tags}
        if arguments.note is not None and (note := arguments.note.strip() or None) != before["notes"]:
            change["notes"] = note
        if arguments.archive not in (None, before["archived"]):
            change["archived"] = arguments.archive
        if change:
            labels.add(run_dir, change)
        now = labels.labelled(record, labels.history(run_dir.path))
        told = [f"tags: {', '.join(map(str, now['tags'])) or 'none'}"] if added or removed else []
        told += [f"note: {now['notes'] or 'none'}"] if arguments.note is not None else []
        told += ["archived" if now["archived"] else "not archived"] if arguments.archive is not None else []
        say(f"{run_dir.path}: {'; '.join(told)}{'' if change else ' (as before)'}")
    return 0


def runs_at(path: Path) -> list[tuple[RunDir, dict[str, Any]]]:
    """The run in a folder, or all below it, each with its record.

    Raises:
        InputError: there is none, or one cannot be read: then none is changed.
    """
    pairs = [(run_dir, run_dir.read_run()) for run_dir in map(RunDir, records.find(path))]
    for run_dir, _ in pairs:
        run_dir.refuse_links()
    return pairs
