"""Where the time of a training step goes: a Trainer's own loop, parted into pieces that follow each other.

Contract: a piece ends where the next one begins, so the pieces add up to the whole. What the Trainer computes is not
changed. On CUDA the pieces are measured twice: on the host, and by events on the device, which works behind it.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from runner.train.trainer import Trainer

PIECES = {
    "data": "waiting for the next batch",
    "to device": "its copy to the device",
    "forward": "the task: model and loss",
    "backward": "gradients, and what is done to them",
    "optimizer": "zero_grad and step",
    "metrics": "loss, metrics, a schedule of batches, an average",
    "rest": "rows, checks, an epoch's end and beginning",
}


class Stopwatch:
    """Counts what each piece takes.

    Args:
        is_traced: the pieces are ranges in torch.profiler's trace too.
    """

    def __init__(self, device: torch.device, is_traced: bool = False) -> None:
        self.device, self.is_traced = device, is_traced
        self.began: list[
            str
        ] = []  # the pieces, in order; no pairs with their times, which python would have to collect
        self.times: list[float] = []  # when they began
        self.events: list[Any] = []  # the same on the device
        self.range: Any = None

    def enter(self, piece: str) -> None:
        """The piece before ends here."""
        self.began.append(piece)
        self.times.append(time.perf_counter())
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self.events.append(event)
        if self.is_traced:
            self.close()
            self.range = torch.profiler.record_function(piece)
            self.range.__enter__()

    def close(self) -> None:
        if self.range is not None:
            self.range.__exit__(None, None, None)
            self.range = None

    @property
    def seconds(self) -> float:
        return self.times[-1] - self.times[0]

    def on_host(self) -> dict[str, float]:
        """Seconds of each piece."""
        spent = dict.fromkeys(PIECES, 0.0)
        for piece, (began, ended) in zip(self.began, itertools.pairwise(self.times), strict=False):
            spent[piece] += ended - began
        return spent

    def on_device(self) -> dict[str, float] | None:
        """The same by the device's clock: from what the host asked for at a piece's beginning to its end."""
        if not self.events:
            return None
        spent = dict.fromkeys(PIECES, 0.0)
        for piece, (began, ended) in zip(self.began, itertools.pairwise(self.events), strict=False):
            spent[piece] += began.elapsed_time(ended) / 1000
        return spent

    def steps(self) -> list[float]:
        """Seconds of each step: from one wait for a batch to the next."""
        began = [at for piece, at in zip(self.began, self.times, strict=True) if piece == "data"]
        return [after - before for before, after in itertools.pairwise([*began, self.times[-1]])]


class Enough(Exception):
    """As many steps are done as were asked for."""


class TimedLoader:
    """A loader whose batches a Stopwatch waits for."""

    def __init__(self, loader: Any, watch: Stopwatch) -> None:
        self.loader, self.watch = loader, watch
        self.places: list[int] = []  # of the batches that were given, in their epochs

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        given = self.loader.batches(epoch, start)
        for place in itertools.count(start):
            self.watch.enter("data")
            try:
                batch = next(given)
            except StopIteration:
                self.watch.began[-1] = "rest"  # it was no wait for a batch
                return
            self.watch.enter("to device")
            self.places.append(place)
            yield batch

    @property
    def examples_given(self) -> int:
        left = self.loader.num_examples
        return sum(left(place) - max(0, left(place + 1)) for place in self.places)  # the last one may be short

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def watched_steps(trainer: Trainer, steps: int, watch: Stopwatch, told: Callable[[], None]) -> int:
    """Trains so many steps from where the Trainer stands, epoch after epoch; returns how many examples these were.

    Args:
        told: called after each step.
    """
    left = iter(range(steps - 1))

    def count(*_: Any) -> None:
        watch.enter("rest")
        told()
        if next(left, None) is None:
            raise Enough

    with attached(trainer, watch) as loader:
        trainer.listeners.batch.append(count)
        wait(trainer.config.device)
        watch.enter("rest")
        try:
            trainer.max_steps = trainer.eval_every = trainer.progress.step + steps + 1  # never evaluated
            trainer.state.progress = replace(trainer.progress, evaluated=trainer.progress.step)
            trainer.fit()
        except Enough:
            wait(trainer.config.device)
            watch.enter("rest")
            wait(trainer.config.device)  # the last event is one of the device's too
        finally:
            watch.close()
            trainer.listeners.batch.remove(count)
    return loader.examples_given


@contextmanager
def attached(trainer: Trainer, watch: Stopwatch) -> Iterator[TimedLoader]:
    """The Trainer's pieces say when they begin."""
    optimizer, loader = trainer.optimizer, trainer.train_loader
    own = {name: getattr(optimizer, name) for name in ("step", "zero_grad")}
    schedule, total = trainer.step_scheduler, trainer.config.epochs * len(loader)

    @functools.wraps(own["step"])
    def step(*arguments: Any, **options: Any) -> Any:
        watch.enter("optimizer")
        result = own["step"](*arguments, **options)
        watch.enter("metrics")
        return result

    @functools.wraps(own["zero_grad"])
    def zero_grad(*arguments: Any, **options: Any) -> Any:
        watch.enter("optimizer")
        return own["zero_grad"](*arguments, **options)

    def step_scheduler(interval: str, metrics: Any) -> None:
        if trainer.progress.step <= total:  # some end with the run, and refuse to go on
            schedule(interval, metrics)

    handles = [
        trainer.task.register_forward_pre_hook(lambda *_: watch.enter("forward")),
        trainer.task.register_forward_hook(lambda *_: watch.enter("backward")),
    ]
    ours: Any = trainer
    watching: Any = TimedLoader(loader, watch)
    ours.train_loader, ours.step_scheduler = watching, step_scheduler
    optimizer.step, optimizer.zero_grad = step, zero_grad  # type: ignore[method-assign]
    try:
        yield watching
    finally:
        optimizer.step, optimizer.zero_grad = own["step"], own["zero_grad"]  # type: ignore[method-assign]
        ours.train_loader, ours.step_scheduler = loader, schedule
        for handle in handles:
            handle.remove()


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
