"""Whose a checkpoint is: a run's id, and the digest of what its config says of the result."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from runner.storage.records import flatten
from runner.storage.rows import strict_json

# What cannot change what has been trained already. trainer.epochs has rules of its own.
FREE = (
    *("device.", "checkpoint.", "quiet", "name", "tags", "notes", "trust", "listeners", "tracking"),
    "trainer.log_every",
    *("dataloader.placement", "dataloader.memory_limit", "dataloader.num_workers", "dataloader.pin_memory"),
    *("dataloader.persistent_workers", "dataloader.prefetch_factor"),
)
BEGINNING = (
    "model_weights",
    "init_from",
    "strict",
    "sweep.",
    "derived.",
    "trainer.epochs",
)  # resumed, it differs here


def new_id() -> str:
    return secrets.token_hex(8)


def lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config less what may change when a run is continued: what all of its checkpoints have in common."""
    flat = flatten(strict_json(config))
    return {key: value for key, value in flat.items() if not key.startswith((*FREE, *BEGINNING))}


def config_digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(lasting(config), sort_keys=True).encode()).hexdigest()[:16]


def owner(run_id: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint carries of its run."""
    return {"run_id": run_id, "config_digest": config_digest(config)}
