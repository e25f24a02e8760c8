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
from runner.errors import Interrupted
from runner.metrics import can_be_saved
from runner.processes import StopRequest
from runner.seeding import derive, isolated, seed_everything, set_rng_state
from runner.storage.checkpoint import Checkpoints
from runner.storage.rows import timeless
from runner.train import names
from runner.train.averaging import Averaging
from runner.train.events import EpochEnd, Listeners, Progress
from runner.train.freezing import Freezing
from runner.train.state import Schedule, TrainState
from runner.train.step_rows import StepRows
from runner.train.steps import MeanLoss, StepOptions, computed, evaluate, to_device, train_step
from runner.train.stopping import Stopping
from runner.train.weights import other_weights, saved_weights
from runner.values import Rule

log = logging.getLogger("runner")


class Trainer:
    """Trains a task, epoch by epoch, so that it can be stopped after any batch and goes on with the same bits.

    Args:
        task: what is done with a batch, as one module that owns the model and the loss: see runner.tasks.
        eval_loaders: the parts that are evaluated, by the name that their metrics begin with.
        metrics: two sets of the same metrics by name, for the training and for the evaluated parts.
        epochs: the run's whole length; `steps`, where it is given, is it instead.
        evaluate_every: steps between two evaluations; None: an epoch's.
        monitor: the metric of the rows that says which evaluation is best; mode: "min" or "max".
        log_every: batches between two rows of steps.jsonl, where the loss is also checked; 0: only at an evaluation.
        listeners: functions that are told; they cannot steer. stop: whether a signal wants the run to end.
        options: how a batch is computed. config: the resolved configuration as YAML text, for the checkpoints.
        freezing: what does not train. stopping: when it ends early. averaging: of the weights that are evaluated.

    Raises:
        InputError: monitor (or the scheduler's) is not a metric of the rows. ValueError: a value out of range.
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
        steps: int | None = None,
        evaluate_every: int | None = None,
    ) -> None:
        Rule(int, least=1).check("epochs", epochs)
        Rule(int, least=0).check("log_every", log_every)
        Rule(str, choices=("min", "max")).check("mode", mode)
        self.task, self.optimizer, self.schedule = task, optimizer, schedule
        self.train_loader, self.eval_loaders = train_loader, dict(eval_loaders)
        self.train_metrics, self.eval_metrics = metrics
        self.device, self.seed, self.epochs, self.freezing = device, seed, epochs, freezing or Freezing()
        self.monitor, self.mode, self.log_every = monitor, mode, log_every
        self.stopping, self.averaging = stopping or Stopping(), averaging or Averaging(task)
        self.stopped: str | None = None  # why it ended before its length
        self.options = options or StepOptions()
        self.checkpoints = checkpoints or Checkpoints(save="none")
        self.listeners, self.stop = listeners or Listeners(), stop or StopRequest()
        precision, batches = self.options.precision, len(train_loader)
        self.length = epochs * batches if steps is None else steps  # in steps
        self.every = evaluate_every or batches  # steps between two evaluations
        self.due = self.every  # the step of the next one
        self.state = TrainState(task, optimizer, schedule, precision, self.train_metrics, batches, device, config)
        self.state.stream = train_loader if hasattr(train_loader, "state_dict") else None
        self.state.averaging, self.state.span = self.averaging, self.every
        self.step_rows = StepRows(log_every, self.state, self.listeners)
        self.conditions = (device, self.options, seed, self.stop.check)  # of every evaluation
        self.examples, self.saves_on_the_way = 0, False  # trained on since the last evaluation, in this process
        self.seconds = 0.0  # of training and evaluating
        splits = [split for part in eval_loaders for split, _ in self.averaging.splits(part)]
        names.check_monitors(monitor, schedule.monitor, self.train_metrics, splits)
        names.check_saved(self.train_metrics, self.checkpoints.saves_inside_epochs)

    @property
    def model(self) -> nn.Module:
        return self.task.model  # type: ignore[return-value]

    @property
    def progress(self) -> Progress:
        return self.state.progress

    def fit(self) -> None:
        """Trains for `epochs` epochs, or `steps` steps, or until stopping has a reason to end before.

        Raises:
            Diverged: the loss or a parameter is not finite; nothing of that state is saved.
            Interrupted: a stop was requested; the state is saved as far as the checkpoint policy allows.
        """
        try:
            while self.progress.evaluated < self.length and self.goes_on():
                began = time.perf_counter()
                self.begin()
                while self.progress.step < self.due or self.progress.batch == self.state.num_batches:
                    self.train_epoch()  # the second: it was saved after its last batch, and not yet counted
                self.step_rows.tell()
                train = self.training_figures()
                trained = time.perf_counter()
                self.state.check_finite()
                metrics = {"lr": self.state.lr, **train, **self.evaluate()}
                self.step_scheduler("evaluation", metrics)
                is_best = self.advance(metrics)
                self.tell(metrics, is_best, began, trained)
                self.save_checkpoint(is_evaluated=True, is_best=is_best)
        except Interrupted:
            self.save_checkpoint(is_evaluated=False)
            raise

    def goes_on(self) -> bool:
        self.stopped = self.stopping.reason(self.state.rows, self.monitor, self.mode, self.seconds)
        return self.stopped is None

    def begin(self) -> None:
        """Clears the sums; of a state that was saved on the way to the next evaluation, goes on with them."""
        if self.state.rng is not None:
            set_rng_state(self.state.rng, self.device)
        self.state.rng = None
        progress, self.examples = self.progress, 0
        self.saves_on_the_way = self.checkpoints.saves_inside_epochs  # known once its folder is open
        self.state.watch_attributes()
        self.due = min(self.length, (progress.evaluated // self.every + 1) * self.every)
        if progress.step == progress.evaluated:
            self.state.loss = MeanLoss(self.due - progress.step, self.device)
            for metric in self.train_metrics.values():
                metric.reset()

    def train_epoch(self) -> None:
        """Trains on what is left of the epoch, up to the next evaluation."""
        self.begin_epoch()
        first = self.progress.batch
        for batch in self.train_loader.batches(self.progress.epoch, first):
            batch = to_device(batch, self.device, self.options.channels_last)
            self.state.lr = float(self.optimizer.param_groups[0]["lr"])
            loss, size, outputs, targets = train_step(self.task, self.optimizer, batch, self.options)
            self.state.loss.add(loss, size)
            for metric in self.train_metrics.values():
                metric.update(outputs, targets)
            self.after_batch()
            if self.state.progress.step == self.due and self.progress.batch < self.state.num_batches:
                break  # in the middle of the epoch; else the loader ends by itself
        self.leave_epoch(first)

    def begin_epoch(self) -> None:
        """Seeds from (seed, epoch), where it is not gone on with in its middle."""
        if self.progress.batch == 0:
            seed_everything(derive(self.seed, "epoch", self.progress.epoch))
        self.freezing.train(self.task, self.progress.epoch + 1)

    def after_batch(self) -> None:
        """Counts, steps a scheduler of batches, tells, saves on the way where asked for, stops where asked to."""
        now = self.state.progress
        kept = (now.best_epoch, now.best_value, now.best_step, now.evaluated)
        self.state.progress = progress = Progress(now.epoch, now.step + 1, now.batch + 1, *kept)  # replace() is slow
        if self.averaging.type != "none":  # asked here, as the two below: a call for each batch is saved
            self.averaging.update(progress.epoch + 1, progress.step, progress.batch == self.state.num_batches)
        if self.schedule.interval == "batch":
            self.step_scheduler("batch", {})
        for listener in self.listeners.batch:
            listener(progress, self.state.num_batches)
        if self.log_every and progress.step % self.log_every == 0:
            self.step_rows.add()
        if self.saves_on_the_way and progress.step < self.due and self.checkpoints.is_due(progress.batch):
            self.save_checkpoint(is_evaluated=False)
        if self.stop.signum is not None:
            self.stop.check()

    def leave_epoch(self, first: int) -> None:
        """Counts the examples of the batches from `first` on; and the epoch, where all of it is done."""
        batch, left = self.progress.batch, self.train_loader.num_examples
        is_done = batch == self.state.num_batches
        self.examples += left(first) - (0 if is_done else left(batch))
        if is_done:
            self.step_scheduler("epoch", {})
            self.state.progress = replace(self.progress, epoch=self.progress.epoch + 1, batch=0)

    def training_figures(self) -> dict[str, float]:
        """The mean loss and the metrics of the batches since the last evaluation."""
        return {"train/loss": self.state.finite_loss(), **names.prefixed("train", computed(self.train_metrics))}

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
                    figures = evaluate(self.task, loader, self.eval_metrics, *self.conditions)
                found |= names.prefixed(split, figures)
        return found

    def count_statistics(self) -> None:
        """Lets the norms of the average count over the epoch's batches once more."""
        epoch = self.progress.epoch_now - 1
        counting = self.averaging.counting(lambda: self.freezing.train(self.task, epoch + 1))
        with isolated(derive(self.seed, "statistics", epoch), self.device), counting:
            for batch in self.train_loader.batches(epoch):
                with self.options.precision.autocast:
                    self.task(to_device(batch, self.device, self.options.channels_last))
                self.stop.check()

    def evaluate_on(self, loader: Loader) -> dict[str, float]:
        """The loss and metrics of one part."""
        return evaluate(self.task, loader, self.eval_metrics, *self.conditions)

    def step_scheduler(self, moment: str, metrics: Mapping[str, float]) -> None:
        if moment == self.schedule.moment:
            monitor, step = self.schedule.monitor, self.schedule.scheduler.step
            step() if monitor is None else step(metrics[monitor])  # type: ignore[arg-type]

    def advance(self, metrics: dict[str, float]) -> bool:
        """Counts the evaluation as done; returns whether it is the best so far. A NaN never is."""
        progress, value, best = self.progress, metrics[self.monitor], self.progress.best_value
        is_best = not math.isnan(value) and (best is None or (value > best if self.mode == "max" else value < best))
        self.state.progress = progress = replace(progress, evaluated=progress.step)
        if is_best:
            where = {"best_epoch": progress.epoch_now, "best_step": progress.step}
            self.state.progress = replace(progress, best_value=value, **where)
            self.state.best_weights = None if self.checkpoints.saves_best else self.averaging.chosen_weights()
        self.state.last_row = metrics
        return is_best

    def tell(self, metrics: dict[str, float], is_best: bool, began: float, trained: float) -> None:
        seconds = time.perf_counter() - began
        self.seconds += seconds
        rate = self.examples / (trained - began)
        end = EpochEnd(self.progress, metrics, seconds, rate, is_best)
        self.state.rows.append(timeless(end.row))
        for listener in self.listeners.epoch:
            listener(end)

    def test(self, loader: Loader) -> dict[str, dict[str, float]]:
        """The loss and metrics of the test part on the last and on the best weights; the last are put back."""
        results = {}
        for which, is_average in self.averaging.tested:
            with self.averaging.weights(is_average):
                results[which] = self.evaluate_on(loader)
        if self.progress.best_step == self.progress.step:
            return {"best": results["last"], **results}
        if self.progress.best_step is None:  # the monitored metric was NaN in every epoch
            return results
        with other_weights(self.task, self.load_best_weights()):
            return {"best": self.evaluate_on(loader), **results}

    def load_best_weights(self) -> dict[str, Any]:
        """The task's weights() of the best epoch."""
        if self.state.best_weights is not None:
            return self.state.best_weights
        return saved_weights(self.task, self.checkpoints.path("best"), self.progress.best_step)

    def save_checkpoint(self, is_evaluated: bool, is_best: bool = False) -> None:
        """Saves under the names that are due, if all is finite: after an evaluation, or on the way to the next."""
        if not is_evaluated:
            if not self.checkpoints.saves_last or self.progress.step == self.progress.evaluated:
                return  # what was saved after the last evaluation is as good
            if unsaved := [n for n, m in self.train_metrics.items() if not can_be_saved(m)]:
                log.warning("not saved inside the epoch: metrics.%s has no state_dict", unsaved[0])
                return
            self.step_rows.tell()
            self.state.finite_loss()
            self.state.check_finite()
        if self.checkpoints.saves_last or self.checkpoints.saves_best:
            self.state.say_unsaved()
        for listener in self.listeners.saving:
            listener()
        self.checkpoints.write(self.state.state_dict(), is_evaluated, is_best)
