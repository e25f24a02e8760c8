"""`runner tag PATH +TAG -TAG`: gives runs tags and takes them away, also when they have begun or are finished."""

import argparse
from typing import Any

from runner.cli.labelling import add_to, parser_of, runs_at
from runner.errors import InputError


def parser() -> argparse.ArgumentParser:
    made = parser_of("tag", "Changes the tags of a run, or of all runs below a folder: TAG or +TAG adds, -TAG removes.")
    made.add_argument("tags", nargs="+", metavar="TAG", help="adds it; -TAG: removes it")
    return made


def main(arguments: argparse.Namespace) -> int:
    added = [word.removeprefix("+") for word in arguments.tags if not word.startswith("-")]
    removed = [word.removeprefix("-") for word in arguments.tags if word.startswith("-")]
    for word, tag in zip(arguments.tags, [w.lstrip("+-") for w in arguments.tags], strict=True):
        if not tag.strip():
            raise InputError(f"tag {word!r}: must not be empty")
    if both := [tag for tag in added if tag in removed]:
        raise InputError(f"tag {both[0]!r}: is both added and removed")

    def change(labels: dict[str, Any]) -> dict[str, Any]:
        new, old = (
            [tag for tag in added if tag not in labels["tags"]],
            [tag for tag in removed if tag in labels["tags"]],
        )
        return {name: tags for name, tags in (("added", new), ("removed", old)) if tags}

    add_to(runs_at(arguments.path), change, lambda labels: f"tags: {', '.join(map(str, labels['tags'])) or 'none'}")
    return 0
