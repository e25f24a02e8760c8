"""Plain values: by their dotted keys, by arithmetic, and whether one is of a kind, by a rule or by a type hint."""

import ast
import collections.abc
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SERIES = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}


class Rule(NamedTuple):
    """A kind, as a type hint, and a range; of a list, the range of each item."""

    hint: Any
    least: float | None = None
    above: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Raises:
        ValueError: `name=value: must be ...`
        """
        numbers = [v for v in (value if isinstance(value, list) else [value]) if is_number(v)]
        is_right = fits(value, self.hint) and value != ""
        is_right &= all(math.isfinite(n) for n in numbers)
        is_right &= self.least is None or all(n >= self.least for n in numbers)
        is_right &= self.above is None or all(n > self.above for n in numbers)
        is_right &= self.most is None or all(n <= self.most for n in numbers)
        is_right &= not self.choices or value is None or value in self.choices
        if not is_right:
            word = "unknown" if self.choices and isinstance(value, str) else f"must be {self}"
            choices = f"; choices: {', '.join(self.choices)}" if self.choices else ""
            hint = text_hint(name, value) if fits(0, self.hint) and isinstance(value, str) else ""
            raise ValueError(f"{name}={shown(value)}: {word}{choices}{hint}")

    def __str__(self) -> str:
        bounds = [f"at least {self.least:g}"] if self.least is not None else []
        bounds += [f"above {self.above:g}"] if self.above is not None else []
        bounds += [f"at most {self.most:g}"] if self.most is not None else []
        kind, *others = [IN_WORDS.get(part, in_words(part)) for part in typing.get_args(self.hint) or [self.hint]]
        if typing.get_origin(self.hint) in SERIES:
            kind, others = in_words(self.hint), []
        of = "" if not bounds else " of " if kind.startswith("a ") else ", each "
        return " or ".join([kind + of + " and ".join(bounds), *others])


def text_hint(name: str, value: str, why: str = "; it is text, for it stands in quotes") -> str:
    """What to say of text that would be a number, had it no quotes."""
    for kind in (int, float):
        try:
            number = kind(value, 0) if kind is int and value[:2].lower() in ("0x", "0o", "0b") else kind(value)
        except ValueError:
            continue
        return f"{why}: type {name}={number}"
    return ""


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def in_words(hint: Any) -> str:
    """A type hint as a person would say it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(in_words, parts)))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple and parts and ... not in parts:
        return f"a list of {len(parts)}, each {in_words(parts[0])}"
    if origin in SERIES and parts:
        return f"a list, each {in_words(parts[0])}"
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return "{_target_: your.function}"
    return IN_WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may be meant where the hint stands. What cannot be told from the outside fits: a
    `_target_`, and text for a class, which may be made of it. A whole number is a number; true and false are none.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, Mapping) and "_target_" in value:
        return True
    if origin is typing.Annotated:
        return fits(value, parts[0])
    if origin in (typing.Union, types.UnionType):
        if isinstance(value, str) and str not in parts and (float in parts or int in parts):
            return False  # a number or a tensor of one is no text
        return any(fits(value, part) for part in parts)
    if hint is None or hint is types.NoneType:
        return value is None
    if origin is typing.Literal:
        return value in parts
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return is_number(value)
    if hint is str:
        return isinstance(value, str)
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return not isinstance(value, (bool, int, float, str, list))
    if (origin or hint) in SERIES:
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and parts and ... not in parts and parts != ((),):
            return len(value) == len(parts) and all(map(fits, value, parts))
        return not parts or all(fits(item, parts[0]) for item in value)
    if isinstance(value, bool) and isinstance(hint, type) and hint is not object:
        return True if is_protocol(hint) else issubclass(bool, hint)
    return True


def is_protocol(hint: type) -> bool:
    """As typing.is_protocol, which Python has from 3.13 on."""
    return any(base.__name__ == "Protocol" for base in hint.__bases__)


def hints_of(target: Any) -> dict[str, Any]:
    """The type hints of what target takes, by name; none of a hint that its own default does not fit."""
    import inspect

    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}
    hints: dict[str, Any] = {}
    known = {**vars(collections.abc), **vars(typing), **getattr(function, "__globals__", {})}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        try:  # one by one: a library's hints may name what is imported for a type checker only
            one = types.SimpleNamespace(__annotations__={name: annotation})
            hints |= typing.get_type_hints(one, known)
        except Exception:
            continue
    found = {}
    for name, parameter in parameters.items():
        default = parameter.default
        if name in hints and (default is parameter.empty or default is None or fits(default, hints[name])):
            found[name] = hints[name]
    return found


