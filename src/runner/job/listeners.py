"""What a run says as it goes: the epochs in run.json, and a table on the screen."""

import logging
from collections.abc import Callable
from typing import Any

from runner.storage.run_dir import RunDir
from runner.train.events import EpochEnd

log = logging.getLogger("runner")


def run_record(run_dir: RunDir, record: dict[str, Any]) -> Callable[[EpochEnd], None]:
    """Keeps the epochs done and the best one in run.json."""

    def write(end: EpochEnd) -> None:
        record["epochs_done"] = end.progress.epoch
        record["best_epoch"], record["best_value"] = end.progress.best_epoch, end.progress.best_value
        record["seconds"] = round(record["seconds"] + end.seconds, 3)
        record["last"] = end.metrics
        if end.is_best:
            record["best"] = end.metrics
        run_dir.write_run(record)

    return write


def table(epochs: int) -> Callable[[EpochEnd], None]:
    """Logs one row an epoch, under a heading that is printed once."""
    headed = False

    def write(end: EpochEnd) -> None:
        nonlocal headed
        names = list(end.metrics)
        if not headed:
            log.info("  ".join(["epoch".rjust(7), *(n.rjust(max(len(n), 8)) for n in names), "seconds"]))
            headed = True
        cells = [f"{end.metrics[n]:.4g}" if n == "lr" else f"{end.metrics[n]:.4f}" for n in names]
        cells = [cell.rjust(max(len(n), 8)) for cell, n in zip(cells, names, strict=True)]
        mark = "  best" if end.is_best else ""
        log.info("  ".join([f"{end.progress.epoch}/{epochs}".rjust(7), *cells, f"{end.seconds:7.2f}"]) + mark)

    return write
