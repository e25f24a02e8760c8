"""With which overrides a run may be continued, and the way out for the others."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from runner.config.compose import quoted
from runner.errors import InputError
from runner.groups.length import length_of
from runner.storage.files import read_regular
from runner.storage.identity import FREE
from runner.terminal.words import pasted
from runner.values import flatten

ACCEPT = "accept_data_change"


def check_changes(run_dir: Path, record: dict[str, Any], config: Any, overrides: list[str]) -> None:
    """Refuses a config that would change what has been trained already.

    Raises:
        InputError: with the difference and the way out.
    """
    old, new = flatten(record["config"]), flatten(config)
    changed = {k: (old.get(k), new.get(k)) for k in {**old, **new} if old.get(k) != new.get(k)}
    kept = [*config_dir_flag(record), *(word for word in own_overrides(run_dir) if word != "quiet=true")]
    words = pasted([*kept, init_from(run_dir), *overrides])
    way_out = f"start a new run from its weights: python -m runner {words}"
    for key, (before, after) in changed.items():
        if key in ("trainer.epochs", "trainer.steps"):
            check_length(record, key.removeprefix("trainer."), after, way_out)
        elif not key.startswith(FREE) and not key.startswith("derived."):
            raise InputError(f"{key}: {before} -> {after} would change what this run has trained already; {way_out}")


def is_accepting(word: str) -> bool:
    """Whether a word says that other data is taken; it is no key of the config, and holds for one resumption.

    Raises:
        InputError: it says something else.
    """
    if word.partition("=")[0] == ACCEPT and word.lower() != f"{ACCEPT}=true":
        raise InputError(f"{word}: can only be true")
    return word.lower() == f"{ACCEPT}=true"


def goes_further(record: Mapping[str, Any], config: Any) -> bool:
    """Whether a finished run is asked for another length, or was stopped by a rule that is another now."""
    before = record["config"]
    is_other = config.get("stopping") != before.get("stopping") and record["stopped"] is not None
    return is_other or any(config["trainer"].get(key) != before["trainer"].get(key) for key in ("epochs", "steps"))


def init_from(run_dir: Path) -> str:
    """The override that starts from a run's weights, in quotes where Hydra's grammar needs them."""
    return (
        f"init_from={run_dir}"
        if re.fullmatch(r"[\w./-]+", str(run_dir), re.ASCII)
        else quoted("init_from", str(run_dir))
    )


def config_dir_flag(record: dict[str, Any]) -> list[str]:
    """The flag with which the run's own YAML files were found."""
    command = record.get("command") or []
    for flag in ("--config-dir", "-cd"):
        if flag in command[:-1]:
            return ["--config-dir", command[command.index(flag) + 1]]
    return []


def own_overrides(run_dir: Path) -> list[str]:
    """The overrides that the run was started with, as Hydra kept them."""
    path = run_dir / ".hydra" / "overrides.yaml"
    try:
        text = read_regular(path).decode()
        words = yaml.safe_load(text) or []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise InputError(f"{path}: must be a list of overrides")
    return words


def check_length(record: dict[str, Any], unit: str, length: Any, way_out: str) -> None:
    """trainer.epochs (or steps, where they are its length) may be raised, if nothing else in the config depends on it.

    Args:
        unit: epochs | steps.
    """
    trainer = record["config"]["trainer"]
    done, planned = record[f"{unit}_done"], trainer[unit]
    other = "steps" if unit == "epochs" else "epochs"
    if (trainer.get("steps") is None) is (unit == "steps"):
        raise InputError(f"trainer.{unit}={length}: this run's length is trainer.{other}={trainer[other]}; raise that")
    if not isinstance(length, int) or length < planned:
        raise InputError(
            f"trainer.{unit}={length}: this run is planned for {planned} {unit}, {done} of them are done;"
            " its length can only be raised"
        )
    per_epoch = (record["config"].get("derived") or {}).get("batches_per_epoch") or 1
    before = length_of(trainer, per_epoch)
    if before.steps % before.every:
        raise InputError(
            f"trainer.{unit}={length}: this run's end, which was evaluated, is no multiple of trainer.evaluate_every"
            f" ({trainer['evaluate_every']}), so that a longer run would not be evaluated there; {way_out}"
        )
    source = flatten({k: v for k, v in record["config_source"].items() if k != "derived"})
    for key, value in source.items():
        is_share = key == "averaging.start" and isinstance(value, float) and value < 1
        is_named = "lr_lambda" in str({key: value}) and re.search(r"\b(epochs|steps)\b", str(value))
        if is_share or is_named or re.search(r"derived\.run_length|trainer\.(epochs|steps)", str(value)):
            raise InputError(
                f"trainer.{unit}: {planned} -> {length} would change {key}={value}, the length that this run"
                f" was planned for; {way_out}"
            )
