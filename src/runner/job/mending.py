"""What lies beside a run's checkpoints, held against them: whose they are, and rows that were lost or damaged."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage.checkpoint import Damaged
from runner.storage.identity import lasting
from runner.storage.rows import TIMES, axis_of, strict_json, timeless
from runner.storage.run_dir import RunDir
from runner.train.events import Progress
from runner.values import flatten


def whole_config(run_dir: RunDir, record: Mapping[str, Any]) -> str:
    """config_yaml, which must hold what `config` holds.

    Raises:
        InputError: it is no config, or says something else than `config`.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    text: str = record["config_yaml"]
    try:
        found = OmegaConf.to_container(OmegaConf.create(text))
    except (ValueError, RecursionError, AssertionError, YAMLError, OmegaConfBaseException) as error:
        what = " ".join(str(error).split())[:200] or "it is a single value"  # which OmegaConf asserts it is not
        raise InputError(f"{run_dir.run_json}: config_yaml cannot be read ({what})") from error
    ours, theirs = flatten(strict_json(found)), flatten(record["config"])
    for key in {**ours, **theirs}:
        if ours.get(key) != theirs.get(key) and key not in ("name", "tags", "notes"):  # these change no run
            raise InputError(
                f"{run_dir.run_json}: {key} is {theirs.get(key)} in its config and {ours.get(key)} in its config_yaml"
            )
    return text


WEIGHTS = ("model_state_dict",)
TO_GO_ON = (*WEIGHTS, "optimizer_state_dict", "scheduler_state_dict", "lr", "metrics", "rows", "progress")
COUNTERS = tuple(field.name for field in fields(Progress))


def check_keys(path: Path, state: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Refuses a checkpoint that is whole by its digest and lacks what is needed of it.

    Raises:
        Damaged: names the file and the key.
    """
    missing = [key for key in keys if key not in state]
    if not missing and "progress" in keys:
        progress = state["progress"]
        missing = [f"progress.{key}" for key in COUNTERS if not isinstance(progress, Mapping) or key not in progress]
        if not missing:
            try:
                place = Progress.of(progress)
            except (TypeError, ValueError) as error:
                raise Damaged(f"{path}: its progress cannot be read ({error})") from error
            is_inside = place.step != place.evaluated
            inside = [("rng", is_inside or place.batch > 0), ("running", is_inside)]
            missing = [key for key, is_needed in inside if is_needed and key not in state]
    if missing:
        raise Damaged(f"{path}: has no {missing[0]}")


def check_owner(path: Path, state: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Refuses a checkpoint of another run, or one that was saved under another config than the record's.

    Raises:
        Damaged: names the file and what tells the two runs apart.
    """
    differing = config_differences(state, record)
    run_id = state.get("run_id")
    if run_id != record.get("id"):
        what = "; ".join(differing[:3]) or f"its id is {run_id}, this run's is {record.get('id')}"
        raise Damaged(f"{path}: belongs to another run ({what})")
    if differing:
        raise Damaged(f"{path}: was saved under another config than run.json's ({'; '.join(differing[:3])})")


def config_differences(state: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """The keys in which the checkpoint's config and the record's differ, less what may change when a run goes on."""
    from omegaconf import OmegaConf

    if not state.get("config") or state["config"] == record["config_yaml"]:
        return []
    theirs = lasting(OmegaConf.to_container(OmegaConf.create(state["config"])))  # type: ignore[arg-type]
    ours = lasting(record["config"])
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return [f"{key} is {theirs.get(key)} there, {ours.get(key)} here" for key in keys]


def whole_rows(
    run_dir: RunDir, state: Mapping[str, Any] | None, path: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of metrics.jsonl up to the checkpoint's epoch, and what to say about them: every checkpoint holds them,
    so what the file has lost is made good.
    """
    if state is None:
        return [], []
    found, kept = run_dir.metrics.read(), [strict_json(row) for row in state["rows"]]
    if [timeless(row) for row in found[: len(kept)]] == kept:
        return found[: len(kept)], []
    good = {row["step"]: row for row in found if timeless(row) in kept}
    rows = [good.get(row["step"], {**row, **dict.fromkeys(TIMES)}) for row in kept]
    assert path is not None
    key = axis_of(kept)
    what = _what_is_wrong([row[key] for row in good.values()], [row[key] for row in kept], f"{key}s")
    return rows, [f"{run_dir.metrics.path.name}: {what}; made good from {path.name}"]


def _what_is_wrong(found: Sequence[Any], wanted: Sequence[int], what: str) -> str:
    lost = sorted(set(wanted) - set(found))
    if not lost:
        return "holds rows twice or out of order"
    names = ", ".join(map(str, lost[:10])) + (", ..." if len(lost) > 10 else "")
    return f"the rows of {what} {names} are lost or damaged"


def lost_steps(run_dir: RunDir, record: Mapping[str, Any], step: int) -> list[str]:
    """What to say of rows of steps.jsonl that are lost. Where log_every was changed on the way, nobody knows which
    there were.
    """
    every = record["config"]["trainer"]["log_every"]
    changed = any("trainer.log_every" in " ".join(event["command"]) for event in record.get("resumed", []))
    if not every or changed:
        return []
    steps = [row["step"] for row in run_dir.steps.read() if row["step"] <= step]
    lost = sorted(set(range(every, step + 1, every)) - set(steps))
    if not lost:
        return []
    return [f"{run_dir.steps.path.name}: {len(lost)} rows from step {lost[0]} on are lost; nothing else holds them"]
