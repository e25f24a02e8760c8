"""From a composed config to the objects of a run.

Everything is checked before anything slow is made: names and arguments first, then the device, the data, the model.
"""

import functools
import logging
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn

from runner import device, models
from runner.batches.loaders import Loader
from runner.batches.own_state import check_own_state
from runner.batches.settings import LoaderSettings, Placement
from runner.config import admission
from runner.config.checks import check_targets, complaint
from runner.data import Parts
from runner.errors import InputError
from runner.job.data_parts import fill_classes, make_parts
from runner.job.instantiate import call, containers, make
from runner.job.mistakes import check_data, check_outputs, check_shape
from runner.job.model_parts import (
    check_accumulate,
    make_loss,
    make_metrics,
    make_model,
    make_optimizer,
    make_options,
    make_schedule,
)
from runner.job.modes import mode_of, monitoring
from runner.job.process_state import importing, targets_in
from runner.job.shared_examples import check_shared
from runner.job.smallest_batch import check_smallest_batch, smallest
from runner.processes import StopRequest
from runner.seeding import derive, isolated, seed_everything
from runner.storage.checkpoint import Checkpoints
from runner.train import precision, sizes
from runner.train.events import Listeners
from runner.train.hidden import untouched
from runner.train.steps import StepOptions, to_device
from runner.train.task import Supervised
from runner.train.trainer import Trainer

log = logging.getLogger("runner")

EXAMPLES = 8  # that show whether a loss is a mean


@dataclass
class Built:
    """All the objects of one run, and the config that made them, resolved."""

    trainer: Trainer
    parts: Parts
    test_loader: Loader | None
    device: device.Device
    placement: Placement
    config: dict[str, Any]

    def close(self) -> None:
        """Ends the loaders' workers: no batch is asked for afterwards."""
        for loader in (self.trainer.train_loader, self.trainer.eval_loader, self.test_loader):
            if loader is not None:
                loader.close()


@dataclass(frozen=True)
class Settings:
    """All of a config that needs neither data nor a model."""

    device: device.Device
    options: StepOptions
    loading: LoaderSettings
    checkpoints: Checkpoints
    epochs: int
    limit: int | None


def settings(cfg: DictConfig) -> Settings:
    """Looks at every value that can be judged without data.

    Raises:
        InputError: the first that cannot be.
    """
    where = call(device.resolve, cfg.device, "device")
    options = make_options(cfg, where.torch)
    loading = call(LoaderSettings, {**cfg.dataloader, "collate_fn": make(cfg.dataloader, "collate_fn", "dataloader")})
    checkpoints = call(Checkpoints, cfg.checkpoint, "checkpoint")
    epochs, limit = run_limits(cfg)
    check_accumulate(options.accumulate, loading.batch_size)
    return Settings(where, options, loading, checkpoints, epochs, limit)


def build(
    cfg: DictConfig,
    listeners: Listeners | None = None,
    stop: StopRequest | None = None,
    is_new: bool = False,
    parts: Parts | None = None,
) -> Built:
    """Makes the objects of a run.

    Args:
        cfg: as composed, without hydra.*; what the data decides (num_classes, derived.*) is filled in.
        is_new: two examples are taken through the parts, to see that they fit.
        parts: of the same dataset group, made and looked at before; None: they are made.

    Raises:
        InputError: whatever is wrong with the config.
    """
    with admission.of_config(cfg):
        return _build(cfg, listeners, stop, is_new, parts)


def _build(
    cfg: DictConfig, listeners: Listeners | None, stop: StopRequest | None, is_new: bool, parts: Parts | None
) -> Built:
    seed_everything(derive(0, "data"))  # what a dataset draws while it is made is the same for every seed, as its parts
    with importing(list(targets_in(OmegaConf.to_container(cfg)))):
        check_targets(cfg, is_new)
    seed_everything(derive(0, "data"))  # a module draws when it is imported, in the first job of a process only
    given = settings(cfg)
    where, options, loading, epochs, limit = given.device, given.options, given.loading, given.epochs, given.limit
    cfg.device.threads = where.threads  # the resolved count is part of the result, and so of the config
    device.set_deterministic(cfg.deterministic)

    is_known = parts is not None
    parts = parts or make_parts(cfg)
    fill_classes(cfg, parts)
    if is_new and not is_known:
        check_data(cfg, parts)
        check_shared(cfg, parts)
    augment = make(cfg.dataset, "augment", "dataset") or []
    used = [part for part in (parts.train, parts.val, parts.test) if part is not None]
    placement = call(functools.partial(loading.place, used, augment, where.torch), {}, "dataloader")
    arguments = (cfg.seed, where.torch, limit, placement)
    train_loader = call(functools.partial(loading.training, parts.train, augment, *arguments), {}, "dataloader")
    test_loader = loading.evaluation(parts.test, *arguments) if parts.test else None
    val_loader = loading.evaluation(parts.val, *arguments) if parts.val else None
    eval_loader = val_loader or test_loader
    fill_derived(cfg, parts.eval_split, epochs, len(train_loader))
    for group in monitoring(cfg):
        cfg[group].mode = mode_of(group, cfg, is_new)
    resolved = resolve(cfg)

    if is_new:
        check_shape(resolved["dataset"].get("input_shape"), train_loader)
    model = make_model(cfg, where.torch)
    task = Supervised(model, make_loss(cfg, where.torch), options.precision)
    optimizer = make_optimizer(cfg, task)
    options.precision.prepare(optimizer)
    schedule = make_schedule(cfg, optimizer, is_new)
    trainer = call(
        functools.partial(
            Trainer,
            task,
            optimizer,
            schedule,
            train_loader,
            eval_loader,
            (make_metrics(cfg, where.torch), make_metrics(cfg, where.torch)),
            where.torch,
            seed=cfg.seed,
            epochs=epochs,
            eval_split=parts.eval_split,
            options=options,
            checkpoints=given.checkpoints,
            listeners=listeners,
            stop=stop,
            config=OmegaConf.to_yaml(OmegaConf.create(resolved)),
        ),
        {key: resolved["trainer"][key] for key in ("monitor", "mode", "log_every")},
        "trainer",
    )
    built = Built(trainer, parts, test_loader, where, placement, resolved)
    if is_new:
        check_own_state({"dataset.train": train_loader, "dataset.val": val_loader, "dataset.test": test_loader})
        check_outputs(resolved, model, task.criterion, train_loader, parts.train, options)
        probe(built, make_metrics(cfg, where.torch))
        size = smallest(len(parts.train), loading.batch_size, loading.drop_last, limit)
        if size == 1:
            check_smallest_batch(task, train_loader, loading.batch_size, options)
    if mode := cfg.trainer.get("compile"):
        # Each shape gets code of its own: what a shape computes must not depend on the ones that came before.
        model.compile(mode="default" if mode is True else mode, dynamic=False)
    return built


