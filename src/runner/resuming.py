"""Continuing a run: from which checkpoint, with which overrides, and what its files hold from then on."""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import checkpoint, provenance
from runner.checkpoint import Damaged
from runner.config import overridden
from runner.errors import InputError
from runner.files import fsync_directory
from runner.job import OnBatch, train
from runner.records import flatten
from runner.run_dir import RunDir, now
from runner.trainer import Trainer

log = logging.getLogger("runner")

# What cannot change what has been trained already. trainer.epochs has rules of its own.
FREE = (
    *("device.", "checkpoint.", "quiet", "name", "tags", "notes", "trainer.log_every", "dataloader.num_workers"),
    *("dataloader.pin_memory", "dataloader.persistent_workers", "dataloader.prefetch_factor"),
)
SET_ASIDE = ".set-aside"
NOT_CHECKPOINTS = ("model_state_dict.pt", "model.pt")


def resume(path: Path, overrides: list[str], on_batch: OnBatch | None = None, is_shown: bool = True) -> dict[str, Any]:
    """Continues the run in `path`, and returns what its run.json says at the end.

    Raises:
        InputError: no run, another process has it, no good checkpoint, or an override that would change the past.
    """
    run_dir = RunDir(path)
    record = run_dir.read_run()
    finished = f"{path}: finished, all {record['epochs']} epochs are done; trainer.epochs=N continues it"
    if record["state"] == "done" and not overrides:
        print(finished)
        return record
    config = overridden(record["config"], overrides)
    check_changes(path, record, dict(config), overrides)
    if record["state"] == "done" and config.trainer.epochs == record["epochs"]:
        print(finished)
        return record
    run_dir.lock()
    try:
        resumed, notes = choose(run_dir, record)
        if config.device.type != record["config"]["device"]["type"]:
            notes.append("another device: from here on the bits are not those of the run that never stopped")
        return train(config, run_dir, notes, resumed, on_batch, is_shown)
    finally:
        run_dir.release()


@dataclass
class Resumed:
    """A run's record, and the checkpoint that it continues from; None: from its beginning."""

    record: dict[str, Any]
    state: dict[str, Any] | None
    path: Path | None  # the file that holds `state`
    best: Path | None  # a good file that holds the best epoch's weights, to be best.pt again
    unusable: list[Path]  # damaged files, and those newer than `state` that do not lead to the same end

    def put_back(self, run_dir: RunDir, trainer: Trainer, record: dict[str, Any]) -> None:
        """Loads the state, cuts the files back to it, and carries the old record over into the new one."""
        if self.state is not None:
            try:
                trainer.load_state_dict(self.state)
            except (KeyError, ValueError, RuntimeError, TypeError) as error:
                raise InputError(f"{run_dir.path}: its checkpoint does not fit its config; {error}") from error
        progress = trainer.progress
        for path in self.unusable:  # nothing is deleted; but no later start may take one of them for the newest
            os.replace(path, path.with_name(path.name + SET_ASIDE))
        fsync_directory(run_dir.checkpoints)
        if self.path is not None:
            trainer.checkpoints.adopt(self.path)
        best = trainer.checkpoints.path("best")
        if self.best is not None and self.best != best:
            checkpoint.save(best, checkpoint.load(self.best))
        if progress.best_epoch is not None and trainer.best_weights is None and not trainer.checkpoints.saves_best:
            trainer.best_weights = trainer.load_best_weights()
        run_dir.metrics.cut_back("epoch", progress.epoch)
        run_dir.steps.cut_back("step", progress.step)
        for key in ("started", "command", "git", "code"):
            record[key] = self.record.get(key)
        command = provenance.command_line()
        event = {"at": now(), "epoch": progress.epoch, "batch": progress.batch, "command": command}
        record["resumed"] = [*self.record.get("resumed", []), event]
        record |= {"epochs_done": progress.epoch, "best_epoch": progress.best_epoch, "best_value": progress.best_value}
        rows = {row.pop("epoch"): row for row in run_dir.metrics.read()}
        record["seconds"] = round(sum(row["seconds"] for row in rows.values()), 3)
        for which, epoch in (("best", progress.best_epoch), ("last", progress.epoch)):
            record[which] = {k: v for k, v in rows.get(epoch, {}).items() if k == "lr" or "/" in k}
        log.info("resumed after %d epochs and %d batches", progress.epoch, progress.batch)


