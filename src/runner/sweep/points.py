"""`sweep.points`: settings that are given one by one, as a list or a CSV file: a plain sweep's jobs, a search's first.

Contract: what stands in a file or a list is a value of a key, never a further override: a text is put in quotes.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from runner.config.compose import quoted
from runner.errors import InputError
from runner.storage.files import read_regular, write_atomically
from runner.storage.inside import refuse_links

KEY, COPY = "sweep.points", "points.csv"
NAME = re.compile(r"\+{0,2}[A-Za-z_][\w./@-]*", re.ASCII)
PLAIN = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.ASCII | re.IGNORECASE)
WHOLE, NUMBER = re.compile(r"[+-]?\d{1,30}"), re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None}


@dataclass(frozen=True)
class Point:
    where: str  # for messages
    settings: dict[str, Any]

    @property
    def words(self) -> list[str]:
        return [f"{key}={written(value)}" for key, value in self.settings.items()]


def read_points(given: Any) -> list[Point]:
    """What sweep.points says: nothing, the name of a CSV file, or a list of settings.

    Raises:
        InputError: names the file and the line, or the place in the list.
    """
    plain = OmegaConf.to_container(given, resolve=False) if OmegaConf.is_config(given) else given
    if plain is None:
        return []
    if isinstance(plain, str) and plain:
        return of_file(Path(plain))
    if not isinstance(plain, list) or not plain:
        raise InputError(
            f"{KEY}={plain}: must be a CSV file, or a list of settings, as in [{{optimizer.lr: 0.1, scheduler: step}}]"
        )
    points = []
    for number, settings in enumerate(plain):
        where = f"{KEY}[{number}]"
        if not isinstance(settings, dict) or not settings:
            raise InputError(f"{where}: must be keys and values, as in {{optimizer.lr: 0.1, scheduler: step}}")
        for key, value in settings.items():
            refuse_key(where, str(key))
            refuse_value(f"{where}: {key}", value)
        points.append(Point(where, {str(key): value for key, value in settings.items()}))
    return points


def of_file(path: Path) -> list[Point]:
    """The rows of a CSV file, whose first line has the keys."""
    try:
        text = read_regular(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise InputError(f"{KEY}={path}: cannot be read: {reason}") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    keys: list[str] = []
    points = []
    try:
        for cells in reader:
            where = f"{path}: line {reader.line_num}"
            if not cells:
                continue
            if not keys:
                keys = header(where, [cell.strip() for cell in cells])
                continue
            if len(cells) != len(keys):
                raise InputError(
                    f"{where}: has {len(cells)} cells, and there are {len(keys)} columns: {', '.join(keys)}"
                )
            settings = {key: value_of(f"{where}: {key}", cell) for key, cell in zip(keys, cells, strict=True)}
            points.append(Point(where, settings))
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from error
    if not points:
        raise InputError(f"{path}: has no rows; its first line has the keys, each other line a job's values")
    return points


def header(where: str, keys: list[str]) -> list[str]:
    for key in keys:
        if len(keys) == 1 and re.search(r"[;\t|]", key):
            raise InputError(f"{where}: {key}: columns are separated by commas")
        refuse_key(where, key)
        if keys.count(key) > 1:
            raise InputError(f"{where}: column {key} is there twice")
    return keys


def refuse_key(where: str, key: str) -> None:
    if not NAME.fullmatch(key):
        raise InputError(f"{where}: {key or 'an empty column'}: must be a key, as optimizer.lr")
    if re.split(r"[./@]", key.lstrip("+"))[0] in ("hydra", "sweep", "trust"):
        raise InputError(f"{where}: {key}: belongs to the command, not to a job of it")


def value_of(where: str, cell: str) -> Any:
    """A cell's value: a number, true, false, null, a list as JSON, else text; text that looks like one of these stands
    in double quotes.
    """
    text = cell.strip()
    if not text:
        raise InputError(f"{where}: is empty; every row gives every key a value (null for none)")
    if text in WORDS:
        return WORDS[text]
    if WHOLE.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text):
        return float(text)
    value: Any = text
    if text[0] in "[{" or (text[0] == text[-1] == '"' and len(text) > 1):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f'{where}={text}: a list is written as JSON, as in [64, 32] or ["a", "b"], in quotes for its commas'
            ) from error
    refuse_value(where, value)
    return value


def refuse_value(where: str, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            refuse_value(where, item)
    elif isinstance(value, str):
        if "${" in value or not value.isprintable():
            raise InputError(f"{where}={value!r}: must be a value: no interpolation, no line break")
    elif not isinstance(value, (bool, int, float, type(None))):
        raise InputError(f"{where}={value}: must be a number, true, false, null, text or a list of these")


def written(value: Any) -> str:
    """A value as an override has it."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) else quoted("", value)[1:]
    return repr(value) if isinstance(value, float) else json.dumps(value)


def refuse_twice(points: Sequence[Point], given: Sequence[str]) -> None:
    """Refuses a key that both the points and the command's other words give."""
    for point in points:
        for key in point.settings:
            if key.lstrip("+") in (other.lstrip("+") for other in given):
                raise InputError(f"{point.where}: {key}: is given in the command too; give it in one place")


def keep_copy(given: Any, place: Path) -> None:
    """Leaves a copy of the CSV file in the sweep's folder: it goes on from there, whatever becomes of the file."""
    if isinstance(given, str) and Path(given).absolute() != (place / COPY).absolute():
        write_atomically(place / COPY, read_regular(Path(given)))


def from_copy(words: Sequence[str], place: Path) -> list[str]:
    """A sweep's words, with its own copy of a CSV file instead of the file."""
    refuse_links(place, (COPY,))
    if not (place / COPY).exists():
        return list(words)
    named = re.compile(rf"\+{{0,2}}{re.escape(KEY)}=(?!\[|null$)")
    return [quoted(KEY, str(place / COPY)) if named.match(word) else word for word in words]


def is_points(override: Any) -> bool:
    """Whether a word is sweep.points, which is no word of a job."""
    return bool(override.get_key_element().lstrip("+") == KEY)
