"""What a training carries from batch to batch: what a checkpoint holds, and what of it must be finite."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from runner.errors import Diverged
from runner.metrics import load_metric
from runner.seeding import rng_state
from runner.storage.checkpoint import FORMAT_VERSION
from runner.torch_adapter import mark_as_stepped
from runner.train import hidden
from runner.train.averaging import Averaging
from runner.train.events import Progress
from runner.train.steps import MeanLoss, StepOptions
from runner.train.stopping import Stopping
from runner.train.weights import as_written, load_weights, weights_of
from runner.values import Rule

log = logging.getLogger("runner")

BEST = "best_"  # before the keys of the best weights, in a checkpoint that holds them beside the last


@dataclass(frozen=True)
class Schedule:
    """A scheduler, when it steps, and the metric that its step takes, where it takes one.

    Args:
        rates: of a new run: the learning rate of each param group, by interval from the first; the first one alone
            where a metric decides.
    """

    scheduler: LRScheduler
    interval: str = "epoch"  # epoch | batch
    monitor: str | None = None
    rates: Sequence[tuple[float, ...]] = ()

    def rates_of_run(self, epochs: int, steps: int) -> tuple[list[tuple[float, ...]], int]:
        """The rates that a run's intervals are trained with, as far as they were walked, and how many intervals it
        has. (What its last step sets after them, no batch is trained with.)
        """
        intervals = steps if self.interval == "batch" else epochs
        return list(self.rates[:intervals]), intervals

    @property
    def moment(self) -> str:
        """After what it steps: a batch, an epoch, or, where it takes a metric, an evaluation."""
        return self.interval if self.monitor is None else "evaluation"


@dataclass(frozen=True)
class TrainingConfig:
    """How a run is trained, apart from its objects.

    Args:
        epochs: the run's whole length; `steps`, where it is given, is it instead.
        monitor: the metric of the rows that says which evaluation is best; mode: "min" or "max".
        eval_every: steps between two evaluations; None: an epoch's.
        log_every: batches between two rows of steps.jsonl, where the loss is also checked; 0: only at an evaluation.
        step: how a batch is computed. stopping: when the run ends early.
        text: the resolved config as YAML, for the checkpoints.

    Raises:
        ValueError: a value out of range.
    """

    device: torch.device
    seed: int
    epochs: int
    monitor: str
    mode: str
    steps: int | None = None
    eval_every: int | None = None
    log_every: int = 10
    step: StepOptions = field(default_factory=StepOptions)
    stopping: Stopping = field(default_factory=Stopping)
    text: str = ""

    def __post_init__(self) -> None:
        Rule(int, least=1).check("epochs", self.epochs)
        Rule(int, least=0).check("log_every", self.log_every)
        Rule(str, choices=("min", "max")).check("mode", self.mode)


class TrainState:
    """All that the rest of a run depends on: it is saved as a whole, and put back as a whole.

    Args:
        metrics: those of the training part, by name.
        stream: the loader of the training part, where it keeps a state.
        num_batches: in an epoch. span: steps between two evaluations.
    """

    def __init__(
        self,
        task: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        metrics: Mapping[str, Any],
        averaging: Averaging,
        stream: Any,
        config: TrainingConfig,
        num_batches: int,
        span: int,
    ) -> None:
        self.task, self.optimizer, self.schedule, self.metrics = task, optimizer, schedule, metrics
        self.averaging, self.stream, self.config = averaging, stream, config
        self.num_batches, self.span, self.device = num_batches, span, config.device
        self.precision = config.step.precision
        self.progress = Progress()
        self.loss = MeanLoss(span, self.device)  # of the interval so far
        self.seconds = 0.0  # of the interval that is not evaluated yet, in processes before this one
        self.eval_seconds = 0.0  # ... and of these, those of an evaluation that was interrupted
        self.lr = self.current_lr()
        self.last_row: dict[str, Any] = {}  # the metrics of the last completed epoch
        self.rows: list[dict[str, Any]] = []  # metrics.jsonl so far, less times: a lost file is made again
        self.best_weights: dict[str, Any] | None = None  # the task's; in memory only where best.pt is not written
        self.rng: dict[str, Any] | None = None  # the generators' state of a loaded checkpoint, until they take it
        self._attributes: dict[tuple[str, str], Any] | None = None  # the task's plain ones before training
        self._is_said = False
        buffers = task.named_buffers()
        self._finite_buffers = {name for name, buffer in buffers if bool(buffer.isfinite().all())}

    def watch_attributes(self) -> None:
        """Notes what the task holds in plain attributes, before the first batch that this process trains on."""
        if self._attributes is None:
            self._attributes = hidden.attributes(self.task)

    def say_unsaved(self) -> None:
        """One line, once: an attribute that training changes is in no checkpoint, so a resumed run may differ."""
        if self._is_said or self._attributes is None:
            return
        if names := hidden.changed(self._attributes, self.task):
            name = names[0].replace("criterion.", "loss.", 1)
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            log.warning(
                "%s%s changes in training and is in no checkpoint: if later batches read it, a resumed run is not"
                " exact; what is to be kept is a buffer: self.register_buffer(%r, torch.tensor(...))",
                *(name, more, name.rpartition(".")[2]),
            )
            self._is_said = True

    @property
    def shift(self) -> int:
        """Steps beyond those of the epochs as they are now: not 0 once the data, and so their length, has changed."""
        return self.progress.step - self.progress.batch - self.progress.epoch * self.num_batches

    def current_lr(self) -> float:
        """The learning rate of the first param group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        """A checkpoint: tensors and plain values only."""
        state: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "loss": self.last_row.get("train/loss"),
            "metrics": dict(self.last_row),
            **{key: value for key, value in weights_of(self.task).items() if value or key != "unsaved_buffers"},
            "optimizer_state_dict": self.optimizer.state_dict(),
            "scheduler_state_dict": self.schedule.scheduler.state_dict(),
            "progress": asdict(self.progress),
            "precision_state_dict": self.precision.state_dict(),
            "lr": self.lr,
            "rng": rng_state(self.device),
            "config": self.config.text,
            "rows": list(self.rows),
        }
        if self.averaging.type != "none":
            state["averaging_state_dict"] = self.averaging.state_dict()
        if self.stream is not None:
            state["stream_state_dict"] = self.stream.state_dict()
        if self.progress.step != self.progress.evaluated:
            metrics = {name: metric.state_dict() for name, metric in self.metrics.items()}
            times = {"seconds": self.seconds, "eval_seconds": self.eval_seconds}
            state["running"] = {"loss": self.loss.state_dict(), "metrics": metrics, **times}
        if self.best_weights is not None:
            state |= {f"{BEST}{key}": value for key, value in self.best_weights.items() if value}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts a saved state back. Everything is constructed by now: a scheduler's constructor rewrites the rates."""
        load_weights(self.task, state)
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        self.schedule.scheduler.load_state_dict(state["scheduler_state_dict"])
        self.precision.load_state_dict(state.get("precision_state_dict", {}))
        self.progress = Progress(**state["progress"])
        if self.progress.step:
            mark_as_stepped(self.optimizer)
        if self.averaging.type != "none":
            self.averaging.load_state_dict(state["averaging_state_dict"])
        if self.stream is not None:
            self.stream.load_state_dict(state["stream_state_dict"])
        self.lr = state["lr"]
        self.last_row = dict(state["metrics"])
        self.rows = list(state["rows"])
        best = {key.removeprefix(BEST): value for key, value in state.items() if key.startswith(f"{BEST}")}
        self.best_weights = best or None
        if self.progress.batch or self.progress.step != self.progress.evaluated:
            self.rng = state["rng"]
        if self.progress.step != self.progress.evaluated:
            self.loss = MeanLoss(self.span, self.device)
            running = state["running"]
            self.loss.load_state_dict(running["loss"])
            self.seconds, self.eval_seconds = running["seconds"], running["eval_seconds"]
            for name, metric in self.metrics.items():
                load_metric(metric, running["metrics"][name], self.device)

    def check_finite(self) -> None:
        """A finite loss can come before a step to infinity, in the parameters or in what the optimizer keeps.

        Raises:
            Diverged: names the first tensor that is not finite. A buffer that never was is left out.
        """
        tensors = {name: tensor for name, tensor in self._tensors().items() if tensor.is_floating_point()}
        is_finite = [tensor.isfinite().all().to(self.device) for tensor in tensors.values()]
        if not is_finite or bool(torch.stack(is_finite).all()):  # waits for the device once
            return
        for name, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise Diverged(
                    f"{name} is not finite in epoch {max(1, self.progress.epoch_now)}, after batch"
                    f" {self.progress.batch or self.num_batches * (self.progress.step > 0)} of {self.num_batches}"
                )

    def _tensors(self) -> dict[str, Tensor]:
        own: dict[str, Tensor] = dict(self.task.named_parameters())
        own |= {name: buffer for name, buffer in self.task.named_buffers() if name in self._finite_buffers}
        tensors = {as_written(name): tensor for name, tensor in own.items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            kept = {f"the optimizer's {key} of parameter {index}": value for key, value in state.items()}
            tensors |= {key: value for key, value in kept.items() if isinstance(value, Tensor)}
        return tensors

    def finite_loss(self, start: int = 0, stop: int | None = None) -> float:
        """The mean loss of the epoch so far, or of its batches start to stop. Waits for the device.

        Raises:
            Diverged: a loss among them is not finite.
        """
        loss, first_bad = self.loss.compute(start, stop)
        if first_bad is not None:
            bad = float(self.loss.values(first_bad, first_bad + 1)[0])
            epoch, batch = divmod(self.progress.evaluated + first_bad, self.num_batches)
            raise Diverged(
                f"the loss is not finite ({bad}) in epoch {epoch + 1}, batch {batch + 1} of {self.num_batches} (counted"
                " from 1)"
            )
        return loss
