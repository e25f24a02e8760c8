"""Signals that stop a run or a sweep, and processes that end with the one that started them."""

import ctypes
import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from runner.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


class StopRequest:
    """Set by a signal handler, looked at where it is safe to stop: between two batches, or two looks at jobs."""

    signum: int | None = None

    def check(self) -> None:
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def stop_signals(numbers: Sequence[signal.Signals] = STOP_SIGNALS) -> Iterator[StopRequest]:
    """The first of these signals asks for a stop; the second ends the process at once. Outside the main thread, which
    alone can have handlers, nothing asks.
    """
    stop = StopRequest()

    def handle(signum: int, frame: object) -> None:
        if stop.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        stop.signum = signum

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent() -> None:
    """SIGKILL for this process when its parent (the thread that forked it) dies, however it dies. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def allow_children() -> None:
    """Lets a daemonic worker (pebble's are) have children of its own: torch's loader workers. multiprocessing has no
    public way to take the flag back; if `_config` moves, a worker's first DataLoader with workers raises.
    """
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
