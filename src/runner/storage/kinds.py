"""What a value of JSON may be, as a type hint: whether one fits, and a hint in words."""

import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

UNSET: Any = object()  # the default of a key that a record may lack, and then goes on without
Check = Callable[[Any], bool]
PLAIN: dict[Any, tuple[type, ...]] = {
    bool: (bool,),
    str: (str,),
    int: (int,),
    float: (float, int),
    types.NoneType: (types.NoneType,),
}


class Range(NamedTuple):
    """What a number may be, in an Annotated hint."""

    least: int
    most: float = math.inf


def field(kind: Any) -> tuple[Any, Any]:
    """(type hint, default) of a key; without a default it is required."""
    return kind if isinstance(kind, tuple) else (kind, ...)


def check_of(hint: Any) -> Check:
    """What tells whether a value of JSON is of a type hint. A whole number is a number, and true is none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value: True
    if isinstance(hint, Mapping):
        required = [key for key, kind in hint.items() if field(kind)[1] is ...]
        keys = {key: check_of(field(kind)[0]) for key, kind in hint.items()}
        return lambda value: (
            isinstance(value, dict)
            and all(key in value for key in required)
            and all(fits(value[key]) for key, fits in keys.items() if key in value)
        )
    if origin is Annotated:
        inner, (least, most) = check_of(parts[0]), parts[1]
        return lambda value: inner(value) and least <= value <= most
    if origin in (typing.Union, types.UnionType):
        kinds = frozenset(kind for part in parts for kind in PLAIN.get(part, ()))
        others = [check_of(part) for part in parts if part not in PLAIN]
        return lambda value: type(value) in kinds or any(fits(value) for fits in others)
    if origin is Literal:
        return lambda value: type(value) is str and value in parts
    if origin in (list, dict) and (plain := plain_kinds(parts[-1])):  # all items in one go
        if origin is list:
            return lambda value: type(value) is list and plain.issuperset(map(type, value))
        return lambda value: type(value) is dict and plain.issuperset(map(type, value.values()))
    if origin is list:
        item = check_of(parts[0])
        return lambda value: type(value) is list and all(map(item, value))
    if origin is dict:
        item = check_of(parts[1])
        return lambda value: type(value) is dict and all(map(item, value.values()))
    kinds = frozenset(PLAIN[hint])
    return lambda value: type(value) in kinds


def plain_kinds(hint: Any) -> frozenset[type]:
    """The types that a hint admits, where a value's type alone decides; else none."""
    hints = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if not all(isinstance(each, type) and each in PLAIN for each in hints):
        return frozenset()
    return frozenset(kind for each in hints for kind in PLAIN[each])


def shown(value: Any) -> str:
    """The beginning of a value, as JSON has it; of a container only what it is."""
    text = kind_of(value) if isinstance(value, (list, dict)) else json.dumps(value)
    return text if len(text) < 60 else f"{text[:60]}..."


def in_words(hint: Any) -> str:
    """A type hint of a shape, in JSON's words."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(in_words(part) for part in parts)
    if origin is Annotated:
        least, most = parts[1]
        return f"{in_words(parts[0])}, at least {least}" + (f" and at most {most}" if most < math.inf else "")
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is list:
        return "a list" if parts[0] is Any else f"a list, each {in_words(parts[0])}"
    if origin is dict:
        return "an object" if parts[1] is Any else f"an object, each {in_words(parts[1])}"
    words = {bool: "true or false", str: "a text", int: "a whole number", float: "a number", types.NoneType: "null"}
    return words.get(hint, "an object") if isinstance(hint, type) else f"an object of {', '.join(hint)}"


def kind_of(value: Any) -> str:
    return {list: "a list", dict: "an object", str: "a text", type(None): "null"}.get(type(value), "a number")