def choose(run_dir: RunDir, record: dict[str, Any]) -> tuple[Resumed, list[str]]:
    """The newest good checkpoint from which the run's end can be reached exactly, and what to say about others.

    A checkpoint leads to the same end if the weights of its best epoch are there, or if a later epoch is known (from
    the rows of metrics.jsonl, which are durable before any checkpoint) to beat them, so that they are made again.

    Raises:
        InputError: there are checkpoints, but none of them is good.
    """
    notes: list[str] = []
    good: dict[Path, dict[str, Any]] = {}
    paths = [p for p in run_dir.checkpoints.glob("*.pt") if p.name not in NOT_CHECKPOINTS]
    for path in paths:
        try:
            good[path] = checkpoint.load(path)
        except Damaged as error:
            notes.append(str(error))
    if paths and not good:
        raise InputError(f"{run_dir.path}: none of its checkpoints is good; {'; '.join(notes)}")
    rows = run_dir.metrics.read()
    unusable = [path for path in paths if path not in good]
    for path in sorted(good, key=lambda p: _position(good[p]), reverse=True):
        state = good[path]
        best, is_reachable = _best_file(state, good, rows, record)
        if is_reachable:
            if notes:
                lost = len({row["epoch"] for row in rows if row["epoch"] > state["epoch"]})
                notes.append(f"continuing from {path.name}, after epoch {state['epoch']}: {lost} epochs are repeated")
            return Resumed(record, state, path, best, unusable), notes
        unusable.append(path)
    if paths:
        notes.append(
            "the weights of the best epoch are lost with it, so the run starts again from its beginning:"
            f" {len(rows)} epochs are repeated"
        )
    return Resumed(record, None, None, None, unusable), notes


def _position(state: dict[str, Any]) -> tuple[int, int]:
    return state["progress"]["epoch"], state["progress"]["batch"]


def _best_file(
    state: dict[str, Any], good: dict[Path, dict[str, Any]], rows: list[dict[str, Any]], record: dict[str, Any]
) -> tuple[Path | None, bool]:
    """The good file with the best epoch's weights, if one is needed; and whether the run can go on from `state`."""
    epoch, value = state["progress"]["best_epoch"], state["progress"]["best_value"]
    if epoch is None or "best_model_state_dict" in state:
        return None, True
    for path in sorted(good, key=lambda p: p.name != "best.pt"):
        if good[path]["epoch"] == epoch and not good[path]["progress"]["batch"]:
            return path, True
    later = [row[record["monitor"]] for row in rows if row["epoch"] > state["epoch"]]
    sign = 1 if record["mode"] == "max" else -1
    return None, any(other is not None and sign * other > sign * value for other in later)


def check_changes(run_dir: Path, record: dict[str, Any], config: dict[str, Any], overrides: list[str]) -> None:
    """Refuses a config that would change what has been trained already.

    Raises:
        InputError: with the difference and the way out.
    """
    old, new = flatten(record["config"]), flatten(config)
    changed = {k: (old.get(k), new.get(k)) for k in {**old, **new} if old.get(k) != new.get(k)}
    way_out = f"start a new run from its weights: python -m runner init_from={run_dir} {' '.join(overrides)}"
    for key, (before, after) in changed.items():
        if key == "trainer.epochs":
            check_epochs(record, after, way_out)
        elif not key.startswith(FREE) and not key.startswith("derived."):
            raise InputError(f"{key}: {before} -> {after} would change what this run has trained already; {way_out}")


def check_epochs(record: dict[str, Any], epochs: Any, way_out: str) -> None:
    """trainer.epochs may be raised, if nothing else in the config depends on it."""
    done = record["epochs_done"]
    if epochs < done:
        raise InputError(f"trainer.epochs={epochs}: this run has completed {done} epochs already")
    source = flatten({k: v for k, v in record["config_source"].items() if k != "derived"})
    for key, value in source.items():
        if re.search(r"derived\.run_length|trainer\.epochs", str(value)):
            raise InputError(
                f"trainer.epochs: {record['epochs']} -> {epochs} would change {key}={value}, the length that this run"
                f" was planned for; {way_out}"
            )
