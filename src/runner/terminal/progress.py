"""A bar for work that takes longer than two seconds: on stderr, where that is a terminal, and gone when it is done."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from runner.terminal import printable

AFTER_SECONDS = 2.0
EVERY_SECONDS = 0.2
WIDTH = 24  # of the bar itself
T = TypeVar("T")


class Bar:
    """Counts what is done. A thread draws it, so that it lives while one piece takes long."""

    def __init__(self, what: str, total: float | None, done: float = 0.0) -> None:
        self.what, self.total, self.done, self.before = what, total, done, done
        self.began = time.monotonic()
        self._is_drawn = False
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        if printable.is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb" and printable.drawn is None:
            printable.drawn = self
            self._thread = threading.Thread(target=self._live, daemon=True)
            self._thread.start()

    def add(self, count: float = 1) -> None:
        self.done += count

    def _live(self) -> None:
        due = AFTER_SECONDS
        while not self._ended.wait(due):
            due = EVERY_SECONDS
            with self._lock:
                if not self._ended.is_set():
                    self._write("\r\x1b[K" + self.line(time.monotonic() - self.began))
                    self._is_drawn = True

    def line(self, seconds: float) -> str:
        """`planning jobs [######      ]  25%, 12 s left`; of what has no known end the seconds so far."""
        text = f"{printable.printable(self.what)} "
        if not self.total:
            text += f"{seconds:.0f} s"
        else:
            share = min(1.0, self.done / self.total)
            came = self.done - self.before
            left = f"{seconds * max(0.0, self.total - self.done) / came:.0f} s left" if came > 0 else f"{seconds:.0f} s"
            text += f"[{'#' * round(share * WIDTH):{WIDTH}}] {share:4.0%}, {left}"
        import shutil

        return text[: shutil.get_terminal_size().columns - 1]

    def clear(self) -> None:
        """Takes the bar off its line, for another line; it is drawn again below that."""
        with self._lock:
            if self._is_drawn:
                self._write("\r\x1b[K")
            self._is_drawn = False

    def end(self) -> None:
        if self._thread is not None:
            self._ended.set()
            self.clear()
            self._thread.join()
            self._thread = printable.drawn = None

    def _write(self, text: str) -> None:
        printable.put(text, sys.stderr, flush=True)


@contextmanager
def bar(what: str, total: float | None = None, done: float = 0.0) -> Iterator[Bar]:
    """A bar for its body; of bars inside bars the outer one is shown.

    Args:
        total: what bar.done is at the end; None: not known, and the seconds are counted.
        done: where it begins.
    """
    made = Bar(what, total, done)
    try:
        yield made
    finally:
        made.end()


def with_bar(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, one by one, under a bar that counts them."""
    with bar(what, len(items)) as made:
        for item in items:
            yield item
            made.add()


def _forget() -> None:
    """A forked child has no such thread, and its parent's lock may be held for good."""
    printable.drawn = None


os.register_at_fork(after_in_child=_forget)
