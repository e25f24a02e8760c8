"""The jobs of a sweep, looked at before the first one trains: each is built as its run will be, and thrown away.

Contract: nothing is written, no device but the CPU computes, and the process is left as it was. Each dataset is made
once for all jobs that have it; jobs that differ in nothing but their seed are one.
"""

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from runner.batches.parts import Overfit, Parts
from runner.config import admission
from runner.errors import InputError
from runner.job.build import build, settings
from runner.job.built import Built
from runner.job.process_state import as_if_alone
from runner.job.rebuilding import today
from runner.seeding import isolated
from runner.storage.provenance import data_changes
from runner.terminal.progress import bar
from runner.values import flatten

CPU = torch.device("cpu")
SAY_NOTHING = ("seed", "name", "tags", "notes", "quiet", "sweep")  # of a config: what its objects do not depend on


class Collected(logging.Handler):
    """Keeps each message once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: dict[str, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.lines[record.getMessage()] = None


def check_jobs(
    jobs: Sequence[tuple[str, DictConfig]],
    with_data: bool = True,
    before: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Looks at every job's config; returns the warnings, each once.

    Args:
        jobs: a label for each, and its config as composed, without hydra.*.
        with_data: False where the jobs will run on other machines, whose data and devices are not here.
        before: the records of jobs that have begun: what has the same dataset group must have the same data.

    Raises:
        InputError: of the first job that would be refused, beginning with its label.
    """
    distinct: dict[str, tuple[str, DictConfig]] = {}
    for label, cfg in jobs:
        distinct.setdefault(key_of({k: v for k, v in plain(cfg).items() if k not in SAY_NOTHING}), (label, cfg))
    by_dataset: dict[str, list[tuple[str, DictConfig]]] = {}
    for label, cfg in distinct.values():
        by_dataset.setdefault(key_of(plain(cfg)["dataset"]), []).append((label, cfg))
    with quietly() as found, bar("checking jobs", len(distinct) * (2 if with_data else 1)) as done:
        ready = {}
        for label, cfg in distinct.values():
            with labelled(label), admission.of_config(cfg):
                ready[label] = without_device(cfg, with_data)
            done.add()
        for group in by_dataset.values() if with_data else ():
            parts: Parts | None = None
            for label, cfg in group:
                with labelled(label):
                    built = build(ready[label], is_new=True, parts=parts)
                    refuse_other_data(plain(cfg)["dataset"], built, before)
                    parts = parts if isinstance(built.parts, Overfit) else built.parts  # not all of the dataset's
                done.add()
    return list(found.lines)


def refuse_other_data(dataset: Mapping[str, Any], built: Built, before: Sequence[Mapping[str, Any]]) -> None:
    """Refuses to train beside runs of the same dataset group that had other data.

    Raises:
        InputError: in what it differs.
    """
    own = flatten(dataset)
    for record in before:
        theirs = flatten(record["config"].get("dataset") or {})
        if any(value is not None and key_of(theirs.get(key)) != key_of(value) for key, value in own.items()):
            continue  # what is null is counted when the data is there
        changes, _ = data_changes(record, {**record, **today(built), "threads": record["threads"]})
        if changes:
            raise InputError(
                f"{'; '.join(changes)}: the data has changed since other jobs of this sweep began; put it back, choose"
                " another sweep.name, or go on all the same with sweep.force=true"
            )


def examined(cfg: DictConfig) -> tuple[Built, list[str]]:
    """One config as its run would be built, on the CPU, and the warnings.

    Raises:
        InputError: what would be refused.
    """
    with quietly() as found:
        built = build(without_device(cfg, True), is_new=True)
    return built, list(found.lines)


def without_device(cfg: DictConfig, has_devices: bool) -> DictConfig:
    """The config for the CPU, after all that needs no data was looked at for the device that it names."""
    made = copy.deepcopy(cfg)
    with open_dict(made):
        if not has_devices and made.device.type != "auto":
            made.device.type, made.device.index = "cpu", 0
        if settings(made).device.torch != CPU:
            made.device.type, made.device.index = "cpu", 0
            made.trainer.compile = None
            if "precision" in made:
                made.precision.type = "fp32"
    return made


def plain(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def key_of(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


@contextmanager
def labelled(label: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{label}: {error}") from error


@contextmanager
def quietly() -> Iterator[Collected]:
    """The process is left as it was; what the runner says is collected."""
    with as_if_alone(), isolated(0, CPU), warnings.catch_warnings(), collected() as found:
        warnings.simplefilter("ignore")  # each job says torch's own itself
        yield found


@contextmanager
def collected() -> Iterator[Collected]:
    """The runner's messages go nowhere else meanwhile."""
    own, handler = logging.getLogger("runner"), Collected()
    handlers, propagates = own.handlers[:], own.propagate
    own.handlers, own.propagate = [handler], False
    try:
        yield handler
    finally:
        own.handlers, own.propagate = handlers, propagates
