"""From a composed config to the objects of a run.

Everything is checked before anything slow is made: names and arguments first, then the device, the data, the model.
"""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch.nn import Module

from runner import device
from runner.batches import nested
from runner.batches.contents import Digest, known_files
from runner.batches.loaders import Loader
from runner.batches.own_state import check_own_state
from runner.batches.parts import Overfit, Part, Parts, Stream, trained_on
from runner.batches.same import SameBatches, overfit
from runner.batches.settings import LoaderSettings
from runner.config import admission
from runner.config.checks import check_targets
from runner.errors import InputError
from runner.groups.data_parts import fill_classes, make_parts
from runner.groups.instantiate import call, containers, make
from runner.groups.lazy import initialise, lazy_parts
from runner.groups.length import Length, every_of, length_of
from runner.groups.loss_parts import fill_weights, make_loss
from runner.groups.mistakes import check_data, check_examples, check_outputs, check_shape
from runner.groups.model_parts import (
    check_accumulate,
    make_averaging,
    make_metrics,
    make_model,
    make_optimizer,
    make_options,
    make_schedule,
    prepare_model,
)
from runner.groups.modes import mode_of, monitoring
from runner.groups.parameters import make_freezing
from runner.groups.shared_examples import check_shared
from runner.groups.task_parts import check_smallest_batch, is_supervised, make_task, probe
from runner.job.built import Built
from runner.job.process_state import importing
from runner.job.pruning import with_pruning
from runner.job.saved import open_model
from runner.processes import StopRequest
from runner.seeding import derive, seed_everything
from runner.storage.checkpoint import Checkpoints
from runner.storage.plain import plain
from runner.tasks import Supervised
from runner.tasks.sizes import ignored_in
from runner.torch_adapter import EVERY_SHAPE, set_compile_limits
from runner.train import hidden
from runner.train.events import Listeners
from runner.train.state import TrainingConfig
from runner.train.steps import StepOptions
from runner.train.stopping import Stopping
from runner.train.trainer import Trainer
from runner.values import targets_in

OWNERS = {  # of what a checkpoint holds: the group that gives it
    "model": "model_state_dict",
    "loss": "criterion_state_dict",
    "task": "task_state_dict",
    "optimizer": "optimizer_state_dict",
    "scheduler": "scheduler_state_dict",
    "dataset.train": "stream_state_dict",
}


@dataclass(frozen=True)
class Settings:
    """All of a config that needs neither data nor a model."""

    device: device.Device
    options: StepOptions
    loading: LoaderSettings
    checkpoints: Checkpoints
    epochs: int
    limit: int | None  # batches of an epoch
    eval_limit: int | None  # of an evaluated part
    stopping: Stopping


def settings(cfg: DictConfig) -> Settings:
    """Looks at every value that can be judged without data.

    Raises:
        InputError: the first that cannot be.
    """
    where = call(device.resolve, cfg.device, "device")
    options = make_options(cfg, where.torch)
    loading = call(LoaderSettings, loader_arguments(cfg))
    checkpoints = call(Checkpoints, cfg.checkpoint, "checkpoint")
    limits = run_limits(cfg)
    every_of(cfg.trainer)
    check_accumulate(options.accumulate, loading.batch_size)
    stopping = call(Stopping, cfg.get("stopping", {}), "stopping")
    return Settings(where, options, loading, checkpoints, *limits, stopping)


def build(
    cfg: DictConfig,
    listeners: Listeners | None = None,
    stop: StopRequest | None = None,
    is_new: bool = False,
    parts: Parts | None = None,
    is_begun: bool = False,
    folder: Path | None = None,
) -> Built:
    """Makes the objects of a run.

    Args:
        cfg: as composed, without hydra.*; what the data decides (num_classes, derived.*) is filled in.
        is_new: two examples are taken through the parts, to see that they fit.
        parts: of the same dataset group, made and looked at before; None: they are made.
        folder: of the run; a trial of a search finds its pruner's history there.
        is_begun: a checkpoint will bring the weights; those that the run started from are only for the task to see.

    Raises:
        InputError: whatever is wrong with the config.
    """
    with admission.of_config(cfg):
        return _build(cfg, listeners, stop, is_new, parts, is_begun, folder)


