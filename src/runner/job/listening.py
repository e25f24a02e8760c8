"""The groups `listeners` and `tracking`: objects of anybody's that are told what happens in a run, and cannot steer it.

Contract: a listener has any of the methods of METHODS. It gets copies; what it draws from the global generators is put
back; what it raises is one warning, after which it is told nothing more, and the run goes on.
"""

import copy
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from runner.config import admission
from runner.errors import Diverged, InputError, Interrupted
from runner.groups.instantiate import containers, instantiate
from runner.job.confusion import confusion
from runner.seeding import rng_state, set_rng_state
from runner.storage.run_dir import RunDir
from runner.train.events import EpochEnd, Listeners, Progress
from runner.train.hidden import untouched

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from runner.job.built import Built

log = logging.getLogger("runner")

is_unheard = False  # True in a process that trains a run again only to compare it: nobody is to be told

METHODS = {
    "begin": "begin(run): a dict of what the run is: path, id, name, tags, config, progress, is_resumed, ...",
    "batch": "batch(progress, num_batches): after each batch",
    "step": "step(row): a row of steps.jsonl",
    "epoch": "epoch(row): a row of metrics.jsonl",
    "confusion": "confusion(found): part, weights, names, counts at the end of a run that has classes",
    "saving": "saving(): a checkpoint is about to be written; what it was told is to be durable when this returns",
    "end": "end(record): what run.json says at the end, however the run ended",
}


class Listening:
    """A run's own listeners, by their names in the config."""

    def __init__(self, listeners: Mapping[str, Any], device: torch.device) -> None:
        self.listeners, self.device = dict(listeners), device

    def attach(self, told: Listeners) -> None:
        """Has them told what the Trainer tells: each method costs only where a listener has it."""

        def batch(progress: Progress, num_batches: int) -> None:
            self.tell("batch", progress, num_batches)

        def step(row: Mapping[str, float]) -> None:
            self.tell("step", dict(row))

        def epoch(end: EpochEnd) -> None:
            self.tell("epoch", dict(end.row))

        def saving() -> None:
            self.tell("saving")

        kinds: dict[str, tuple[list[Any], Callable[..., None]]] = {
            "batch": (told.batch, batch),
            "step": (told.steps, step),
            "epoch": (told.epoch, epoch),
            "saving": (told.saving, saving),
        }
        for method, (functions, function) in kinds.items():
            if any(hasattr(listener, method) for listener in self.listeners.values()):
                functions.append(function)

    def tell(self, method: str, *facts: Any) -> None:
        before = rng_state(self.device)
        for name, listener in list(self.listeners.items()):
            if not callable(function := getattr(listener, method, None)):
                continue
            try:
                function(*facts)
            except (Interrupted, Diverged):  # as somebody's own way to stop a run: it is none
                self.drop(name, method, "tried to stop the run")
            except Exception as error:
                self.drop(name, method, f"{type(error).__name__}: {' '.join(str(error).split())}")
        set_rng_state(before, self.device)

    def drop(self, name: str, method: str, reason: str) -> None:
        del self.listeners[name]
        log.warning("%s: %s() failed, it is told nothing more (%s); the run goes on", name, method, reason)

    def begin(self, record: Mapping[str, Any], run_dir: RunDir, progress: Progress, is_resumed: bool) -> None:
        if self.listeners:
            self.tell("begin", facts_of(record, run_dir, progress, is_resumed))

    def confusion(self, built: "Built") -> None:
        """Tells how the examples of the last evaluated part were taken for each other, by the weights as they are."""
        if not any(hasattr(listener, "confusion") for listener in self.listeners.values()):
            return
        name = built.parts.final_split
        loader = built.test_loader or built.trainer.eval_loaders.get(name)
        part = built.parts.part(name)
        if loader is None:
            return
        before = rng_state(self.device)
        try:
            with untouched(built.trainer.task):
                found = confusion(built, loader, part)
        except InputError:  # it has no classes
            return
        except Exception as error:
            log.warning("no confusion matrix is told (%s: %s)", type(error).__name__, " ".join(str(error).split()))
            return
        finally:
            set_rng_state(before, self.device)
        self.tell("confusion", {"part": name, "weights": "last", "names": found.names, "counts": found.counts})

    @contextmanager
    def until(self, record: Mapping[str, Any]) -> Iterator[None]:
        """Tells the end, however the body ends: what the record says by then."""
        try:
            yield
        finally:
            if self.listeners:
                self.tell("end", copy.deepcopy(dict(record)))


def facts_of(
    record: Mapping[str, Any], run_dir: RunDir, progress: Progress | None = None, is_resumed: bool = True
) -> dict[str, Any]:
    """What a listener's begin() is told.

    Args:
        progress: where the run stands; None: at its beginning, and all of it will be told anew.
        is_resumed: whether there are rows already; they are told too.
    """
    keys = ("id", "name", "tags", "notes", "seed", "command", "epochs", "monitor", "mode", "parameters", "device")
    facts = {key: copy.deepcopy(record[key]) for key in (*keys, "config", "started")}
    path = run_dir.path
    facts |= {"path": path, "is_resumed": is_resumed, "progress": progress or Progress()}
    facts |= {"batches_per_epoch": (record["config"].get("derived") or {}).get("batches_per_epoch")}
    facts |= {"sweep": path.parent.name if (path.parent / "sweep.json").exists() else None}
    rows = {"step_rows": run_dir.steps, "epoch_rows": run_dir.metrics}
    return facts | {key: file.read() if is_resumed else [] for key, file in rows.items()}


def make_listeners(cfg: "DictConfig", device: torch.device) -> Listening:
    """The objects of the groups listeners and tracking.

    Raises:
        InputError: one that cannot be made, or has no method of METHODS.
    """
    made = {}
    for group in ("listeners", "tracking"):
        node = {} if is_unheard or group not in cfg else containers(cfg, group) or {}
        if isinstance(node, list):
            node = {str(index): each for index, each in enumerate(node)}
        if not isinstance(node, dict):
            raise InputError(f"{group}={node}: must be {{name: {{_target_: your.Listener}}}} or a list of such targets")
        for name, each in node.items():
            if each is not None and is_to_be_told(group, name, each):
                made[f"{group}.{name}"] = make_listener(f"{group}.{name}", each)
    return Listening(made, device)


def is_to_be_told(group: str, name: str, node: Any) -> bool:
    """A record does not choose to whom a run of it is told, or where its files lie: the environment says it."""
    now = admission.policy()
    said = node if isinstance(node, dict) else {}
    if group != "tracking" or now.downloads or now.names(str(said.get("_target_"))):
        return True
    is_known = "MLFLOW_TRACKING_URI" in os.environ or os.path.isfile("mlflow.db")
    if node == {"_target_": "runner.tracking.TensorBoard"} or (said.get("tracking_uri", "") is None and is_known):
        return True
    log.warning("tracking.%s: left out, for a record says where it is told; --trust runner.tracking tells it", name)
    return False


def make_listener(key: str, node: Any) -> Any:
    if not isinstance(node, dict) or "_target_" not in node:
        raise InputError(f"{key}={node}: must be {{_target_: your.Listener}}")
    made = instantiate(node, key)
    if not any(callable(getattr(made, method, None)) for method in METHODS):
        raise InputError(
            f"{key}: {node['_target_']} has none of the methods that are told; choices: {', '.join(METHODS)}"
        )
    return made
