"""The Trainer: one explicit loop over epochs."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from runner.batches.loaders import Loader
from runner.errors import InputError, Interrupted
from runner.metrics import can_be_saved
from runner.processes import StopRequest
from runner.seeding import derive, isolated, seed_everything, set_rng_state
from runner.storage import checkpoint
from runner.storage.checkpoint import Checkpoints
from runner.storage.rows import timeless
from runner.storage.weights import evaluated
from runner.train import names
from runner.train.averaging import Averaging
from runner.train.events import EpochEnd, Listeners, Progress
from runner.train.freezing import Freezing
from runner.train.state import Schedule, TrainState
from runner.train.steps import MeanLoss, StepOptions, computed, evaluate, to_device, train_step
from runner.train.stopping import Stopping
from runner.train.weights import other_weights, weights_of
from runner.values import Rule

log = logging.getLogger("runner")

SECONDS_BETWEEN_WAITS = 1.0  # a device that computes on its own is asked for its losses no more often inside an epoch


class Trainer:
    """Trains a task, epoch by epoch, so that it can be stopped after any batch and goes on with the same bits.

    Args:
        task: what is done with a batch, as one module that owns the model and the loss: see runner.tasks.
        metrics: two sets of the same metrics by name, for the training and for the evaluated part.
        eval_loaders: the parts that are evaluated each epoch, by the name that their metrics begin with.
        epochs: the run's whole length.
        monitor: the metric of the rows that says which epoch is best; mode: "min" or "max".
        log_every: batches between two rows of steps.jsonl, where the loss is also checked; 0: only at an epoch's end.
        options: how a batch is computed. config: the resolved configuration as YAML text, kept in every checkpoint.
        freezing: what does not train. stopping: when it ends early. averaging: of the weights that are evaluated.

    Raises:
        InputError: monitor (or the scheduler's) is not a metric of the rows.
        ValueError: a number or choice out of range.
    """

    def __init__(
        self,
        task: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        train_loader: Loader,
        eval_loaders: Mapping[str, Loader],
        metrics: tuple[Mapping[str, Any], Mapping[str, Any]],
        device: torch.device,
        seed: int,
        epochs: int,
        monitor: str,
        mode: str,
        options: StepOptions | None = None,
        log_every: int = 10,
        checkpoints: Checkpoints | None = None,
        listeners: Listeners | None = None,
        stop: StopRequest | None = None,
        config: str = "",
        freezing: Freezing | None = None,
        stopping: Stopping | None = None,
        averaging: Averaging | None = None,
    ) -> None:
        Rule(int, least=1).check("epochs", epochs)
        Rule(int, least=0).check("log_every", log_every)
        Rule(str, choices=("min", "max")).check("mode", mode)
        self.task, self.optimizer, self.schedule = task, optimizer, schedule
        self.train_loader, self.eval_loaders = train_loader, dict(eval_loaders)
        self.train_metrics, self.eval_metrics = metrics
        self.device, self.seed, self.epochs, self.freezing = device, seed, epochs, freezing or Freezing()
        self.monitor, self.mode, self.log_every = monitor, mode, log_every
        self.stopping, self.seconds = stopping or Stopping(), 0.0  # of all epochs
        self.stopped: str | None = None  # why
        self.options = options or StepOptions()
        self.checkpoints = checkpoints or Checkpoints(save="none")
        self.listeners, self.stop = listeners or Listeners(), stop or StopRequest()
        precision, batches = self.options.precision, len(train_loader)
        self.state = TrainState(task, optimizer, schedule, precision, self.train_metrics, batches, device, config)
        self.state.stream = train_loader if hasattr(train_loader, "state_dict") else None
        self.last_wait = time.monotonic()
        self.state.averaging = self.averaging = averaging or Averaging(task)
        self.pending: list[tuple[int, int, dict[str, Any]]] = []  # steps.jsonl rows, still without a loss
        self.first_batch, self.saves_inside_epochs = 0, False  # of this epoch, in this process
        splits = [split for part in eval_loaders for split, _ in self.averaging.splits(part)]
        names.check(monitor, schedule.monitor, self.train_metrics, splits)
        names.check_saved(self.train_metrics, self.checkpoints.saves_inside_epochs)

    @property
    def model(self) -> nn.Module:
        return self.task.model  # type: ignore[return-value]

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def fit(self) -> None:
        """Trains until `epochs` epochs are completed, or stopping has a reason to end before.

        Raises:
            Diverged: the loss or a parameter is not finite; nothing of that state is saved.
            Interrupted: a stop was requested; the state is saved as far as the checkpoint policy allows.
        """
        try:
            while self.progress.epoch < self.epochs and self.goes_on():
                began = time.perf_counter()
                train = self.train_epoch()
                trained = time.perf_counter()
                self.state.check_finite()
                metrics = {"lr": self.state.lr, **train, **self.evaluate()}
                self.step_scheduler("epoch", metrics)
                is_best = self.advance(metrics)
                self.tell(metrics, is_best, began, trained)
                self.save_checkpoint(is_epoch_end=True, is_best=is_best)
        except Interrupted:
            self.save_checkpoint(is_epoch_end=False)
            raise

    def goes_on(self) -> bool:
        self.stopped = self.stopping.reason(self.state.rows, self.monitor, self.mode, self.seconds)
        return self.stopped is None

    def train_epoch(self) -> dict[str, float]:
        """Trains on what is left of the epoch; returns the means over all of it."""
        self.begin_epoch()
        self.train_mode()
        for batch in self.train_loader.batches(self.progress.epoch, self.progress.batch):
            batch = to_device(batch, self.device, self.options.channels_last)
            self.state.lr = float(self.optimizer.param_groups[0]["lr"])
            loss, size, outputs, targets = train_step(self.task, self.optimizer, batch, self.options)
            self.state.loss.add(loss, size)
            for metric in self.train_metrics.values():
                metric.update(outputs, targets)
            self.after_batch()
        self.tell_steps()
        loss_mean = self.state.finite_loss()
        return {"train/loss": loss_mean, **names.prefixed("train", computed(self.train_metrics))}

    def train_mode(self) -> None:
        self.task.train()
        self.freezing.apply(self.progress.epoch + 1)

    def begin_epoch(self) -> None:
        """Seeds from (seed, epoch) and clears the sums; in the middle of an epoch, puts back what was saved."""
        self.first_batch = self.progress.batch
        self.saves_inside_epochs = self.checkpoints.saves_inside_epochs
        self.state.watch_attributes()
        if self.progress.batch == 0:
            seed_everything(derive(self.seed, "epoch", self.progress.epoch))
            self.state.loss = MeanLoss(self.state.num_batches, self.device)
            for metric in self.train_metrics.values():
                metric.reset()
        elif self.state.rng is not None:
            set_rng_state(self.state.rng, self.device)
        self.state.rng = None

    def after_batch(self) -> None:
        """Counts, steps a scheduler of batches, tells, saves inside the epoch where asked for, stops where asked to."""
        now = self.state.progress
        progress = Progress(now.epoch, now.step + 1, now.batch + 1, now.best_epoch, now.best_value)
        self.state.progress = progress
        is_last = progress.batch == self.state.num_batches
        self.averaging.update(progress.epoch + 1, progress.step, is_last)
        if self.schedule.interval == "batch":
            self.step_scheduler("batch", {})
        for listener in self.listeners.batch:
            listener(progress, self.state.num_batches)
        if self.log_every and progress.step % self.log_every == 0:
            row = {"step": progress.step, "epoch": progress.epoch + 1, "lr": self.state.lr}
            count = self.state.loss.count
            self.pending.append((max(0, count - self.log_every), count, row))
            if self.device.type == "cpu" or time.monotonic() - self.last_wait >= SECONDS_BETWEEN_WAITS:
                self.tell_steps()
        if self.saves_inside_epochs and not is_last and self.checkpoints.is_due(progress.batch):
            self.save_checkpoint(is_epoch_end=False)
        if self.stop.signum is not None:
            self.stop.check()

    def tell_steps(self) -> None:
        """Tells the rows of steps.jsonl that are due, each with the mean loss since the one before."""
        for start, stop, row in self.pending:
            row["train/loss"] = self.state.finite_loss(start, stop)
            for tell in self.listeners.steps:
                tell(row)
        self.pending.clear()
        self.last_wait = time.monotonic()

    def evaluate(self) -> dict[str, float]:
        """The loss and metrics of the evaluated parts, as val/*, ...: of the weights, or of their average."""
        if not self.eval_loaders:
            return {}
        if self.averaging.needs_statistics:
            self.count_statistics()
        found: dict[str, float] = {}
        for part, loader in self.eval_loaders.items():
            for split, is_average in self.averaging.splits(part):
                with self.averaging.weights(is_average):
                    found |= names.prefixed(split, self.evaluate_on(loader))
        return found

    def count_statistics(self) -> None:
        """Lets the norms of the average count over the epoch's batches once more."""
        epoch = self.progress.epoch
        with isolated(derive(self.seed, "statistics", epoch), self.device), self.averaging.counting(self.train_mode):
            for batch in self.train_loader.batches(epoch):
                with self.options.precision.autocast:
                    self.task(to_device(batch, self.device, self.options.channels_last))
                self.stop.check()

    def evaluate_on(self, loader: Loader) -> dict[str, float]:
        """The loss and metrics of one part. What a model draws while evaluating follows from the seed alone."""
        with isolated(derive(self.seed, "evaluate"), self.device):
            return evaluate(
                self.task, loader.batches(), len(loader), self.eval_metrics, self.device, self.options, self.stop.check
            )

    def step_scheduler(self, interval: str, metrics: Mapping[str, float]) -> None:
        if interval == self.schedule.interval:
            monitor, step = self.schedule.monitor, self.schedule.scheduler.step
            step() if monitor is None else step(metrics[monitor])  # type: ignore[arg-type]

    def advance(self, metrics: dict[str, float]) -> bool:
        """Counts the epoch as completed; returns whether it is the best so far. A NaN never is."""
        epoch, value, best = self.progress.epoch + 1, metrics[self.monitor], self.progress.best_value
        is_best = not math.isnan(value) and (best is None or (value > best if self.mode == "max" else value < best))
        self.state.progress = replace(self.progress, epoch=epoch, batch=0)
        if is_best:
            self.state.progress = replace(self.progress, best_epoch=epoch, best_value=value)
            self.state.best_weights = None if self.checkpoints.saves_best else self.averaging.chosen_weights()
        self.state.last_row = metrics
        return is_best

    def tell(self, metrics: dict[str, float], is_best: bool, began: float, trained: float) -> None:
        seconds = time.perf_counter() - began
        self.seconds += seconds
        rate = self.train_loader.num_examples(self.first_batch) / (trained - began)
        times = {"seconds": round(seconds, 3), "examples_per_second": round(rate, 1)}
        row: dict[str, Any] = {"epoch": self.progress.epoch, "step": self.progress.step, **metrics, **times}
        end = EpochEnd(self.progress, metrics, seconds, rate, is_best, row)
        self.state.rows.append(timeless(row))
        for listener in self.listeners.epoch:
            listener(end)

    def test(self, loader: Loader) -> dict[str, dict[str, float]]:
        """The loss and metrics of the test part on the last and on the best weights; the last are put back."""
        results = {}
        for which, is_average in self.averaging.tested:
            with self.averaging.weights(is_average):
                results[which] = self.evaluate_on(loader)
        if self.progress.best_epoch == self.progress.epoch:
            return {"best": results["last"], **results}
        if self.progress.best_epoch is None:  # the monitored metric was NaN in every epoch
            return results
        with other_weights(self.task, self.load_best_weights()):
            return {"best": self.evaluate_on(loader), **results}

    def load_best_weights(self) -> dict[str, Any]:
        """The task's weights() of the best epoch."""
        if self.state.best_weights is not None:
            return self.state.best_weights
        path = self.checkpoints.path("best")
        state = evaluated(checkpoint.load(path))
        if state["epoch"] != self.progress.best_epoch:
            raise InputError(f"{path}: holds epoch {state['epoch']}, but the best is {self.progress.best_epoch}")
        return {key: state[key] for key in weights_of(self.task) if key in state}

    def save_checkpoint(self, is_epoch_end: bool, is_best: bool = False) -> None:
        """Saves under the names that are due.

        Raises:
            Diverged: the loss of the epoch so far or a parameter is not finite.
        """
        if not is_epoch_end:
            if not (self.checkpoints.saves_last and self.progress.batch):
                return  # what was saved at the end of the last epoch is as good
            if unsaved := [n for n, m in self.train_metrics.items() if not can_be_saved(m)]:
                log.warning("not saved inside the epoch: metrics.%s has no state_dict", unsaved[0])
                return
            self.tell_steps()
            self.state.finite_loss()
            self.state.check_finite()
        if self.checkpoints.saves_last or self.checkpoints.saves_best:
            self.state.say_unsaved()
        for listener in self.listeners.saving:
            listener()
        self.checkpoints.write(self.state.state_dict(), is_epoch_end, is_best)
