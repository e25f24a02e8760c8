"""The learning rate of every step of a run that does not take place: by its own model, optimizer, scheduler and order.

Contract: nothing trains, no device but the CPU computes, nothing is written. Data is read only where the schedule
depends on how many batches an epoch has, and the config does not say how many examples there are.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from runner.batches.order import EpochOrder
from runner.batches.parts import Parts, Stream, split
from runner.batches.stream import batches_of
from runner.before.beforehand import quietly, without_device
from runner.config import admission
from runner.config.checks import check_composed, check_targets
from runner.groups import walk
from runner.groups.data_parts import fill_classes, make_parts
from runner.groups.instantiate import call
from runner.groups.lazy import lazy_parts
from runner.groups.length import length_of
from runner.groups.loss_parts import make_loss
from runner.groups.model_parts import make_model, make_optimizer, make_schedule, prepare_model
from runner.groups.modes import mode_of, monitoring
from runner.groups.task_parts import make_task
from runner.job.build import fill_derived, resolve, settings
from runner.job.saved import open_model

# How many training examples a data set has that cannot have another number.
SIZES = {
    "runner.data.Digits": 1797,
    **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST"), 60_000),
    **dict.fromkeys(("CIFAR10", "CIFAR100"), 50_000),
}
SIZES = {name if "." in name else f"torchvision.datasets.{name}": size for name, size in SIZES.items()}


@dataclass(frozen=True)
class Preview:
    """The rates of one config, of its param groups that have one of their own.

    Args:
        rates: by step; by epoch where it is not known how many steps one has; the first alone where a metric decides.
        unit: "step" or "epoch".
        batches: steps an epoch; None: not known, for no data was read.
        said: what a reader must know.
    """

    rates: list[list[float]]
    unit: str
    epochs: int
    batches: int | None
    said: list[str]


class Sized:
    """Stands for a data set of which nothing but its length matters."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


def preview(task: DictConfig, by_step: bool = False) -> Preview:
    """Makes what a run would make of its config, and walks its schedule.

    Args:
        by_step: data is read too where only the number of steps depends on it.

    Raises:
        InputError: as a run would, before its first step.
    """
    check_composed(task)
    with admission.of_config(task), quietly() as found:
        check_targets(task, True)
        return made(without_device(task, False), found, by_step)


def made(cfg: DictConfig, found: Any, by_step: bool) -> Preview:
    given = settings(cfg)
    parts = known_parts(cfg) or (make_parts(cfg) if by_step or needs_data(cfg) else None)
    batches = None
    if parts is not None and isinstance(parts.train, Stream):
        batches = batches_of(parts.train.length, given.loading.batch_size, given.limit, given.loading.drop_last)
    elif parts is not None:
        fill_classes(cfg, parts) if not isinstance(parts.train.dataset, Sized) else None
        loading = given.loading
        order = EpochOrder(parts.train, loading.batch_size, loading.shuffle, loading.drop_last, 0, given.limit)
        batches = call(functools.partial(len, order), {}, "dataloader")
    length = length_of(cfg.trainer, batches or 1)
    fill_derived(cfg, eval_split(cfg, parts), length, batches or 1)
    for group in monitoring(cfg):
        cfg[group].mode = mode_of(group, cfg, False)
    resolve(cfg)
    where = given.device.torch
    model = make_model(cfg, where)
    if not lazy_parts(model):
        prepare_model(cfg, model)
    dataset = None if parts is None else parts.train.dataset
    optimizer = make_optimizer(cfg, make_task(cfg, model, make_loss(cfg, where), dataset, where, open_model))
    schedule = make_schedule(cfg, optimizer, is_new=True)
    said = list(found.lines)
    if walk.needs_metric(schedule.scheduler):
        said.append(f"follows {schedule.monitor}: what comes after the first step is not known before training")
        rates = [[rate] for rate in schedule.rates[0]]
        return Preview(distinct(rates), "step" if batches else "epoch", length.epochs, batches, said)
    by_interval, intervals = schedule.rates_of_run(length.epochs, length.steps)
    if len(by_interval) < intervals:
        said.append(f"only the first {len(by_interval):,} of {intervals:,} steps are walked")
    repeat = batches if batches and schedule.interval == "epoch" else 1
    groups = [[rate for rate in group for _ in range(repeat)] for group in zip(*by_interval, strict=True)]
    groups = [group[: length.steps] for group in groups] if batches else groups  # the last epoch may end early
    return Preview(distinct(groups), "step" if batches else "epoch", length.epochs, batches, said)


def distinct(groups: Sequence[list[float]]) -> list[list[float]]:
    """The rates of each param group, those that are equal once."""
    return [group for number, group in enumerate(groups) if group not in groups[:number]]


def needs_data(cfg: DictConfig) -> bool:
    """Whether the rates depend on what only the data tells."""
    written = json.dumps(OmegaConf.to_container(cfg.scheduler, resolve=False), default=str)
    if cfg.trainer.get("steps") is not None:
        return True
    by_batches = cfg.scheduler.get("interval", "epoch") == "batch" or "batches_per_epoch" in written
    by_batches = by_batches or "lambda_lr" in written
    return by_batches or "run_length.batch" in written or cfg.dataset.get("num_classes", 0) is None


def known_parts(cfg: DictConfig) -> Parts | None:
    """The parts of a run without their data, where the config says how many examples there are; None: it does not."""
    train = cfg.dataset.get("train")
    if train is None or cfg.dataset.get("num_classes", 0) is None:
        return None
    size = SIZES.get(str(train.get("_target_")))
    if size is not None and not train.get("train", True):
        size = None
    if train.get("_target_") == "runner.data.Fake":
        size = train.size
    if size is None:
        return None
    sizes = {key: cfg.dataset.get(key) or 0 for key in ("test_size", "val_size")}
    others = {name: None if cfg.dataset.get(name) is None else Sized(1) for name in ("test", "val")}
    return split(Sized(size), others["test"], **sizes, val=others["val"])


def eval_split(cfg: DictConfig, parts: Parts | None) -> str:
    if cfg.trainer.get("overfit_batches") is not None:
        return "overfit"
    if parts is not None:
        return parts.eval_split
    return "val" if cfg.dataset.get("val_size") or cfg.dataset.get("val") is not None else "test"
