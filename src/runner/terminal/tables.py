"""Plain tables of text, as the verbs print them."""

from collections.abc import Callable, Sequence
from typing import Any

from runner.terminal.printable import printable


def cell(value: Any) -> str:
    """One line of text that a terminal only shows."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 0.001 or abs(value) >= 1000 else f"{value:.4f}".rstrip("0").rstrip(".")
    if isinstance(value, (list, tuple)):
        return ",".join(cell(item) for item in value)
    return printable(value)


class Column:
    """A column of a table: a head over cells, as text; numbers to the right.

    Args:
        cut: makes a text that is too long shorter.
    """

    def __init__(self, head: str, values: Sequence[Any], cut: Callable[[str], str] | None = None) -> None:
        self.head = printable(head)
        self.cells = [cell(value) for value in values]
        self.is_right = bool(values) and all(value is None or isinstance(value, (int, float)) for value in values)
        if cut is not None and not self.is_right:
            self.cells = [cut(text) for text in self.cells]
        self.width = max(len(self.head), *map(len, self.cells)) if self.cells else len(self.head)

    def lines(self) -> list[str]:
        if self.is_right:
            return [text.rjust(self.width) for text in (self.head, *self.cells)]
        return [text.ljust(self.width) for text in (self.head, *self.cells)]


def joined(columns: Sequence[Column]) -> list[str]:
    """The table's lines: columns as wide as their longest cell."""
    return ["  ".join(line).rstrip() for line in zip(*(column.lines() for column in columns), strict=True)]


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    return "\n".join(joined([Column(*pair) for pair in zip(header, columns, strict=True)]))
