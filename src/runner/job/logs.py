"""A run's log: everything to runner.log with times, and to the screen as plain lines under a live progress bar."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from runner.storage.inside import unfollowed
from runner.terminal.printable import hide, is_terminal, printable, printable_lines, say
from runner.train.events import EpochEnd, Progress

log = logging.getLogger("runner")

RESULT = 25  # a level between INFO and WARNING: what --quiet still shows
logging.addLevelName(RESULT, "RESULT")
REFRESH_SECONDS = 0.5  # rich takes 3 ms to draw the bar


class Printable(logging.Formatter):
    """One message is one line, whatever is in it; tracebacks and other libraries' messages keep their lines."""

    def format(self, record: logging.LogRecord) -> str:
        hide()  # a bar on stderr, where some handlers write
        return printable_lines(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.name == "runner":
            record.message = printable(record.message)
        return super().formatMessage(record)


if logging.lastResort is not None:  # what a verb says that opens no log
    logging.lastResort.setFormatter(Printable())


class Screen(logging.Handler):
    """Prints messages; on a terminal also a progress bar for the epoch, redrawn by time and not by batch."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(RESULT if quiet else logging.INFO)
        self.setFormatter(Printable())
        self.live: Any = None
        self.due = time.monotonic() + REFRESH_SECONDS
        if not quiet and is_terminal(sys.stdout):
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(compact=True),
                transient=True,
                auto_refresh=False,
            )
            self.task = self.live.add_task("", total=None)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.show(record)
        except OSError:  # of rich's: the terminal is gone; the run goes on
            self.setLevel(logging.CRITICAL + 1)

    def show(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        if self.live is not None and self.live.live.is_started:
            self.live.console.print(message, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            file = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
            say(*message.split("\n"), file=file, flush=True)

    def on_batch(self, progress: Progress, num_batches: int) -> None:
        now = time.monotonic()
        if self.live is None or now < self.due:
            return
        self.due = now + REFRESH_SECONDS
        self.live.start()
        description = f"epoch {progress.epoch + 1}"
        self.live.update(self.task, description=description, completed=progress.batch, total=num_batches)
        self.live.refresh()

    def stop(self) -> None:
        if self.live is not None:
            self.live.stop()


class RunLog(logging.FileHandler):
    """runner.log. A disk that is full is an error of the run, once; logging would print it and go on."""

    is_broken = False

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, errors=self.errors, opener=unfollowed)

    def emit(self, record: logging.LogRecord) -> None:
        if not self.is_broken:
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self.is_broken = True
            error.filename = error.filename or self.baseFilename
            raise error
        super().handleError(record)


@contextmanager
def open_logs(path: Path, quiet: bool, is_shown: bool = True) -> Iterator[Screen]:
    """Sends the `runner` logger's messages, and other libraries' warnings, to the file and the screen."""
    root, own = logging.getLogger(), logging.getLogger("runner")
    file = RunLog(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(Printable("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    screen = Screen(quiet or not is_shown)
    if not is_shown:
        screen.setLevel(logging.CRITICAL)
    level = own.level
    own.setLevel(logging.INFO)
    # What logging.basicConfig has put there would show our lines a second time.
    twice = [h for h in root.handlers if getattr(h, "stream", None) in (sys.stdout, sys.stderr)]
    for handler in twice:
        handler.addFilter(is_of_others)
    for handler in (screen, file):  # the screen first: it still shows what a full disk does not take
        root.addHandler(handler)
    try:
        yield screen
    finally:
        screen.stop()
        own.setLevel(level)
        for handler in twice:
            handler.removeFilter(is_of_others)
        for handler in (file, screen):
            root.removeHandler(handler)
        with contextlib.suppress(OSError):
            file.close()


def is_of_others(record: logging.LogRecord) -> bool:
    """Whether a record is none of ours, which the run's own screen shows."""
    return record.name.split(".")[0] != "runner"


def epoch_table(epochs: int, steps: int | None = None) -> Callable[[EpochEnd], None]:
    """Logs one row an evaluation, under a heading that is printed once.

    Args:
        steps: of the run, where it is not evaluated after each epoch.
    """
    headed = False
    unit = "epoch" if steps is None else "step"
    wide = max(len(unit), 2 * len(str(epochs if steps is None else steps)) + 1)

    def write(end: EpochEnd) -> None:
        nonlocal headed
        names = list(end.metrics)
        widths = {name: max(len(name), 8) for name in names}
        gap = "  " if wide + sum(widths.values()) + 2 * len(names) + len("  seconds  best") <= 80 else " "
        if not headed:
            log.info(gap.join([unit.rjust(wide), *(n.rjust(widths[n]) for n in names), "seconds"]))
            headed = True
        cells = [f"{end.metrics[n]:.4g}" if n == "lr" else f"{end.metrics[n]:.4f}" for n in names]
        cells = [cell.rjust(widths[n]) for cell, n in zip(cells, names, strict=True)]
        mark = f"{gap}best" if end.is_best else ""
        at = f"{end.progress.epoch}/{epochs}" if steps is None else f"{end.progress.step}/{steps}"
        log.info(gap.join([at.rjust(wide), *cells, f"{end.seconds:7.2f}"]) + mark)

    return write
