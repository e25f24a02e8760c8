"""Trackers: listeners that tell a run to somebody else's program (see docs/tasks.md, Listeners)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.errors import InputError


class TensorBoard:
    """Event files for TensorBoard in the run's own folder, `tensorboard/`: the rows of metrics.jsonl and steps.jsonl
    by step, and the config.

    They are durable before a checkpoint is, and a resumed run takes back what an unfinished one told beyond it
    (purge_step): no step is there twice.

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise InputError(
                "tracking.tensorboard: the package tensorboard is missing; pip install tensorboard"
            ) from error
        self.writer: Any = None

    def begin(self, run: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        step = run["progress"].step
        folder = str(Path(run["path"], "tensorboard"))
        self.writer = SummaryWriter(folder, purge_step=step + 1 if run["is_resumed"] else None)
        if not run["is_resumed"]:
            lines = [f"    {key}: {value}" for key, value in flat(run["config"]).items()]  # four spaces: as it stands
            self.writer.add_text("config", "\n".join(lines), global_step=0)

    def step(self, row: Mapping[str, Any]) -> None:
        self.add("step", row)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.add("epoch", row)

    def add(self, prefix: str, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value):
                self.writer.add_scalar(f"{prefix}/{name}", value, row["step"])

    def saving(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def end(self, record: Mapping[str, Any]) -> None:
        if self.writer is not None:
            self.writer.close()


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A config's values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found