def run_limits(cfg: DictConfig) -> tuple[int, int | None]:
    """The run's epochs, and its batches an epoch at most."""
    epochs, limit = cfg.trainer.epochs, cfg.trainer.limit_batches
    if epochs < 1:
        raise InputError(f"trainer.epochs={epochs}: must be at least 1")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InputError(f"trainer.limit_batches={limit}: must be a whole number of at least 1, or null")
    return (1, 1) if cfg.trainer.dry_run else (epochs, limit)


def fill_derived(cfg: DictConfig, eval_split: str, epochs: int, batches_per_epoch: int) -> None:
    """What only the data tells."""
    with open_dict(cfg):
        cfg.derived.eval_split = eval_split
        cfg.derived.batches_per_epoch = batches_per_epoch
        cfg.derived.run_length.epoch = epochs
        cfg.derived.run_length.batch = epochs * batches_per_epoch


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved."""
    return containers({"config": cfg}, "config")  # type: ignore[no-any-return]


def probe(built: Built, metrics: dict[str, Any]) -> None:
    """Takes two training examples through the parts, so that those that do not fit are said at once.

    Nothing that counts is changed: eval mode, no gradients, the task's state and the generators are put back.

    Args:
        metrics: a set of them to throw away.

    Raises:
        InputError: names the part that refused them.
    """
    trainer, task, part = built.trainer, built.trainer.task, "dataset"
    try:
        with isolated(0, built.device.torch), torch.no_grad(), untouched(task):
            examples = trainer.train_loader.examples(2)
            data, target = to_device(examples, built.device.torch, trainer.options.channels_last)
            part = "model"
            task.eval()
            with task.precision.autocast():
                output = precision.as_fp32(task.model(data))
            if not isinstance(output, torch.Tensor):
                raise InputError(
                    f"model: {built.config['model'].get('_target_')} must give one tensor, got {type(output).__name__}"
                )
            part = "loss"
            loss = task.criterion(output, target)
            if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
                shape = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
                raise InputError(f"loss: must give one number for a batch, a tensor without dimensions; got {shape}")
            sizes.check(task.size_of(output, target))
            several = to_device(
                trainer.train_loader.examples(EXAMPLES), built.device.torch, trainer.options.channels_last
            )
            with task.precision.autocast():
                outputs = precision.as_fp32(task.model(several[0]))
            if not sizes.is_mean(task.criterion, task.size_of, outputs, several[1]):
                log.warning(
                    "the loss of a batch does not follow from the loss of each example: an evaluation's figure depends"
                    " on dataloader.eval_batch_size; a loss that is a mean over something else than examples says so by"
                    " a method size(output, target)"
                )
            for name, metric in metrics.items():
                part = f"metrics.{name}"
                metric.update(output, target)
    except InputError as error:
        if part.startswith("metrics."):
            raise InputError(f"{part}: {error}") from error
        raise
    except Exception as error:
        node = OmegaConf.select(OmegaConf.create(built.config), part)
        target_name = str(node.get("_target_", ""))
        shapes = f" (an input of shape {list(data.shape)})" if part != "dataset" else ""
        raise InputError(f"{complaint(part, target_name, error, node)}{shapes}") from error


def describe(built: Built) -> list[str]:
    """The lines that a person sees before the first epoch."""
    trainer, parts = built.trainer, built.parts
    sizes = {"train": parts.train, "val": parts.val, "test": parts.test}
    rows = models.layer_table(trainer.model)
    width = max(len(row["name"]) for row in rows)
    lines = [f"{row['name']:{width}}  {row['type']:18}{row['parameters']:>12,}" for row in rows]
    of_loss = count_parameters(trainer.task) - count_parameters(trainer.model)
    more = f", and {of_loss:,} of the loss" if of_loss else ""
    lines.append(f"{count_parameters(trainer.model):,} parameters{more}")
    precision_type = trainer.options.precision.type
    lines.append(
        f"device {built.device.name}, {precision_type}, {built.device.threads} CPU threads, seed {trainer.seed}"
    )
    lines.append(f"batches from {built.placement.where}: {built.placement.reason}")
    lines.append("examples: " + ", ".join(f"{name} {len(part):,}" for name, part in sizes.items() if part))
    return lines


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