def guess(name: str, known: Iterable[str], prefix: str = "", meant: Sequence[str] = ()) -> str:
    """`did you mean ...? ` where one of the known names is near.

    Args:
        meant: what is known to be meant by the name, before any that is only near.
    """
    import difflib  # here: listing runs needs this file, and neither of these

    near = meant or difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {prefix}{near[0]}? " if near else ""


def flatten(config: Any, before: str = "") -> dict[str, Any]:
    """{"optimizer.lr": 1.0, ...}; lists count as values.

    Args:
        before: the dotted key of the whole.
    """
    if not isinstance(config, Mapping):
        return {before: config}
    flat: dict[str, Any] = {}
    flatten_into(flat, config, f"{before}." if before else "")
    return flat


def flatten_into(flat: dict[str, Any], config: Mapping[Any, Any], before: str) -> None:
    for name, value in config.items():
        if type(value) is dict or isinstance(value, Mapping):
            flatten_into(flat, value, f"{before}{name}.")
        else:
            flat[f"{before}{name}"] = value


def targets_in(config: Any) -> set[str]:
    """Every `_target_`."""
    if isinstance(config, Mapping):
        named = config.get("_target_")
        found = {named} if isinstance(named, str) else set()
        return found.union(*(targets_in(value) for value in config.values()))
    return set().union(*(targets_in(value) for value in config)) if isinstance(config, (list, tuple)) else set()


# What an expression may hold. A stranger's record may hold one: so its length is bounded, and the bits of each whole
# number in it, by which its time is.
LONGEST, MOST_BITS = 1000, 4096
CONSTANTS = {"pi": math.pi, "e": math.e, "inf": math.inf}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: f
    for name, f in vars(math).items()
    if callable(f) and name[0] != "_" and name not in ("factorial", "comb", "perm")
}
FUNCTIONS |= {"min": min, "max": max, "abs": abs, "int": int, "float": float}
FUNCTIONS["round"] = lambda number, digits=None: round(number) if digits is None else round(float(number), digits)
OPERATORS = (
    *("Add", "Sub", "Mult", "Div", "FloorDiv", "Mod", "Pow", "USub", "UAdd", "Not"),
    *("Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"),
)
NODES = ("Name", "UnaryOp", "BinOp", "BoolOp", "Compare", "IfExp", "Call", "keyword")


def bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers that refuses whole numbers of more than MOST_BITS, before it has worked them out."""

    def call(*given: Any, **named: Any) -> Any:
        sizes = [n.bit_length() for n in given if isinstance(n, int)]
        is_power = getattr(function, "__name__", "") in ("safe_power", "pow") and len(sizes) == 2 and given[1] > 0
        if max(sizes, default=0) > MOST_BITS or (is_power and sizes[0] * given[1] > MOST_BITS):
            raise ValueError("a whole number becomes too large; write it with a decimal point")
        return function(*given, **named)

    return call


def compile_expression(
    text: str, variables: Sequence[str] = (), constants: Mapping[str, float | None] | None = None
) -> Callable[..., int | float]:
    """An arithmetic expression as a function of its variables, by simpleeval: numbers, operators, min, max and the
    functions of math; no attributes, no texts, no lists, no eval.

    Args:
        constants: names with the value that they always have; None: not known, so not to be used.

    Raises:
        ValueError: it does not parse, uses an unknown name, or gives no number where all variables are 0.
    """
    import simpleeval

    fixed = {name: value for name, value in (constants or {}).items() if value is not None}
    evaluator = simpleeval.SimpleEval(functions={name: bounded(f) for name, f in FUNCTIONS.items()})
    evaluator.operators = {kind: bounded(f) for kind, f in evaluator.operators.items() if kind.__name__ in OPERATORS}
    evaluator.nodes = {kind: f for kind, f in evaluator.nodes.items() if kind.__name__ in NODES}
    evaluator.nodes[ast.Constant] = lambda node: number(node.value)
    try:
        if len(text) > LONGEST:
            raise ValueError(f"it is longer than {LONGEST} characters")
        parsed = ast.parse(text.strip(), mode="eval").body
    except Exception as error:
        raise ValueError(f"{text[:LONGEST]!r} does not parse: {error}") from error

    def evaluate(**values: float) -> int | float:
        evaluator.names = {**CONSTANTS, **fixed, **values}
        try:
            return number(evaluator.eval(text, previously_parsed=parsed))
        except Exception as error:
            at = " at " + ", ".join(f"{k}={v}" for k, v in values.items()) if values else ""
            names = f"; variables: {', '.join([*variables, *fixed])}" if variables else ""
            raise ValueError(
                f"{text!r} gives no number{at}: {error}{names}; functions: min, max, round, int and those of math"
            ) from error

    evaluate(**dict.fromkeys(variables, 0))
    return evaluate


def number(value: Any) -> int | float:
    if isinstance(value, (int, float)):
        return value
    raise ValueError(f"{value!r} is no number")
