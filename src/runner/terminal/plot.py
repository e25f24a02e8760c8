"""Curves as text: braille dots, bars for a single line, letters where several share a picture; ASCII where it must."""

import math
from collections.abc import Iterator, Sequence

from runner.terminal.printable import can_show, printable

Values = Sequence[float | None]
BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#%"
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille cell, by row and column
SEVERAL = "*"  # where two curves meet


def sparkline(values: Values, width: int) -> str:
    """One line of bars, the lowest value the lowest bar; a space where there is no value."""
    bars = BARS if can_show(BARS) else PLAIN_BARS
    known = finite(values)
    if not known:
        return ""
    low, high = min(known), max(known)
    count = min(width, len(values))
    line = ""
    for column in range(count):
        piece = values[column * len(values) // count : (column + 1) * len(values) // count]
        found = finite(piece)
        share = (found[-1] - low) / (high - low) if found and high > low else 0.5
        line += bars[min(len(bars) - 1, int(share * len(bars)))] if found else " "
    return line


def finite(values: Values) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def plot(
    curves: Sequence[tuple[str, Values]],
    ends: tuple[str, str],
    width: int,
    height: int,
    marks: Sequence[tuple[float, str]] = (),
) -> list[str]:
    """Curves over one axis, each from its first value at the left to its last at the right.

    Args:
        curves: a name and values; the names are listed below the picture where there are several.
        ends: what stands at the axis' two ends.
        width, height: of the whole, in cells; the axis and the names come on top of the height.
        marks: places of the axis, from 0 to 1, each with a word, which stands between its ends.
    """
    known = [value for _, values in curves for value in finite(values)]
    if not known:
        return ["(no value to draw)"]
    low, high = min(known), max(known)
    labels = [short(high), short(low)]
    wide = max(map(len, labels))
    is_fine = len(curves) == 1 and can_show("⣿")
    across, down = (2, 4) if is_fine else (1, 1)
    columns = max(2, width - wide - 2)
    letters = "abcdefghijklmnopqrstuvwxyz" if len(curves) > 1 else "*"
    cells: dict[tuple[int, int], int | str] = {}
    for number, (_, values) in enumerate(curves):
        letter = letters[number % len(letters)]
        for x, y in points(values, low, high, columns * across, height * down):
            cell = y // down, x // across
            if is_fine:
                cells[cell] = int(cells.get(cell, 0)) | DOTS[y % down][x % across]
            else:
                cells[cell] = letter if cells.get(cell, letter) == letter else SEVERAL
    corner, wall, floor = ("└", "│", "─") if can_show("└│─") else ("+", "|", "-")
    lines = []
    for row in range(height):
        label = labels[0] if row == 0 else labels[1] if row == height - 1 and high > low else ""
        found = [cells.get((row, column), " ") for column in range(columns)]
        text = "".join(chr(0x2800 + cell) if isinstance(cell, int) else cell for cell in found)
        lines.append(f"{label:>{wide}} {wall}{text}".rstrip())
    lines.append(f"{'':>{wide}} {corner}{floor * columns}")
    axis = f"{ends[0]}{ends[1]:>{max(1, columns - len(ends[0]))}}"
    for place, word in marks:
        axis = marked(axis, round(place * (columns - 1)), word)
    lines.append(f"{'':>{wide}}  {axis}")
    if len(curves) > 1:
        lines += [f"{letters[n % len(letters)]:>{wide}}  {printable(name)}" for n, (name, _) in enumerate(curves)]
    return lines


def marked(axis: str, column: int, word: str) -> str:
    """The line below an axis with an arrow at a column, and the word on the side where there is room; none: no word."""
    arrow = "▲" if can_show("▲") else "^"
    for text, start in ((f"{arrow} {word}", column), (f"{word} {arrow}", column - len(word) - 1), (arrow, column)):
        end = start + len(text)
        if start >= 0 and end <= len(axis) and not axis[max(0, start - 1) : end + 1].strip():
            return axis[:start] + text + axis[end:]
    return axis


def points(values: Values, low: float, high: float, columns: int, rows: int) -> Iterator[tuple[int, int]]:
    """The dots of a curve, (column, row from the top), joined by lines; a gap where a value is missing."""
    before: tuple[int, int] | None = None
    for index, value in enumerate(values):
        if value is None or not math.isfinite(value):
            before = None
            continue
        x = index * (columns - 1) // max(1, len(values) - 1)
        y = round((high - value) / (high - low) * (rows - 1)) if high > low else rows // 2
        if before is None:
            yield x, y
        else:
            length = max(x - before[0], abs(y - before[1]), 1)
            for step in range(length + 1):
                yield before[0] + (x - before[0]) * step // length, before[1] + (y - before[1]) * step // length
        before = x, y


def short(value: float) -> str:
    return f"{value:.4g}"
