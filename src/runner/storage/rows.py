"""A .jsonl file: one JSON object a line."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage.files import fsync_directory, read_regular, write_atomically
from runner.storage.inside import unfollowed
from runner.storage.record_schema import row_of


def strict_json(value: Any) -> Any:
    """The value as strict JSON takes it: numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(item) for item in value]
    return value


def axis_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What tells a run's rows apart: the epoch, or, where it was evaluated inside epochs, the step."""
    epochs = [row.get("epoch") for row in rows]
    return "epoch" if len(set(epochs)) == len(epochs) else "step"


TIMES = ("seconds", "examples_per_second")


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what differs from one time to the next: all that a checkpoint holds of it."""
    return {key: value for key, value in row.items() if key not in TIMES}


def line_of(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(strict_json(row)) + "\n").encode()


class Rows:
    """A .jsonl file of a run. `key` counts its rows: "epoch" or "step"."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.is_name_durable = False

    def append(self, row: Mapping[str, Any], durable: bool = True) -> None:
        """Adds a row; durable: it outlives a power cut once this returns."""
        with open(self.path, "ab", opener=unfollowed) as file:
            file.write(line_of(row))
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if durable:
            self._keep_name()

    def sync(self) -> None:
        """Makes all rows durable."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
            self._keep_name()

    def _keep_name(self) -> None:
        """Once: a file's own fsync keeps its content, but not a new file's name in its folder."""
        if not self.is_name_durable:
            fsync_directory(self.path.parent)
            self.is_name_durable = True

    def read(self) -> list[dict[str, Any]]:
        """The rows up to the first line that is none: a power cut may leave anything behind the durable ones. No file:
        no rows.
        """
        return [row for _, row in self._whole()[0]]

    def problem(self) -> str | None:
        """What a reader must be told: from which line on there are no rows. A last line that does not end is none."""
        whole, is_all = self._whole()
        return None if is_all else f"{self.path}: line {len(whole) + 1} is no row; it and what follows are not read"

    def cut_back(self, last: int) -> None:
        """Keeps the rows up to and with row[key] == last, byte for byte."""
        content = b"".join(line + b"\n" for line, row in self._whole()[0] if row[self.key] <= last)
        if self.path.exists() and read_regular(self.path) != content:
            write_atomically(self.path, content)

    def replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Makes these the file's rows."""
        write_atomically(self.path, b"".join(line_of(row) for row in rows))

    def _whole(self) -> tuple[list[tuple[bytes, dict[str, Any]]], bool]:
        """(line, row) of the lines that end, up to the first that is no row; and whether none of them is.

        Raises:
            InputError: there is something that cannot be read.
        """
        try:
            lines = read_regular(self.path).split(b"\n")[:-1]
        except FileNotFoundError:
            return [], True
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        whole = []
        for line in lines:
            if (row := row_of(line, self.key)) is None:
                break
            whole.append((line, row))
        return whole, len(whole) == len(lines)
