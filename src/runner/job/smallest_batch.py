"""Whether the model can train on the smallest batch of an epoch: batch norm cannot on a single example."""

from typing import Any

import torch

from runner.errors import InputError
from runner.seeding import isolated
from runner.train.hidden import untouched
from runner.train.steps import to_device
from runner.train.task import Supervised


def smallest(num_examples: int, batch_size: int, drop_last: bool, limit: int | None) -> int:
    """The examples of the smallest training batch of an epoch."""
    whole, rest = divmod(num_examples, batch_size)
    is_last_taken = rest and not drop_last and (limit is None or whole < limit)
    return rest if is_last_taken else batch_size


def check_smallest_batch(task: Supervised, loader: Any, batch_size: int, options: Any) -> None:
    """Asks the model itself, in train mode, where a batch of an epoch is a single example.

    Raises:
        InputError: it refuses, with the keys to change.
    """
    device = next((p.device for p in task.parameters()), torch.device("cpu"))
    try:
        with isolated(0, device), torch.no_grad(), untouched(task):
            data, _ = to_device(loader.examples(1), device, options.channels_last)
            task.train()
            with task.precision.autocast():
                task.model(data)
    except Exception as error:
        raise InputError(
            f"dataloader.batch_size={batch_size}: a batch of an epoch holds a single example, and the model cannot"
            f" train on it ({' '.join(str(error).split())}); choose another size, or dataloader.drop_last=true"
        ) from error
