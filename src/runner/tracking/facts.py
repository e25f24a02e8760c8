"""What trackers take of a run's rows, config and record."""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from typing import Any

from runner.errors import InputError


def need(module: str, key: str, packages: str) -> None:
    """Raises an InputError where a tracker's package is not installed."""
    try:
        is_there = importlib.util.find_spec(module) is not None
    except ValueError:  # an import of it failed before
        is_there = False
    if not is_there:
        raise InputError(f"{key}: the package {module} is missing; pip install {packages}")


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A row's finite numbers; the others have no place in a chart, and are in the run's own rows."""
    for name, value in row.items():
        if name not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value):
            yield name, value


def finals(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The test figures of a finished run, on its last and on its best weights."""
    for which, figures in (record.get("test") or {}).items():
        yield from ((f"test/{which}/{name}", value) for name, value in scalars(figures))
