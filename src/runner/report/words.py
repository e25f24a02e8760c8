"""Commands and configs as a page shows them: to copy, and with what differs from the defaults marked."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage.record_schema import JobRecord, read_record
from runner.terminal.words import typed
from runner.values import flatten

NOT_CHOSEN = ("derived.", "sweep.", "hydra.")  # worked out by us


def at(record: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key of nested records; None where there is none."""
    found: Any = record
    for name in key.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def command_block(words: Sequence[str]) -> dict[str, Any]:
    return {"kind": "command", "heading": "Command", "text": typed(words)}


def filled_in(path: Path) -> tuple[str, ...]:
    """Keys of a sweep's job that nobody has chosen: its engine gives it threads."""
    try:
        overrides = read_record(path / "job.json", JobRecord)["overrides"]
    except (OSError, InputError):
        return ()
    return () if any(word.lstrip("+").startswith("device.threads=") for word in overrides) else ("device.threads",)


def shortened(word: Any) -> str:
    """A value's text with no more digits than one reads: 1.753 for 1.752966915936135."""
    text = str(word)
    try:
        return f"{float(text):.4g}" if len(text) > 7 and "." in text else text
    except ValueError:
        return text


def label_of(setting: Mapping[str, Any], name: str) -> str:
    """What a legend calls a setting."""
    return ", ".join(f"{key}={shortened(value)}" for key, value in setting.items()) or name


def config_blocks(
    record: Mapping[str, Any], heading: str = "Config", not_chosen: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Every key of a run's config; of those that differ from the defaults also what the default is."""
    config = {key: value for key, value in flatten(record["config"]).items() if not key.startswith(NOT_CHOSEN)}
    if not config:
        return []
    source, usual = flatten(record.get("config_source") or {}), defaults()
    rows = []
    for key, value in config.items():
        is_other = key in source and (key not in usual or source[key] != usual[key]) and key not in not_chosen
        default = value_text(usual[key]) if is_other and key in usual else None
        rows.append({"key": key, "value": value_text(value), "isOther": is_other, "default": default})
    known = [] if source and usual else ["This record does not tell what was left at its default."]
    return [{"kind": "config", "heading": heading, "rows": rows, "lines": known}]


def value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


@functools.cache
def defaults() -> dict[str, Any]:
    """The config of a command without overrides, flat, with its interpolations as they are written."""
    from omegaconf import OmegaConf

    from runner.config.compose import compose

    try:
        _, composed = compose([])
    except InputError:
        return {}
    return flatten(OmegaConf.to_container(composed, resolve=False))
