"""All objects of a run, made again from its record with the weights of a checkpoint, and what has changed since."""

import logging
from collections.abc import Mapping
from typing import Any

from runner.job import own_code
from runner.job.build import build
from runner.job.built import Built
from runner.job.own_code import as_it_was_started
from runner.job.saved import KINDS, Saved, fitting, keep_weights, saved_config, say_changes
from runner.storage import provenance
from runner.train.weights import load_weights

log = logging.getLogger("runner")


def rebuilt(saved: Saved) -> Built:
    """The run's objects, made again from its resolved config, with the checkpoint's weights; other data is said."""
    with as_it_was_started(saved.record, saved.folder):
        say_changes(saved.record, saved.folder)
        config = saved_config(saved.record)
        keep_weights(config, saved.record)
        built = build(config, is_begun=True)
        for changes in provenance.data_changes(saved.record, today(built)):
            for change in changes:
                log.warning("note: %s; what follows is of the data of today", change)
    with fitting(saved):
        load_weights(built.trainer.task, saved.state)
    return built


def today(built: Built) -> dict[str, Any]:
    """What a record made now would say of the objects' surroundings."""
    code = provenance.code_state(*provenance.git_state(), own_code.digests(own_code.find(built.config)))
    placed = {"threads": built.device.threads, "device": str(built.device.torch)}
    return {**provenance.environment(), **placed, "code": code, "data": built.data}


def changed_since(record: Mapping[str, Any], built: Built) -> list[str]:
    """What a figure depends on and is not what it was, in words."""
    now = today(built)
    changes = [*provenance.code_changes(record.get("code"), now["code"]), *provenance.environment_changes(record, now)]
    changes += [f"{key}: {record[key]} -> {now[key]}" for key in ("device", "threads") if record[key] != now[key]]
    return [*changes, *(change for found in provenance.data_changes(record, now) for change in found)]


def recorded(saved: Saved, which: str, split: str) -> Mapping[str, Any]:
    """The figures that the run itself has found on a part of its data with these weights, as far as it says."""
    record, state = saved.record, saved.state
    progress, average = state.get("progress") or {}, state.get("averaging_state_dict") or {}
    if state.get("run_id") != record.get("id") or progress.get("step") != progress.get("evaluated"):
        return {}
    kind, is_chosen = average.get("type", "none"), bool(average.get("is_chosen") and average.get("count"))
    is_average = which != "raw" if which in KINDS else is_chosen
    if split == "test" and record["test"]:
        steps = {record.get("best_step"): "best", record["steps_done"]: "last"}
        name = which if which in ("best", "last") else steps.get(progress.get("step"))
        name = which if which in KINDS and is_average != is_chosen else "last" if which in KINDS else name
        return record["test"].get(name) or {}
    is_beside = (record["config"].get("averaging") or {}).get("evaluate") == "beside"
    if not is_beside and average.get("count") and not is_average:
        return {}  # the average alone was evaluated
    part = f"{split}_{kind}/" if is_beside and is_average else f"{split}/"
    row: dict[str, Any] = next((row for row in state.get("rows") or () if row["step"] == progress["step"]), {})
    return {key.removeprefix(part): value for key, value in row.items() if key.startswith(part)}
