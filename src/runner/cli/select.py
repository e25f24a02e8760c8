"""Which runs a verb is about: columns by the names that people give them, conditions (`--where`), and the order."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from runner.errors import InputError
from runner.values import is_number

Row = Mapping[str, Any]
OTHER_NAMES = {
    "status": "state",
    "tag": "tags",
    "note": "notes",
    "run": "path",
    "folder": "path",
    "best": "best_value",
    "best epoch": "best_epoch",
}
OPERATORS = {
    "!=": "ne",
    "<=": "le",
    ">=": "ge",
    "==": "eq",
    "=": "eq",
    "<": "lt",
    ">": "gt",
    "~": "matches",
}
CONDITION = re.compile(r"\s*(.+?)\s*(!=|<=|>=|==|=|<|>|~)\s*(.*)", re.DOTALL)
WORDS = {"true": True, "false": False, "null": None, "none": None}
FORM = "must be KEY, one of = != < <= > >= ~, and a value, as 'val/accuracy>0.9' or 'scheduler=cosine'"


def all_columns(rows: Sequence[Row]) -> list[str]:
    """Every column that one of the rows has, each once."""
    known: dict[str, Any] = {}
    for row in rows:
        known.update(row)
    return list(known)


class Columns:
    """The columns of some runs, by the names that a person gives them: a column's own, a group, a config key (its last
    part is enough where only one has it), or a metric, which is that of the best epoch.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.known = dict.fromkeys(all_columns(rows))

    def named(self, key: str, flag: str) -> list[str]:
        """The columns that a key may stand for, the first that a run has counts.

        Raises:
            InputError: no run has it; names the nearest.
        """
        own = OTHER_NAMES.get(key, key)
        names = [own, f"choices.{key}", f"config.{key}"]
        if "/" not in key and not any(name in self.known for name in names):
            ending = [name for name in self.known if name.startswith("config.") and name.endswith(f".{key}")]
            names += ending if len(ending) == 1 else []
        names += [f"best/{key}", key.replace("test/", "test/best/", 1)]
        if key == "lr" and "config.optimizer.lr" in self.known:
            names = ["config.optimizer.lr"]
        found = [name for name in names if name in self.known]
        if not found:
            raise InputError(f"{flag}: no run has the key {key!r}; nearest: {', '.join(self.nearest(key))}")
        return found

    def nearest(self, key: str) -> list[str]:
        import difflib

        from runner.config.names import nearest

        names = list(dict.fromkeys(shown_name(name) for name in self.known))
        ends = {name.rpartition(".")[2].rpartition("/")[2]: name for name in reversed(names)}
        near = nearest(key, names)
        close = difflib.get_close_matches(key, names, 3, 0.5)
        close += [ends[end] for end in difflib.get_close_matches(key.rpartition(".")[2], list(ends), 3, 0.6)]
        return list(dict.fromkeys([*([near] if near else []), *close]))[:4] or ["val/accuracy", "state", "path"][:3]


def shown_name(column: str) -> str:
    """A column by the name that a person gives it."""
    return re.sub(r"^(config\.|choices\.|best/)", "", column)


def value_of(row: Row, names: Sequence[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def where(rows: Sequence[Row], conditions: Sequence[str]) -> list[Any]:
    """The rows that fulfil every condition: KEY, an operator, a value. `=` and `!=` compare as JSON or as text, and
    look into a list; `<` and its kin compare numbers, or text where it is none (a date); `~` is a regular expression.

    Raises:
        InputError: a condition of another form, or on a key that no run has.
    """
    found = list(rows)
    columns = Columns(rows)
    for condition in (one for given in conditions for one in parts(given, columns)):
        parsed = CONDITION.fullmatch(condition)
        if parsed is None:
            raise InputError(f"--where {condition}: {FORM}")
        key, operator, text = parsed.groups()
        names = columns.named(key, f"--where {condition}")
        holds = test_of(OPERATORS[operator], text, f"--where {condition}")
        if operator in ("<", "<=", ">", ">=") and not any(comparable(value_of(row, names), text) for row in rows):
            kinds = ", ".join(dict.fromkeys(type(value_of(row, names)).__name__ for row in rows))
            raise InputError(f"--where {condition}: {text!r} cannot be compared with the values of {key} ({kinds})")
        found = [row for row in found if holds(value_of(row, names))]
    return found


def parts(given: str, columns: Columns) -> list[str]:
    """The conditions in one word: a comma parts two where what follows begins with a known key and an operator."""
    cut, start = [], 0
    for comma in re.finditer(",", given):
        parsed = CONDITION.match(given, comma.end())
        if parsed is None or given.count("[", 0, comma.start()) > given.count("]", 0, comma.start()):
            continue
        try:
            columns.named(parsed[1], "")
        except InputError:
            continue
        cut.append(given[start : comma.start()])
        start = comma.end()
    return [*cut, given[start:]]


def meant(text: str) -> Any:
    """What a value on the command line says: JSON, a number as Python writes it, or text."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for read in (json.loads, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def comparable(value: Any, text: str) -> bool:
    wanted = meant(text)
    return (is_number(value) and is_number(wanted)) or (isinstance(value, str) and isinstance(wanted, str))


def test_of(operator: str, text: str, flag: str) -> Callable[[Any], bool]:
    wanted = meant(text)
    if operator == "matches":
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise InputError(f"{flag}: {text!r} is no regular expression ({error})") from error
        return lambda value: any(pattern.search(as_text(item)) for item in listed(value))
    if operator in ("eq", "ne"):
        is_wanted = operator == "eq"
        return lambda value: any(item in (wanted, text) for item in [value, *listed(value)]) is is_wanted
    compare: Callable[[Any, Any], bool] = {
        "lt": lambda a, b: a < b,
        "le": lambda a, b: a <= b,
        "gt": lambda a, b: a > b,
        "ge": lambda a, b: a >= b,
    }[operator]
    return lambda value: comparable(value, text) and compare(value, wanted)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)


def ordered(rows: Sequence[Any], key: str) -> list[Any]:
    """Sorted by a key, the best first: a metric that is better low rises, other numbers fall, text rises. `-key`: the
    other way round. Runs without a value come last.
    """
    is_reversed, key = key.startswith("-"), key.removeprefix("-")
    names = Columns(rows).named(key, f"--sort {key}")
    known = [row for row in rows if value_of(row, names) is not None]
    is_rising = True
    if all(is_number(value_of(row, names)) for row in known):
        is_rising = any((row["mode"] if names == ["best_value"] else mode_of(row, key)) == "min" for row in known)
        known.sort(key=lambda row: value_of(row, names), reverse=is_rising == is_reversed)
    else:
        known.sort(key=lambda row: as_text(value_of(row, names)), reverse=is_reversed)
    return known + [row for row in rows if value_of(row, names) is None]


def mode_of(row: Row, key: str) -> str:
    """Which way a key of a run is better, as run.json says it; an older one knows of what it monitored only."""
    if row["monitor"] == key:
        return str(row["mode"])
    if "/" not in key:
        return "max"
    said = [mode for name, mode in row["modes"].items() if key == name or key.endswith(f"/{name}")]
    return str(said[0]) if said else "min" if key.endswith("loss") else "max"