def _build(
    cfg: DictConfig,
    listeners: Listeners | None,
    stop: StopRequest | None,
    is_new: bool,
    parts: Parts | None,
    is_begun: bool,
    folder: Path | None,
) -> Built:
    seed_everything(derive(0, "data"))  # what a dataset draws while it is made is the same for every seed, as its parts
    with importing(targets_in(OmegaConf.to_container(cfg))):
        check_targets(cfg, is_new)
    seed_everything(derive(0, "data"))  # a module draws when it is imported, in the first job of a process only
    given = settings(cfg)
    where, options, loading, limit = given.device, given.options, given.loading, given.limit
    cfg.device.threads = where.threads  # the resolved count is part of the result, and so of the config
    device.set_deterministic(cfg.deterministic)

    is_known = parts is not None
    parts = parts or make_parts(cfg, is_new)
    fill_classes(cfg, parts)
    fill_weights(cfg, parts)
    if is_new and not is_known:
        check_data(cfg, parts)
        check_shared(cfg, parts)
    if cfg.trainer.get("overfit_batches") is not None:
        parts, loading = overfit(parts, loading, cfg.seed, limit)
    augment = make(cfg.dataset, "augment", "dataset") or []
    train = trained_on(parts.train)
    used = [train if part is parts.train else part for part in parts.all.values()]
    placement = call(functools.partial(loading.place, used, augment, where.torch), {}, "dataloader")
    arguments = (cfg.seed, where.torch, limit, placement)

    def evaluation(part: Part | Stream) -> Loader:
        at_most = given.eval_limit or (None if isinstance(part, Stream) else limit)
        return loading.evaluation(part, cfg.seed, where.torch, at_most, placement)

    train_loader = call(functools.partial(loading.training, train, augment, *arguments), {}, "dataloader")
    test_loader = evaluation(parts.test) if parts.test else None
    val_loader = evaluation(parts.val) if parts.val else None
    eval_loader = val_loader or test_loader
    if isinstance(parts, Overfit):
        train_loader = eval_loader = SameBatches(train_loader)
        if isinstance(parts.train, Part):  # workers of one loader cannot be in two places; a stream has no second one
            eval_loader = SameBatches(loading.training(train, augment, *arguments))
    more_loaders = {name: evaluation(part) for name, part in parts.more.items()}
    eval_loaders = {**({} if eval_loader is None else {parts.eval_split: eval_loader}), **more_loaders}
    length = length_of(cfg.trainer, len(train_loader))
    fill_derived(cfg, parts.eval_split, length, len(train_loader))
    for group in monitoring(cfg):
        cfg[group].mode = mode_of(group, cfg, is_new)
    resolved = resolve(cfg)

    loaders = {"dataset.train": train_loader, "dataset.val": val_loader, "dataset.test": test_loader}
    further = {f"dataset.evaluate.{name}": loader for name, loader in more_loaders.items()}
    if is_new:
        check_examples({**loaders, **further})
        check_shape(resolved["dataset"].get("input_shape"), train_loader)
    model = make_model(cfg, where.torch)
    lost, has_weights = None, (cfg.model_weights, cfg.init_from) != (None, None)
    if has_weights and lazy_parts(model):  # its own task may be needed for its shapes: then it sees no weights
        with contextlib.suppress(InputError):
            initialise(Supervised(model, None), train_loader, options, where.torch, cfg.seed)
    if is_shaped := not lazy_parts(model):
        lost = prepare_model(cfg, model, is_begun)
    opened: dict[str, Module] = {}  # models of other runs

    def opening(path: Path, which: str) -> Module:
        module = opened[f"the model of {path}"] = open_model(path, which)
        return module

    task = make_task(cfg, model, make_loss(cfg, where.torch), parts.train.dataset, where.torch, opening)
    data = {**parts.known, **known_files(resolved), **known_models(opened, task)}
    if lost is not None and list(nested.tensors_in(list(hidden.attributes(task).values()))):
        raise InputError(f"{lost}; the task was made with these weights, and what it keeps of them is in no checkpoint")
    initialise(task, train_loader, options, where.torch, cfg.seed)
    if not is_shaped:
        prepare_model(cfg, model, is_begun)
    freezing = make_freezing(cfg, task)
    averaging = make_averaging(cfg, task, parts.train)
    optimizer = make_optimizer(cfg, task)
    unfrozen_later = [parameter for parameter, epoch in freezing.parameters if epoch is not None]
    options.precision.prepare(optimizer, unfrozen_later)
    schedule = make_schedule(cfg, optimizer, is_new)
    new_metrics = functools.partial(make_metrics, cfg, where.torch, ignored_in(task))
    training = call(
        functools.partial(
            TrainingConfig,
            where.torch,
            cfg.seed,
            epochs=length.epochs,
            steps=length.steps,
            eval_every=length.every,
            step=options,
            stopping=given.stopping if folder is None else with_pruning(given.stopping, folder),
            text=OmegaConf.to_yaml(OmegaConf.create(resolved)),
        ),
        {key: resolved["trainer"][key] for key in ("monitor", "mode", "log_every")},
        "trainer",
    )
    trainer = Trainer(
        task,
        optimizer,
        schedule,
        train_loader,
        eval_loaders,
        (new_metrics(), new_metrics()),
        training,
        given.checkpoints,
        listeners,
        stop,
        freezing,
        averaging,
    )
    built = Built(trainer, parts, test_loader, where, placement, resolved, data)
    if is_new:
        check_own_state({**loaders, **further})
        if is_supervised(task):
            check_outputs(resolved, model, getattr(task, "criterion", None), train_loader, parts.train, options)
        others = {key: each for key, each in loaders.items() if each is not None and loading.differs(key)}
        probe(resolved, task, {"dataset.train": train_loader, **others, **further}, options, new_metrics)
        if (train_loader.num_examples() % loading.batch_size or loading.batch_size) == 1:
            check_smallest_batch(task, train_loader, loading.batch_size, options)
        if given.checkpoints.save != "none":
            check_saved(trainer.state.state_dict())
    if mode := cfg.trainer.get("compile"):
        # Each shape gets code of its own: what a shape computes must not depend on the ones that came before.
        set_compile_limits(EVERY_SHAPE)
        model.compile(mode="default" if mode is True else mode, dynamic=False)
    return built


