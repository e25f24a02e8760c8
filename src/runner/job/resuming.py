"""Continuing a run: from which checkpoint, with which overrides, and what its files hold from then on."""

import json
import logging
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from runner.config.compose import overridden
from runner.errors import InputError
from runner.job.changes import ACCEPT, check_changes, goes_further, is_accepting
from runner.job.own_code import as_it_was_started
from runner.job.record import ending, never_began
from runner.job.recovery import Recovered, recover, whole_config
from runner.job.run import OnBatch, train
from runner.job.saved import keep_placement, keep_weights, refuse_interpolations
from runner.processes import STOP_SIGNALS
from runner.storage import checkpoint, labels, provenance
from runner.storage.files import fsync_directory
from runner.storage.rows import timeless
from runner.storage.run_dir import RunDir, now
from runner.terminal.printable import say
from runner.terminal.words import plural
from runner.train.events import Progress
from runner.train.trainer import Trainer
from runner.values import flatten

log = logging.getLogger("runner")

# What a record keeps of the run's beginning, whatever it is continued with.
KEPT = (
    *("id", "started", "command", "git", "code", "own_code", "working_directory"),
    *("host", "platform", "machine", "cpu", "python", "packages"),
)
ABOUT = ("name", "tags", "notes")  # what is said of a run, and changes nothing in it
SET_ASIDE = ".set-aside"
BY_BATCHES = re.compile(r"derived\.(run_length\.batch|batches_per_epoch)")


def resume(
    path: Path,
    overrides: list[str],
    on_batch: OnBatch | None = None,
    is_shown: bool = True,
    stop_on: Sequence[signal.Signals] = STOP_SIGNALS,
) -> dict[str, Any]:
    """Continues the run in `path`, and returns what its run.json says at the end.

    Raises:
        InputError: no run, another process has it, no good checkpoint, or an override that would change the past.
    """
    run_dir = RunDir(path.absolute())
    record = run_dir.read_run(is_to_be_opened=True)
    if never_began(record):
        raise InputError(f"{path}: never began ({record['error']}); start its sweep again, once that is mended")
    takes_other_data = any(is_accepting(word) for word in overrides)
    overrides = [word for word in overrides if not is_accepting(word)]
    finished = f"{path}: finished, {ending(record)}"
    if record["state"] == "done" and not overrides:
        say(finished)
        return record
    run_dir.lock()
    try:
        record = run_dir.read_run(is_to_be_opened=True)  # nobody else writes it from here on
        text = whole_config(run_dir, record)
        refuse_interpolations(record)
        config = overridden(text, overrides)
        check_changes(path, record, OmegaConf.to_container(config), overrides)
        if record["state"] == "done" and not goes_further(record, OmegaConf.to_container(config)):
            return told(run_dir, record, OmegaConf.to_container(config), finished)
        keep_placement(config, record)
        resumed = Resumed(record, recover(run_dir, record), takes_other_data)
        keep_weights(config, record)
        with as_it_was_started(record, run_dir.path, starts=not resumed.is_begun):
            return train(config, run_dir, resumed.found.notes, resumed, on_batch, is_shown, stop_on)
    finally:
        run_dir.release()


def told(run_dir: RunDir, record: dict[str, Any], config: Any, finished: str) -> dict[str, Any]:
    """A finished run with other words about it: name, tags and notes are written; of the rest it is said that nothing
    is left to be done with them.
    """
    before, now_is = flatten(record["config"]), flatten(config)
    changed = [key for key in now_is if before.get(key) != now_is[key] and key != "quiet"]
    words = [key for key in ABOUT if key in changed]
    if words:
        record = {**record, **{key: config[key] for key in words}}
        record["config"] = {**record["config"], **{key: config[key] for key in words}}
        record["config_yaml"] = OmegaConf.to_yaml(
            OmegaConf.merge(OmegaConf.create(record["config_yaml"]), {key: config[key] for key in words})
        )
        run_dir.write_run(record)
        labels.restate(run_dir, record, words)
    said = [f"; {', '.join(f'{key}={json.dumps(config[key])}' for key in words)} written to run.json"] if words else []
    if useless := [key for key in changed if key not in ABOUT]:
        said.append(f"; nothing is left to be done with {', '.join(useless)}")
    say(finished + "".join(said))
    return record


