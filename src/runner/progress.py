"""A bar for work that takes longer than two seconds: on stderr, where that is a terminal, and gone when it is done."""

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from runner import printable

AFTER_SECONDS = 2.0
EVERY_SECONDS = 0.1
WIDTH = 24  # of the bar itself
T = TypeVar("T")


class Bar:
    """Counts what is done. Nothing is shown in the first two seconds, nor where nobody looks at a terminal."""

    def __init__(self, what: str, total: float | None) -> None:
        self.what, self.total, self.done = what, total, 0.0
        self.is_for_people = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.began = time.monotonic()
        self.due = self.began + AFTER_SECONDS
        self.is_drawn = False

    def add(self, count: float = 1, what: str | None = None) -> None:
        self.at(self.done + count, what)

    def at(self, done: float, what: str | None = None) -> None:
        """So much is done by now."""
        self.done, self.what = done, what or self.what
        if self.is_for_people and (now := time.monotonic()) >= self.due:
            self.due = now + EVERY_SECONDS
            self.draw(now - self.began)

    def draw(self, seconds: float) -> None:
        text = f"{printable.printable(self.what)} "
        if self.total:
            share = min(1.0, self.done / self.total)
            left = f", {seconds / share - seconds:.0f} s left" if share > 0 else ""
            text += f"[{'#' * round(share * WIDTH):{WIDTH}}] {share:4.0%}{left}"
        else:
            text += f"{seconds:.0f} s"
        self.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
        self.is_drawn, printable.before_a_line = True, self.clear

    def clear(self) -> None:
        """Takes the bar off the line, for another line or for good."""
        if self.is_drawn:
            self.write("\r\x1b[K")
        self.is_drawn, printable.before_a_line = False, None

    def write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


@contextmanager
def bar(what: str, total: float | None = None) -> Iterator[Bar]:
    """A bar for its body; total None: how much there is to do is not known, and the seconds are counted."""
    made = Bar(what, total)
    try:
        yield made
    finally:
        made.clear()


def shown(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, one by one, with a bar that counts them."""
    with bar(what, len(items)) as made:
        for item in items:
            yield item
            made.add()
