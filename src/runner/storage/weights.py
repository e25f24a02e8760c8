"""The weights in a file: in a checkpoint of ours, or in one that holds nothing else."""

import os
from pathlib import Path
from typing import Any

import torch

from runner.errors import InputError
from runner.storage.checkpoint import MAGIC, TRAILER_LENGTH, Damaged, load, torch_load
from runner.storage.files import open_regular


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
    weights = state["model_state_dict"] if isinstance(state, dict) and "model_state_dict" in state else state
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, torch.Tensor) for v in weights.values()):
        raise InputError(f"{key}: {path} holds neither a checkpoint of the runner nor a state_dict")
    return weights
