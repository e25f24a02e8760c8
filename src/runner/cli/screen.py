"""What the verbs that show one thing on a screen share: facts with their names, times, commands as they were typed."""

import os
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage.record_schema import JobRecord, SweepRecord, read_record
from runner.terminal.printable import can_show, printable, put, say
from runner.terminal.tables import cell
from runner.terminal.words import LONGEST_CODE, folder_word, pasted, typed

NAME = 12  # columns of a fact's name


def list_command(folder: Path) -> str:
    return pasted(["runner", "ls", folder_word(folder)])


def screen_height() -> int:
    return max(24, shutil.get_terminal_size((100, 24)).lines)


class Facts:
    """Lines of a name and what is to be said, no longer than the terminal is wide."""

    def __init__(self, limit: int) -> None:
        self.limit, self.lines = limit, list[str]()

    def add(self, name: str, value: Any, lines: int = 1, empty: str | None = None) -> None:
        """A fact, in so many lines at most; nothing where there is none to say.

        Args:
            empty: what is said instead of nothing.
        """
        text = cell(value) if value not in (None, "", [], {}) else empty
        if text is None:
            return
        room = max(20, self.limit - NAME)
        found = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=True) or [text]
        if len(found) > lines:
            found = [*found[: lines - 1], cut([" ".join(found[lines - 1 :])], room)[0]]
        self.lines += [f"{name if not number else '':{NAME}}{line}" for number, line in enumerate(found)]

    def copied(self, name: str, command: str | None) -> None:
        """A command, as it is: whoever copies it needs every blank, and no break that a terminal has not made."""
        if command:
            self.lines.append(f"{name:{NAME}}{printable(command)}")

    def block(self, lines: Sequence[str]) -> None:
        """Lines as they are."""
        self.lines += lines


def cut(lines: Sequence[str], limit: int) -> list[str]:
    dots = "…" if can_show("…") else "..."
    shown = [printable(line) for line in lines]
    return [line if len(line) <= limit else line[: limit - len(dots)] + dots for line in shown]


def figures(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {cell(value)}" for name, value in values.items())


def time_of(text: Any) -> str:
    """A record's time as people read it: in the zone that it was written in, to the second."""
    try:
        return f"{datetime.fromisoformat(str(text)):%Y-%m-%d %H:%M:%S}"
    except ValueError:
        return "" if text is None else printable(text)


def sweep_of(folder: Path) -> dict[str, Any] | None:
    """The record of the sweep that a run is a job of; None where it is none."""
    try:
        if (folder / "job.json").exists():
            return read_record(Path(os.path.normpath(folder.absolute())).parent / "sweep.json", SweepRecord)
    except (OSError, InputError):
        return None
    return None


def commands(folder: Path, record: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """What was typed; of a sweep's job also what trains this one alone, with the same bits."""
    sweep = sweep_of(folder)
    if sweep is None:
        return [("command", typed(record["command"] or (), LONGEST_CODE))]
    try:
        overrides = record["overrides"] or read_record(folder / "job.json", JobRecord)["overrides"]
    except (OSError, InputError):
        return [("sweep", typed(sweep["command"] or (), LONGEST_CODE))]
    words = [word for word in overrides if not word.lstrip("+").startswith(("sweep.", "hydra."))]
    if not any(word.lstrip("+").startswith("device.threads=") for word in words) and record["threads"] is not None:
        words.append(f"device.threads={record['threads']}")
    own = ["--config-dir", sweep["config_dir"]] if sweep["config_dir"] else []
    alone = pasted(["python", "-m", "runner", *own, *words])
    return [("sweep", typed(sweep["command"] or (), LONGEST_CODE)), ("this job", alone)]


class Redrawn:
    """Lines on a terminal that take the place of those before."""

    def __init__(self) -> None:
        self.height = 0

    def draw(self, lines: Sequence[str]) -> None:
        put(f"\x1b[{self.height}F\x1b[J" if self.height else "", sys.stdout)
        say(*lines, flush=True)
        self.height = len(lines)
