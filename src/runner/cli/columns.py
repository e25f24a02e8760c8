"""The columns of a listing: what varies over the runs, in the order of its worth, as wide as the terminal."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Raw

from runner.cli.select import Columns, shown_name, value_of
from runner.storage.record_schema import decoded
from runner.storage.records import Row, pieces
from runner.terminal.printable import can_show, printable
from runner.terminal.tables import Column, cell, joined

NO_TERMINAL = 100  # columns, where nobody says how many there are
LONGEST_CELL = 28
SHORTEST_PATH = 24
SAID_ELSEWHERE = ("device", "checkpoint")  # groups whose choice says less than their keys do
NO_SETTING = (
    *("config.derived.", "config.name", "config.tags", "config.notes", "config.quiet", "config.sweep", "config.trust"),
    *("config.checkpoint.", "config.trainer.log_every"),
)


def width() -> int:
    """Columns of the terminal, as shutil counts them; its import would cost each listing 4 ms."""
    try:
        if (given := int(os.environ.get("COLUMNS", "0"))) > 0:
            return given
        return os.get_terminal_size(sys.stdout.fileno()).columns or NO_TERMINAL
    except (OSError, ValueError):
        return NO_TERMINAL


def varying(rows: Sequence[Row], words: Sequence[str] | None = None) -> list[str]:
    """What the runs differ in: choices of groups, then config keys; first what their commands have named.

    A key that follows from a choice of its own group, or from another key (an interpolation), is none; a `_target_`
    stands in the choice of its group.

    Args:
        words: what named() gives, where it is known already.
    """
    found, keys = [], []
    for group in groups_of(rows):
        name = f"choices.{group}"
        if not (alike([row.groups.get(group) for row in rows]) and alike([row.get(name) for row in rows])):
            chosen = choices(rows, group)
            known = {label for label, row in zip(chosen, rows, strict=True) if name in row or label is not None}
            found += [name] if len(known) > 1 else []  # a run of before choices were kept says nothing
            keys += differing(rows, group, chosen)
    order = {name: number for number, name in enumerate(words if words is not None else named(rows))}
    return sorted([*found, *keys], key=lambda name: order.get(shown_name(name), len(order)))


def alike(values: Sequence[Any]) -> bool:
    return values.count(values[0]) == len(values)


def differing(rows: Sequence[Row], group: str, chosen: Sequence[str | None]) -> list[str]:
    """The keys of a group in which runs of one choice of it differ. A run that lacks a key says nothing of it."""
    pairs = ((choice, row.groups.get(group)) for row, choice in zip(rows, chosen, strict=True))
    kinds = {(choice, id(flat)): (choice, flat) for choice, flat in pairs if flat is not None}
    found: dict[str, None] = {}
    seen: dict[tuple[str | None, str], Any] = {}
    for choice, flat in kinds.values():
        for key, value in flat.items():
            if key not in found and seen.setdefault((choice, key), value) != value:
                found[key] = None
    return [key for key in found if is_setting(key) and not follows(rows, key)]


def is_setting(key: str) -> bool:
    return not key.startswith(NO_SETTING) and not key.rpartition(".")[2].startswith("_")


def groups_of(rows: Sequence[Row]) -> list[str]:
    """The groups that one can choose of, and all other keys of the config's top level."""
    groups: dict[str, Any] = {}
    for row in rows:
        groups.update(row.groups)
        groups.update(row.record["choices"])
    return list(groups)


def choices(rows: Sequence[Row], group: str) -> list[str | None]:
    """Each run's choice of a group; with the class where one choice's name stands for several, and the class alone
    where no choice is known.
    """
    if group in SAID_ELSEWHERE:
        return [None] * len(rows)
    name, target = f"choices.{group}", f"config.{group}._target_"
    classes = [row.groups.get(group, {}).get(target) for row in rows]
    pairs = [(row.get(name), None if cls is None else str(cls)) for row, cls in zip(rows, classes, strict=True)]
    targets: dict[Any, set[Any]] = {}
    for choice, cls in set(pairs):
        targets.setdefault(choice, set()).add(cls)
    shown: dict[tuple[Any, Any], str | None] = {}
    for choice, cls in set(pairs):
        last = str(cls).rpartition(".")[2] if cls is not None else None
        is_clear = choice is not None and (len(targets[choice]) == 1 or last is None)
        text = choice if is_clear else last if choice is None else f"{choice} ({last})"
        shown[choice, cls] = None if text in (None, "null", "None") else str(text)
    return [shown[pair] for pair in pairs]


