"""A page with curves of the learning rate: one file, inline SVG, no script; light and dark as its reader has it."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from runner.errors import InputError
from runner.storage.files import read_regular, write_atomically

MARK = "<!doctype html><!-- runner preview -->"
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 900, 420, 70, 16, 34
MOST_POINTS = 600  # of a curve
COLORS = ("#3266cc", "#c2410c", "#15803d", "#9333ea", "#b45309", "#0e7490", "#be123c", "#4d7c0f")
STYLE = """
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ccc }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ddd; --paper: #16181c; --line: #444 } path, li { filter: brightness(1.5) }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.4 system-ui, sans-serif; margin: 2em auto }
body { max-width: 920px }
svg { width: 100%; height: auto } text { fill: var(--ink); font-size: 13px } .axis { stroke: var(--line) }
path { fill: none; stroke-width: 2 } li::marker { color: inherit }
"""


def check_free(path: Path) -> None:
    """Refuses to write over what is no such page.

    Raises:
        InputError: there is something else of this name, or no folder to write it in.
    """
    if not path.parent.is_dir():
        raise InputError(f"-o {path}: there is no folder {path.parent}")
    if not path.is_symlink() and not path.exists():
        return
    try:
        is_ours = not path.is_symlink() and read_regular(path).startswith(MARK.encode())
    except OSError:
        is_ours = False
    if not is_ours:
        raise InputError(f"-o {path}: is there already, and is no page of `runner preview`; give another name")


def write(path: Path, curves: Sequence[tuple[str, Sequence[float]]], unit: str, notes: Sequence[str]) -> None:
    try:
        write_atomically(path, page(curves, unit, notes).encode())
    except OSError as error:
        raise InputError(f"-o {path}: cannot be written ({error.strerror or error})") from error


def page(curves: Sequence[tuple[str, Sequence[float]]], unit: str, notes: Sequence[str]) -> str:
    """The page's text.

    Args:
        curves: a name, and a rate for each step.
        unit: "step", or "epoch" where the rates are those.
        notes: lines below the picture.
    """
    high = max(max(rates) for _, rates in curves) or 1.0
    longest = max(len(rates) for _, rates in curves)
    parts = [axis(high, longest)]
    for number, (name, rates) in enumerate(curves):
        color = COLORS[number % len(COLORS)]
        parts.append(f'<path d="{line(rates, high, longest)}" stroke="{color}"><title>{escape(name)}</title></path>')
    items = [
        f'<li style="color:{COLORS[number % len(COLORS)]}">{escape(name)}: first {rates[0]:.4g},'
        f" highest {max(rates):.4g}, last {rates[-1]:.4g}</li>"
        for number, (name, rates) in enumerate(curves)
    ]
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'{MARK}<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Learning rate</title><style>{STYLE}</style><h1>Learning rate by {unit}</h1>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg><ul>{"".join(items)}</ul>{said}</html>\n'
    )


def axis(high: float, longest: int) -> str:
    found = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = y_of(share * high, high), x_of(share * (longest - 1), longest)
        found.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        found.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{share * high:.3g}</text>')
        anchor = "end" if share == 1 else "middle"
        found.append(
            f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{1 + share * (longest - 1):,.0f}</text>'
        )
    return "".join(found)


def line(rates: Sequence[float], high: float, longest: int) -> str:
    """A path through the rates; of more than there is room for the lowest and the highest of each piece."""
    size = max(1, -(-2 * len(rates) // MOST_POINTS))
    points = []
    for start in range(0, len(rates), size):
        piece = range(start, min(start + size, len(rates)))
        points += sorted({min(piece, key=rates.__getitem__), max(piece, key=rates.__getitem__)})
    points = sorted({0, *points, len(rates) - 1})
    return "M" + "L".join(f"{x_of(at, longest):.1f},{y_of(rates[at], high):.1f}" for at in points)


def x_of(step: float, longest: int) -> float:
    return LEFT + step / max(1, longest - 1) * (WIDTH - LEFT - 10)


def y_of(rate: float, high: float) -> float:
    return TOP + (1 - rate / high) * (HEIGHT - TOP - BOTTOM)
