"""The Trainer: one explicit loop over epochs."""

import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

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
from runner.train.state import Schedule, TrainingConfig, TrainState
from runner.train.step_rows import StepRows
from runner.train.steps import MeanLoss, computed, evaluate, to_device, train_step
from runner.train.weights import other_weights, saved_weights

log = logging.getLogger("runner")


class Trainer:
    """Trains a task, epoch by epoch, so that it can be stopped after any batch and goes on with the same bits.

    Args:
        task: what is done with a batch, as one module that owns the model and the loss: see runner.tasks.
        eval_loaders: the parts that are evaluated, by the name that their metrics begin with.
        metrics: two sets of the same metrics by name, for the training and for the evaluated parts.
        listeners: functions that are told; they cannot steer. stop: whether a signal wants the run to end.
        freezing: what does not train. averaging: of the weights that are evaluated.

    Raises:
        InputError: monitor (or the scheduler's) is not a metric of the rows.
    """

    def __init__(
        self,
        task: nn.Module,
        optimizer: Optimizer,
        schedule: Schedule,
        train_loader: Loader,
        eval_loaders: Mapping[str, Loader],
        metrics: tuple[Mapping[str, Any], Mapping[str, Any]],
        config: TrainingConfig,
        checkpoints: Checkpoints | None = None,
        listeners: Listeners | None = None,
        stop: StopRequest | None = None,
        freezing: Freezing | None = None,
        averaging: Averaging | None = None,
    ) -> None:
        self.task, self.optimizer, self.schedule, self.config = task, optimizer, schedule, config
        self.train_loader, self.eval_loaders = train_loader, dict(eval_loaders)
        self.train_metrics, self.eval_metrics = metrics
        self.checkpoints = checkpoints or Checkpoints(save="none")
        self.listeners, self.stop = listeners or Listeners(), stop or StopRequest()
        self.freezing, self.averaging = freezing or Freezing(), averaging or Averaging(task)
        batches = len(train_loader)
        self.max_steps = config.epochs * batches if config.steps is None else config.steps
        self.eval_every = config.eval_every or batches
        self.next_eval = self.eval_every  # the step of the next evaluation
        self.stop_reason: str | None = None  # why it ended before its length
        stream = train_loader if hasattr(train_loader, "state_dict") else None
        parts = (task, optimizer, schedule, self.train_metrics, self.averaging, stream)
        self.state = TrainState(*parts, config, batches, self.eval_every)
        self.step_rows = StepRows(config.log_every, self.state, self.listeners)
        self.eval_args = (config.device, config.step, config.seed, self.stop.check)  # of every evaluation
        self.saves_inside = self.checkpoints.saves_between(self.eval_every, batches)
        self.seconds = 0.0  # of training and evaluating, up to the last evaluation
        self.began: float | None = None  # when the interval since then began; of one that was interrupted, so long ago
        self.trained: float | None = None  # when its training was done
        splits = [split for part in eval_loaders for split, _ in self.averaging.splits(part)]
        names.check_monitors(config.monitor, schedule.monitor, self.train_metrics, splits)
        names.check_saved(self.train_metrics, self.saves_inside)

    @property
    def model(self) -> nn.Module:
        return self.task.model  # type: ignore[return-value]

    @property
    def progress(self) -> Progress:
        return self.state.progress

    @property
    def seconds_used(self) -> float:
        """Of training and evaluating, up to now."""
        return self.seconds + (0.0 if self.began is None else time.perf_counter() - self.began)

    def fit(self) -> None:
        """Trains for `epochs` epochs, or `steps` steps, or until stopping has a reason to end before.

        Raises:
            Diverged: the loss or a parameter is not finite; nothing of that state is saved.
            Interrupted: a stop was requested; the state is saved as far as the checkpoint policy allows.
        """
        batches = itertools.chain.from_iterable(self.epochs_left())
        try:
            while self.progress.evaluated < self.max_steps and not self.should_stop():
                self.start_interval()
                train = self.train_interval(batches)
                self.finish_interval({**train, **self.evaluate()})
        except Interrupted:
            self.save_checkpoint(is_evaluated=False)
            raise

    def should_stop(self) -> bool:
        config = self.config
        self.stop_reason = config.stopping.reason(self.state.rows, config.monitor, config.mode, self.seconds)
        return self.stop_reason is not None

    def epochs_left(self) -> Iterator[Iterator[Any]]:
        """The batches of each epoch, from where the run stands. They outlive an evaluation, and with them the loader's
        workers. An epoch begins with the generators seeded from (seed, epoch).
        """
        while True:
            epoch, batch = self.progress.epoch, self.progress.batch
            if batch == 0:
                seed_everything(derive(self.config.seed, "epoch", epoch))
            self.freezing.train(self.task, epoch + 1)
            yield self.train_loader.batches(epoch, batch)

    def start_interval(self) -> None:
        """Clears the sums; of a state that was saved inside an interval, goes on with them."""
        state, progress = self.state, self.progress
        if state.rng is not None:
            set_rng_state(state.rng, self.config.device)
        state.rng = None
        state.watch_attributes()
        shift = 0 if self.eval_every % state.num_batches else state.shift
        evaluations = (progress.evaluated - shift) // self.eval_every + 1
        self.next_eval = min(self.max_steps, shift + evaluations * self.eval_every)
        self.began, self.trained = time.perf_counter() - state.seconds, None
        self.freezing.train(self.task, progress.epoch + 1)
        if progress.step == progress.evaluated:
            state.loss = MeanLoss(self.next_eval - progress.step, self.config.device)
            for metric in self.train_metrics.values():
                metric.reset()

    def train_interval(self, batches: Iterator[Any]) -> dict[str, float]:
        """Trains up to the next evaluation; returns the last batch's rate, and the mean loss and metrics of all."""
        device, options = self.config.device, self.config.step
        while self.state.progress.step < self.next_eval:
            batch = to_device(next(batches), device, options.channels_last)
            self.state.lr = float(self.optimizer.param_groups[0]["lr"])
            loss, size, outputs, targets = train_step(self.task, self.optimizer, batch, options)
            self.state.loss.add(loss, size)
            for metric in self.train_metrics.values():
                metric.update(outputs, targets)
            self.after_batch()
        self.step_rows.tell()
        train = {"lr": self.state.lr, "train/loss": self.state.finite_loss()}
        train |= names.prefixed("train", computed(self.train_metrics))
        self.trained = time.perf_counter() - self.state.eval_seconds
        self.state.check_finite()
        return train

    def after_batch(self) -> None:
        """Counts, steps the schedule, ends an epoch, tells, saves where that is due, stops where asked to."""
        now = self.state.progress
        kept = (now.best_epoch, now.best_value, now.best_step, now.evaluated)
        self.state.progress = progress = Progress(now.epoch, now.step + 1, now.batch + 1, *kept)  # replace() is slow
        is_last = progress.batch == self.state.num_batches
        if self.averaging.type != "none":  # asked here, as the two below: a call for each batch is saved
            self.averaging.update(progress.epoch + 1, progress.step, is_last)
        if self.schedule.interval == "batch":
            self.step_scheduler("batch", {})
        if is_last:
            self.step_scheduler("epoch", {})
            self.state.progress = replace(progress, epoch=progress.epoch + 1, batch=0)
        for listener in self.listeners.batch:
            listener(progress, self.state.num_batches)
        if self.step_rows.every and progress.step % self.step_rows.every == 0:
            self.step_rows.add(progress)
        if self.saves_inside and progress.step < self.next_eval:
            completed = progress.epoch + 1 if is_last else None
            if self.checkpoints.is_due(progress.batch, completed):
                self.save_checkpoint(is_evaluated=False)
        if self.stop.signum is not None:
            self.stop.check()

    def finish_interval(self, metrics: dict[str, float]) -> None:
        """Steps a scheduler of metrics, updates the best, notifies, saves: a crash costs nothing in this order."""
        self.step_scheduler("evaluation", metrics)
        examples = self.examples_until(self.progress.step) - self.examples_until(self.progress.evaluated)
        is_best = self.update_best(metrics)
        self.notify(metrics, is_best, examples)
        self.save_checkpoint(is_evaluated=True, is_best=is_best)

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
                    figures = evaluate(self.task, loader, self.eval_metrics, *self.eval_args)
                found |= names.prefixed(split, figures)
        return found

    def count_statistics(self) -> None:
        """Lets the norms of the average count over the epoch's batches once more."""
        epoch, device, options = self.progress.epoch_now - 1, self.config.device, self.config.step
        counting = self.averaging.counting(lambda: self.freezing.train(self.task, epoch + 1))
        with isolated(derive(self.config.seed, "statistics", epoch), device), counting:
            for batch in self.train_loader.batches(epoch):
                with options.precision.autocast:
                    self.task(to_device(batch, device, options.channels_last))
                self.stop.check()

    def evaluate_on(self, loader: Loader) -> dict[str, float]:
        """The loss and metrics of one part."""
        return evaluate(self.task, loader, self.eval_metrics, *self.eval_args)

    def step_scheduler(self, moment: str, metrics: Mapping[str, float]) -> None:
        if moment == self.schedule.moment:
            monitor, step = self.schedule.monitor, self.schedule.scheduler.step
            step() if monitor is None else step(metrics[monitor])  # type: ignore[arg-type]

    def update_best(self, metrics: dict[str, float]) -> bool:
        """Counts the evaluation as done; returns whether it is the best so far. A NaN never is."""
        progress, value, best = self.progress, metrics[self.config.monitor], self.progress.best_value
        is_better = best is None or (value > best if self.config.mode == "max" else value < best)
        is_best = is_better and not math.isnan(value)
        self.state.progress = progress = replace(progress, evaluated=progress.step)
        if is_best:
            where = {"best_epoch": progress.epoch_now, "best_step": progress.step}
            self.state.progress = replace(progress, best_value=value, **where)
            self.state.best_weights = None if self.checkpoints.saves_best else self.averaging.chosen_weights()
        self.state.last_row = metrics
        return is_best

    def notify(self, metrics: dict[str, float], is_best: bool, examples: int) -> None:
        """Adds the interval's row, and tells it."""
        began, trained = self.began, self.trained
        assert began is not None and trained is not None
        seconds = time.perf_counter() - began
        self.seconds, self.began = self.seconds + seconds, None
        self.state.seconds = self.state.eval_seconds = 0.0
        end = EpochEnd(self.progress, metrics, seconds, examples / (trained - began), is_best)
        self.state.rows.append(timeless(end.row))
        for listener in self.listeners.epoch:
            listener(end)

    def examples_until(self, step: int) -> int:
        """Examples of the run's first `step` batches."""
        epochs, batch = divmod(step - self.state.shift, self.state.num_batches)
        count = self.train_loader.num_examples
        return (epochs + 1) * count() - count(batch)

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
        """Saves under the names that are due, if all is finite: after an evaluation, or inside an interval."""
        if not is_evaluated:
            if self.progress.step == self.progress.evaluated:  # what was saved then is as good
                return
            if not self.checkpoints.names(self.progress.epoch, self.progress.batch, is_evaluated, is_best):
                return
            if unsaved := [n for n, m in self.train_metrics.items() if not can_be_saved(m)]:
                log.warning("not saved inside the epoch: metrics.%s has no state_dict", unsaved[0])
                return
            self.step_rows.tell()
            self.state.finite_loss()
            self.state.check_finite()
            if self.began is not None:
                now = time.perf_counter()
                self.state.seconds = now - self.began
                self.state.eval_seconds = 0.0 if self.trained is None else now - self.trained
        if self.checkpoints.saves_last or self.checkpoints.saves_best:
            self.state.say_unsaved()
        for listener in self.listeners.saving:
            listener()
        self.checkpoints.write(self.state.state_dict(), is_evaluated, is_best)