def follows(rows: Sequence[Row], key: str) -> bool:
    """Whether a key's value was worked out from others in each run that has it: nobody has set it."""
    group = key.split(".")[1]
    sources = (
        pieces({group: source_of(row, group)}, "config")[group] for row in rows if key in row.groups.get(group, ())
    )
    return all(is_worked_out(source, key) for source in sources)


def source_of(row: Row, group: str) -> Any:
    """A group as it was before its interpolations were worked out; None where the record does not tell."""
    source = row.record.get("config_source")
    if isinstance(source, Raw):
        try:
            source = decoded(bytes(source))
        except (ValueError, RecursionError):
            return None
    return source.get(group) if isinstance(source, dict) else None


def is_worked_out(source: Mapping[str, Any], key: str) -> bool:
    """Whether the source has an interpolation at the key, or in place of a group above it."""
    while key not in source and "." in key:
        key = key.rpartition(".")[0]
    value = source.get(key)
    return isinstance(value, str) and "${" in value


def named(rows: Sequence[Row]) -> list[str]:
    """The keys that the runs' commands have named; of an older sweep's job, those in its folder's name."""
    words: dict[str, None] = {}
    for row in rows:
        own = row.record["overrides"]
        if own is None:
            own = [*(row.record["command"] or []), *str(row["path"]).rpartition("/")[2].split(",")]
        words.update(dict.fromkeys(own))
    return list(dict.fromkeys(word.partition("=")[0].lstrip("+~") for word in words if "=" in word))


class Listing:
    """A table of runs whose columns are dropped from the least worthy on until it fits.

    Args:
        limit: columns of the terminal; None: as wide as it comes, and no cell is cut.
    """

    def __init__(self, paths: Sequence[str], limit: int | None) -> None:
        self.limit = limit
        self.dots = "…" if can_show("…") else "..."
        self.values: dict[str, Sequence[Any]] = {}
        self.paths = paths
        self.worth: list[str] = []  # of what may be dropped, the least worthy last

    def add(self, name: str, values: Sequence[Any], may_go: bool = True) -> None:
        if name not in self.values:
            self.values[name] = values
            self.worth += [name] if may_go else []

    def lines(self) -> tuple[list[str], list[str]]:
        """The table's lines, and the names of the columns that there was no room for."""
        if self.limit is None:
            columns = [Column(name, values) for name, values in self.values.items()]
            return joined([Column("run", self.paths), *columns]), []
        needed = min(max(map(len, self.paths), default=3), max(SHORTEST_PATH, self.limit * 3 // 10))
        kept: dict[str, Column] = {}
        taken = 0
        for name in [*(name for name in self.values if name not in self.worth), *self.worth]:
            column = Column(name, self.values[name], self.cut)
            if name in self.worth and taken + column.width + 2 + needed > self.limit:
                break
            kept[name] = column
            taken += column.width + 2
        paths = [self.cut_middle(path, max(SHORTEST_PATH, self.limit - taken)) for path in self.paths]
        shown = [kept[name] for name in self.values if name in kept]
        return joined([Column("run", paths), *shown]), [name for name in self.values if name not in kept]

    def cut(self, text: str) -> str:
        return text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - len(self.dots)] + self.dots

    def cut_middle(self, path: str, longest: int) -> str:
        """A path's beginning and end: the end says which run it is."""
        text = printable(path)
        if len(text) <= longest:
            return text
        left = (longest - len(self.dots)) // 3
        return text[:left] + self.dots + text[left - longest + len(self.dots) :]


def column_of(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a varying column, as varying() names it."""
    if name.startswith("choices."):
        return list(choices(rows, name.removeprefix("choices.")))
    group = name.split(".")[1]
    return [described(row.groups.get(group, {}).get(name)) for row in rows]


def described(value: Any) -> Any:
    """A value as a cell shows it: of what a `_target_` makes its class, with its arguments."""
    if isinstance(value, list):
        return [described(item) for item in value] or "[]"
    if not isinstance(value, dict):
        return value
    given = ", ".join(f"{key}={cell(described(item))}" for key, item in value.items() if not str(key).startswith("_"))
    return f"{str(value.get('_target_', '')).rpartition('.')[2]}({given})"


def chosen(rows: Sequence[Row], given: str) -> dict[str, list[Any]]:
    """The columns that `--columns a,b` names.

    Raises:
        InputError: no run has one of them.
    """
    known = Columns(rows)
    found: dict[str, list[Any]] = {}
    for key in [key.strip() for key in given.split(",") if key.strip()]:
        names = known.named(key, f"--columns {given}")
        is_group = names[0].startswith("choices.")
        found[key] = column_of(rows, names[0]) if is_group else [described(value_of(row, names)) for row in rows]
    return found
