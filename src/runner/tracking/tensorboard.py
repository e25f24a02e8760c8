"""Event files for TensorBoard, in the run's own folder."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.tracking.facts import finals, need, scalars
from runner.tracking.matrix import picture_of, table_of
from runner.values import flatten


def wait_for_a_later_name(folder: Path) -> None:
    """TensorBoard reads files by their names, which hold the second: two of one second would be in any order."""
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    while any(second == f"{int(time.time()):010d}" for second in seconds):
        time.sleep(0.02)


class TensorBoard:
    """Event files for TensorBoard in the run's own folder, `tensorboard/`: the rows of metrics.jsonl and steps.jsonl
    by step, the config as text and as hparams, and at the end the confusion matrix.

    They are durable before a checkpoint is, and a resumed run takes back what an unfinished one told beyond it
    (purge_step): no step is there twice.

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __init__(self) -> None:
        need("tensorboard", "tracking.tensorboard", "tensorboard")
        self.writer: Any = None
        self.told = {"step": -1, "epoch": -1}  # of each kind of row the last step

    def begin(self, run: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.step_now = run["progress"].step
        folder = Path(run["path"], "tensorboard")
        is_begun = any(folder.glob("events.*"))
        wait_for_a_later_name(folder)
        is_told = is_begun and self.step_now > 0  # up to there: it was durable before the checkpoint was
        self.writer = SummaryWriter(str(folder), purge_step=self.step_now + is_told if is_begun else None)
        if is_told:
            return
        config = flatten(run["config"])
        lines = [f"    {key}: {value}" for key, value in config.items()]  # four spaces: as it stands
        self.writer.add_text("config", "\n".join(lines), global_step=0)
        values = {key: value for key, value in config.items() if isinstance(value, (bool, int, float, str))}
        # The first part would say which keys all runs have; TensorBoard finds that out where nobody says it.
        _, start, _ = hparams(values, {})  # type: ignore[no-untyped-call]
        self.writer.file_writer.add_summary(start)
        for row in run["step_rows"]:
            self.step(row)
        for row in run["epoch_rows"]:
            self.epoch(row)

    def step(self, row: Mapping[str, Any]) -> None:
        self.add("step", row)

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.add("epoch", row)

    def add(self, prefix: str, row: Mapping[str, Any]) -> None:
        if row["step"] <= self.told[prefix]:
            return
        self.step_now = self.told[prefix] = row["step"]
        for name, value in scalars(row):
            self.writer.add_scalar(f"{prefix}/{name}", value, row["step"])

    def confusion(self, found: Mapping[str, Any]) -> None:
        tag = f"confusion/{found['part']}"
        self.writer.add_text(tag, table_of(found), self.step_now)
        if (image := picture_of(found)) is not None:
            import numpy

            self.writer.add_image(tag, numpy.asarray(image), self.step_now, dataformats="HWC")

    def saving(self) -> None:
        if self.writer is not None:
            self.writer.flush()

    def end(self, record: Mapping[str, Any]) -> None:
        if self.writer is None:
            return
        for name, value in finals(record):
            self.writer.add_scalar(name, value, self.step_now)
        self.writer.close()