@dataclass
class Resumed:
    """A run that goes on: its record, and what was recovered of it."""

    record: dict[str, Any]
    found: Recovered
    takes_other_data: bool = False
    data_changes: list[str] = field(default_factory=list)

    @property
    def is_begun(self) -> bool:
        """Whether a checkpoint brings the weights; else the run goes on from its beginning."""
        return self.found.state is not None

    def check_data(self, record: dict[str, Any]) -> None:
        """Holds the data of today against what the run began with; where that is accepted, it counts from here on.

        Raises:
            InputError: it is other data.
        """
        if self.found.state is None:  # what its checkpoints would have held is taken anew
            for known in record["data"].values():
                known.pop("is_saved", None)
        changes, possible = provenance.data_changes(self.record, record)
        self.data_changes = [*changes, *possible]
        if changes and not self.takes_other_data:
            raise InputError(
                f"{'; '.join(changes)}: this run's data has changed since it began; put it back, start a new run, or go"
                f" on with what there is: {ACCEPT}=true"
            )
        if not changes:
            record["data"] = self.record.get("data") or record["data"]
            return
        counts = [r["config"]["derived"]["batches_per_epoch"] for r in (self.record, record)]
        source = {key: value for key, value in self.record["config_source"].items() if key != "derived"}
        found = [key for key, value in flatten(source).items() if BY_BATCHES.search(str(value))]
        if counts[0] != counts[1] and found:
            raise InputError(
                f"{ACCEPT}=true: an epoch has {counts[1]} batches where it had {counts[0]}, on which {found[0]} hangs;"
                " start a new run from its weights: init_from=RUN_DIR"
            )

    def put_back(self, run_dir: RunDir, trainer: Trainer, record: dict[str, Any]) -> None:
        """Loads the state, cuts the files back to it, and carries the old record over into the new one."""
        if self.found.state is not None:
            try:
                trainer.state.load_state_dict(self.found.state)
            except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
                reason = f"has no {error}" if isinstance(error, KeyError) else f"does not fit its config; {error}"
                raise InputError(f"{self.found.path}: {reason}") from error
        if (
            self.takes_other_data and self.data_changes and trainer.progress.batch
        ):  # of an epoch that is another one now
            begun_anew = replace(trainer.progress, batch=0, evaluated=trainer.progress.step)
            trainer.state.progress, trainer.state.rng = begun_anew, None
        progress = trainer.progress
        if record["steps"] is None:
            trainer.max_steps += trainer.state.shift
        for path in self.found.unusable:  # nothing is deleted; but no later start may take one of them for the newest
            os.replace(path, path.with_name(f"{path.name}{SET_ASIDE}-{time.time_ns()}"))
        fsync_directory(run_dir.checkpoints)
        if self.found.path is not None:
            trainer.checkpoints.adopt(self.found.path)
        best = trainer.checkpoints.path("best")
        if self.found.best is not None and self.found.best != best:
            checkpoint.save(best, checkpoint.load(self.found.best))
        if (
            progress.best_epoch is not None
            and trainer.state.best_weights is None
            and not trainer.checkpoints.saves_best
        ):
            trainer.state.best_weights = trainer.load_best_weights()
        record["known_steps"] = self.found.known
        run_dir.write_run({**self.record, "known_steps": self.found.known})  # before the rows that prove it are cut off
        trainer.state.rows = [timeless(row) for row in self.found.rows]
        if self.found.rows == run_dir.metrics.read()[: len(self.found.rows)]:
            run_dir.metrics.cut_back(progress.evaluated)
        else:
            run_dir.metrics.replace(self.found.rows)
        run_dir.steps.cut_back(progress.step)
        labels.restate(run_dir, record, [key for key in ABOUT if record[key] != self.record.get(key)])
        record["resumed"] = [*self.record["resumed"], self.event(progress, record)]
        record |= {key: self.record.get(key) for key in KEPT}
        record |= {key: self.record[key] for key in ("replay_of", "overrides", "choices") if key in self.record}
        record |= {"epochs_done": progress.epoch, "steps_done": progress.evaluated}
        record |= {key: getattr(progress, key) for key in ("best_epoch", "best_step", "best_value")}
        rows = {row["step"]: row for row in run_dir.metrics.read()}
        evaluated, begun = sum(row["seconds"] or 0 for row in rows.values()), trainer.state.seconds
        record["seconds"] = round(max(evaluated + begun, self.record["seconds"]), 3)  # what is done again counts too
        trainer.seconds = record["seconds"] - begun
        for which, step in (("best", progress.best_step), ("last", progress.evaluated)):
            record[which] = {k: v for k, v in rows.get(step, {}).items() if k == "lr" or "/" in k}
        before, after = (
            [r["device"], f"{r['threads']} threads", *([r["placement"]] if r["device"] != "cpu" else [])]
            for r in (self.record, record)
        )
        if before != after:  # on a CPU the placement changes no bit
            log.warning(
                "another device, thread count or placement (%s; before: %s): from here on the last digits may differ",
                *(", ".join(map(str, facts)) for facts in (after, before)),
            )
        log.info("resumed after %s and %s", plural(progress.epoch, "epoch"), plural(progress.batch, "batch"))

    def event(self, progress: Progress, now_is: Mapping[str, Any]) -> dict[str, Any]:
        """This resumption, for run.json, with what is not any more as it was when the run began, which is said too."""
        changes = provenance.environment_changes(self.record, now_is)
        changes += provenance.code_changes(self.record.get("code"), now_is["code"])
        changes += self.data_changes
        if changes:
            log.warning("not all is as it was when this run began: %s; its figures may differ", "; ".join(changes))
        command = provenance.command_line()
        return {
            "at": now(),
            "epoch": progress.epoch,
            "batch": progress.batch,
            "command": command,
            "changes": changes,
            "code": now_is["code"],
        }
