"""Whose a checkpoint is: a run's id, and the digest of what its config says of the result."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any

from runner.storage.rows import strict_json
from runner.values import flatten

# What cannot change what has been trained already. trainer.epochs has rules of its own.
FREE = (
    *("device.", "checkpoint.", "quiet", "name", "tags", "notes", "trust", "listeners", "tracking", "stopping."),
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
    "trainer.steps",
)  # resumed, it differs here
# What changes no result, so that jobs of a sweep that differ in it are one.
NO_RESULT = (
    *("sweep.", "derived.", "checkpoint.", "listeners", "tracking", "name", "tags", "notes", "trust", "quiet"),
    *("dataloader.num_workers", "dataloader.placement", "dataloader.memory_limit", "dataloader.pin_memory"),
    *("dataloader.persistent_workers", "dataloader.prefetch_factor", "trainer.log_every"),
)
# Keys that came later, and what says the same as a config without them: older sweeps keep their identities.
LATER = dict.fromkeys(("dataset.transform_train", "dataset.val", "dataset.val_root", "dataloader.eval_collate_fn"))
LATER |= {"task._target_": "runner.tasks.Supervised", "stopping.min_delta": 0.0, "stopping.divergence_after": 1}
LATER |= dict.fromkeys(f"stopping.{key}" for key in ("patience", "threshold", "divergence", "max_minutes"))
LATER |= {
    "averaging.type": "none",
    "dataset.evaluate": None,
    "trainer.overfit_batches": None,
    "trainer.steps": None,
    "trainer.evaluate_every": None,
    "freeze": [],
    "unfreeze_at": None,
    "optimizer.groups": [],
    "optimizer.no_decay": False,
}


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
