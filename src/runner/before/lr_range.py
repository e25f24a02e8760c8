"""The learning-rate range test: the rate grows by a factor from step to step, and the loss tells which are too high.

Contract: the objects are the run's own (build, train_step, loader, the epochs' seeds), the scheduler alone is left out.
Nothing is written, and nobody is told: no folder, no checkpoint, no listener. The process is left as it was.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Adadelta, Optimizer

from runner.before.beforehand import quietly
from runner.before.suggestion import Suggestion, has_diverged, next_mean, suggest
from runner.config import admission
from runner.config.checks import check_composed, check_targets
from runner.errors import InputError
from runner.groups.model_parts import make_optimizer
from runner.job.build import build
from runner.job.built import Built
from runner.seeding import alone, derive, seed_everything
from runner.terminal.progress import bar
from runner.train.steps import to_device, train_step
from runner.values import is_number

ADADELTA = "on the digits the rule was 1.3 to 5 times too low for Adadelta (docs/before.md)"


@dataclass(frozen=True)
class RangeTest:
    """The curve of one config: a loss for each rate that was reached, and what it suggests.

    Args:
        losses: of each batch, before the step with its rate.
        smooth: their running mean.
        key: that the suggestion is a value of; with a + where the optimizer's YAML does not have it.
        batches: of an epoch.
        ended: why it ended before the last rate; None: it did not.
        said: what a reader must know of how it came about.
    """

    rates: list[float]
    losses: list[float]
    smooth: list[float]
    key: str
    batches: int
    ended: str | None
    suggestion: Suggestion
    said: list[str]


def range_test(cfg: DictConfig, low: float, high: float, steps: int) -> RangeTest:
    """Trains `steps` steps, the first with the rate `low`, the last with `high`.

    Raises:
        InputError: as a run would, before its first step.
    """
    check_composed(cfg)
    with alone(), admission.of_config(cfg), quietly() as found:
        check_targets(cfg, True)
        with closing(build(cfg, is_new=True)) as built:
            optimizer = make_optimizer(cfg, built.trainer.task)  # the run's has been through its scheduler's hands
            built.trainer.config.step.precision.prepare(optimizer)
            ratios, scheduled = ratios_of(cfg, optimizer), of_schedule(built, float(optimizer.param_groups[0]["lr"]))
            shares = [step / (steps - 1) for step in range(steps)]
            rates = [low ** (1 - share) * high**share for share in shares]  # high / low may be too large a number
            losses, smooth, ended = trained(built, optimizer, ratios, rates)
            batches = len(built.trainer.train_loader)
            warned = [line for line in found.lines if not line.startswith("scheduler")]  # that is left out
            said = [*warned, *remarks(cfg, optimizer, ratios, len(losses), batches), *scheduled]
    rates = rates[: len(losses)]
    key = "optimizer.lr" if "lr" in cfg.optimizer else "+optimizer.lr"
    suggestion = suggest(rates, losses, smooth, ended is None)
    if suggestion.valley is not None and isinstance(optimizer, Adadelta):
        said.append(ADADELTA)
    return RangeTest(rates, losses, smooth, key, batches, ended, suggestion, said)


def trained(
    built: Built, optimizer: Optimizer, ratios: Sequence[float], rates: Sequence[float]
) -> tuple[list[float], list[float], str | None]:
    """The losses, their running mean, and why they end before the last rate."""
    losses: list[float] = []
    smooth: list[float] = []
    with bar("range test", len(rates)) as done:
        for rate, batch in zip(rates, batches_without_end(built), strict=False):
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                set_rate(group, rate * ratio)
            loss = float(train_step(built.trainer.task, optimizer, batch, built.trainer.config.step).loss)
            if not math.isfinite(loss):
                return losses, smooth, f"the loss is not finite at {rate:.4g}"
            losses.append(loss)
            smooth.append(next_mean(smooth, loss))
            if has_diverged(smooth):
                return losses, smooth, f"the loss diverges: at {rate:.4g} it is far above where it began"
            done.add()
    return losses, smooth, None


def batches_without_end(built: Built) -> Iterator[Any]:
    """The run's batches, epoch after epoch, in train mode, with what is drawn as the run draws it."""
    trainer = built.trainer
    for epoch in itertools.count():
        seed_everything(derive(trainer.config.seed, "epoch", epoch))
        trainer.freezing.train(trainer.task, 1)  # what is frozen at the start stays so
        for batch in trainer.train_loader.batches(epoch):
            yield to_device(batch, trainer.config.device, trainer.config.step.channels_last)


def set_rate(group: dict[str, Any], rate: float) -> None:
    if isinstance(group["lr"], Tensor):  # of an optimizer that is captured or compiled
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def ratios_of(cfg: DictConfig, optimizer: Optimizer) -> list[float]:
    """Each group's rate as a multiple of optimizer.lr.

    Raises:
        InputError: there is none to multiply.
    """
    groups = [float(group["lr"]) for group in optimizer.param_groups]
    base = cfg.optimizer.get("lr", optimizer.defaults.get("lr"))
    if len(set(groups)) == 1 and (not is_number(base) or base == 0):
        return [1.0] * len(groups)
    if not is_number(base) or base == 0:
        raise InputError(f"optimizer.lr={base}: optimizer.groups has rates of its own, and their ratio to it is kept")
    return [rate / base for rate in groups]


def remarks(cfg: DictConfig, optimizer: Optimizer, ratios: Sequence[float], steps: int, batches: int) -> list[str]:
    """What was done that a reader would not expect."""
    said = []
    if steps > batches:
        said.append(
            f"batches in an epoch: {batches:,}; from step {batches + 1:,} on, examples are seen again, and what is"
            " learnt by heart looks like what is learnt"
        )
    if set(ratios) != {1.0}:
        found = [
            f"{group.get('says', number)} {ratio:g}"
            for number, (group, ratio) in enumerate(zip(optimizer.param_groups, ratios, strict=True))
        ]
        said.append(f"each group keeps its ratio to optimizer.lr: {', '.join(found)}")
    absolute = [n for n, rule in enumerate(cfg.optimizer.get("groups") or []) if "lr" in rule]
    if absolute:
        said.append(f"optimizer.groups.{absolute[0]}.lr does not follow optimizer.lr: scale it alike, or give lr_scale")
    return said


def of_schedule(built: Built, own: float) -> list[str]:
    """A line where the run's schedule reaches another rate than the optimizer has of its own."""
    highest = max((rates[0] for rates in built.trainer.schedule.rates), default=own)
    if math.isclose(highest, own, rel_tol=0.01):
        return []
    return [
        f"the run's schedule goes up to {highest:.4g}, not to the optimizer's {own:.4g}: that highest rate is what the"
        " suggestion is for"
    ]