def check_saved(state: dict[str, Any]) -> None:
    """Holds the first state of a run against what its checkpoints can hold.

    Raises:
        InputError: names the group whose state_dict() holds what they cannot.
    """
    for group, name in OWNERS.items():
        try:
            plain(state.get(name, {}))
        except InputError as error:
            raise InputError(f"{group}: in its state_dict(), {error}") from error


def known_models(opened: Mapping[str, Module], task: Module) -> dict[str, dict[str, Any]]:
    """A digest of the weights of each model that a task has from another run, and whether checkpoints hold them too."""
    saved = {id(tensor) for tensor in task.state_dict(keep_vars=True).values()}
    known = {}
    for name, module in opened.items():
        tensors = module.state_dict(keep_vars=True).values()
        digest = Digest().of(dict(module.state_dict()))
        known[name] = {"values": {"weights": digest}, "is_saved": all(id(tensor) in saved for tensor in tensors)}
    return known


def loader_arguments(cfg: DictConfig) -> dict[str, Any]:
    """The dataloader group, its functions made. A run of an older version evaluated with its collate_fn, too."""
    given = dict(cfg.dataloader)
    given["collate_fn"] = make(cfg.dataloader, "collate_fn", "dataloader")
    has_own = "eval_collate_fn" in given
    given["eval_collate_fn"] = make(cfg.dataloader, "eval_collate_fn", "dataloader") if has_own else given["collate_fn"]
    return given


def run_limits(cfg: DictConfig) -> tuple[int, int | None, int | None]:
    """The run's epochs, and the batches of an epoch and of an evaluated part at most."""
    epochs, counts = cfg.trainer.epochs, dict[str, int]()
    if epochs < 1:
        raise InputError(f"trainer.epochs={epochs}: must be at least 1")
    for key in ("limit_batches", "overfit_batches", "limit_eval_batches"):
        count = cfg.trainer.get(key)
        if count is not None and (type(count) is not int or count < 1):
            raise InputError(f"trainer.{key}={count}: must be a whole number of at least 1, or null")
        counts |= {} if count is None else {key: count}
    evaluated = counts.pop("limit_eval_batches", None)
    return (1, 1, 1) if cfg.trainer.dry_run else (epochs, min(counts.values(), default=None), evaluated)


def fill_derived(cfg: DictConfig, eval_split: str, length: Length, batches_per_epoch: int) -> None:
    """What only the data tells."""
    with open_dict(cfg):
        cfg.derived.eval_split = eval_split
        cfg.derived.batches_per_epoch = batches_per_epoch
        cfg.derived.run_length.epoch = length.epochs
        cfg.derived.run_length.batch = length.steps


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain containers, every interpolation resolved."""
    return containers({"config": cfg}, "config")  # type: ignore[no-any-return]
