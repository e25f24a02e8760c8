"""The weights in a file: in a checkpoint of ours, or in one that holds nothing else."""

import os
from pathlib import Path
from typing import Any

import torch

from runner.errors import InputError
from runner.storage.checkpoint import MAGIC, TRAILER_LENGTH, Damaged, load, torch_load
from runner.storage.files import open_regular

OF_WEIGHTS = ("model_state_dict", "criterion_state_dict", "task_state_dict")


def read_weights(path: Path, key: str = "model_weights") -> dict[str, Any]:
    """The state_dict in a checkpoint of ours or in a file that holds nothing else.

    Raises:
        InputError: a file that is neither.
    """
    if path.is_dir():
        raise InputError(f"{key}: is a folder; a run's last weights are init_from={path}")
    if path.exists() and not path.is_file():  # a device or a pipe may never end
        raise InputError(f"{key}: {path} is not a regular file")
    try:
        with open_regular(path) as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TRAILER_LENGTH))
            is_ours = file.read().startswith(MAGIC)
        state = load(path) if is_ours else torch_load(path)
    except OSError as error:
        raise InputError(f"{key}: {path} cannot be read ({error.strerror})") from error
    except Damaged as error:
        raise InputError(f"{key}: {error}") from error
    try:
        state = evaluated(state) if is_ours else state
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{key}: {path} holds an average of the weights that cannot be read") from error
    weights = state["model_state_dict"] if isinstance(state, dict) and "model_state_dict" in state else state
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise InputError(f"{key}: {path} holds neither a checkpoint of the runner nor a state_dict")
    return weights


def evaluated(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with the weights that its monitored figure is of: those that train, or their average."""
    average = state.get("averaging_state_dict")
    return averaged(state) if average is not None and average["is_chosen"] and average["count"] else state


def averaged(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with the average of the weights in their place.

    Raises:
        KeyError: it holds none.
    """
    average = state["averaging_state_dict"]
    made = {**state, **{key: dict(state[key]) for key in OF_WEIGHTS if key in state}}
    for name, tensor in {**average["parameters"], **average["statistics"]}.items():
        owner, _, rest = name.partition(".")
        key, own = (f"{owner}_state_dict", rest) if owner in ("model", "criterion") else ("task_state_dict", name)
        made[key][own] = tensor
    return made
