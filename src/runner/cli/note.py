"""`runner note PATH TEXT`: what a person has to say of a run, also when it has begun or is finished."""

import argparse

from runner.cli.labelling import add_to, parser_of, runs_at


def parser() -> argparse.ArgumentParser:
    made = parser_of("note", "Sets the note of a run, or of all runs below a folder; an empty TEXT takes it away.")
    made.add_argument("text", nargs="+", metavar="TEXT", help="the note; it takes the place of the one before")
    return made


def main(arguments: argparse.Namespace) -> int:
    text = " ".join(arguments.text).strip() or None
    add_to(
        runs_at(arguments.path),
        lambda labels: {} if labels["notes"] == text else {"notes": text},
        lambda labels: f"note: {labels['notes'] or 'none'}",
    )
    return 0
