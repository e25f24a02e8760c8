"""The names of the metrics in a row: what can be monitored."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from runner.errors import InputError
from runner.metrics import can_be_saved
from runner.values import guess


def prefixed(split: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{split}/{name}": value for name, value in values.items()}


def known(metrics: Iterable[str], splits: Sequence[str]) -> list[str]:
    """The metrics in every row: the rate is there too, but nothing gets better with it."""
    return [f"{split}/{name}" for split in ("train", *splits) for name in ("loss", *metrics)]


def check_monitors(monitor: str, of_scheduler: str | None, metrics: Iterable[str], splits: Sequence[str]) -> None:
    """Refuses a monitored metric that is in no row.

    Args:
        splits: what is evaluated each epoch, as the rows name it.

    Raises:
        InputError: with all that there are.
    """
    names = known(metrics, splits)
    for key, name in (("trainer.monitor", monitor), ("scheduler.monitor", of_scheduler)):
        if name is not None and name not in names:
            raise InputError(f"{key}={name}: is not logged; {guess(name, names)}choices: {', '.join(names)}")


def check_saved(metrics: Mapping[str, Any], is_inside: bool) -> None:
    """Refuses a metric that a checkpoint inside an epoch could not hold, where there will be one.

    Raises:
        InputError: names it, and the keys to leave out.
    """
    for name, metric in metrics.items() if is_inside else ():
        if not can_be_saved(metric):
            raise InputError(
                f"metrics.{name}: has no state_dict and load_state_dict, so a checkpoint inside an epoch"
                " cannot hold it; leave out checkpoint.every_batches and checkpoint.every_minutes, and evaluate at each"
                " epoch that checkpoint.every saves"
            )
