"""Whether a `_target_` may be made: by the table of runner.config.admissible, or as code that the user trusts.

Contract: a name is walked inside the package that it begins with, never into another package's module and never through
a name with a leading underscore; then the object that is found is judged, by what it is and where it was defined.
Beyond the table, code is admitted that lies beside the command, or that the user names by `trust=` or --trust. A
record is judged so whoever wrote it; nothing that it says admits anything.
"""

import importlib
import importlib.machinery
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf

from runner.config.admissible import Admissible, is_hydras, rules_of
from runner.errors import InputError
from runner.values import guess, targets_in

RECORDS = ("run.json", "sweep.json")


class Refused(ValueError):
    """Why a target may not stand where it stands."""


@dataclass(frozen=True)
class Policy:
    """Whose code is admitted beyond the table.

    Args:
        beside: folders whose modules are the user's own; see beside() and importable().
        trusted: packages, by name, that the user has named.
        everything: all of it, as with --trust-all.
        way_out: what to type, in a refusal.
        record: the folder of the record that is being opened; None in a command of the user's own.
        others: further code that this record's targets name, to be named in one refusal.
        starts: whether the record's run trains from its beginning, with the weights that its model downloads.
    """

    beside: tuple[Path, ...] = ()
    trusted: frozenset[str] = frozenset()
    everything: bool = False
    way_out: str = "'trust=[{top}]'"
    record: Path | None = None
    others: tuple[str, ...] = ()
    starts: bool = False

    @property
    def downloads(self) -> bool:
        """Whether what is made may download to where the config says, and trackers may be told where it says."""
        return self.record is None or self.everything

    def names(self, module: str) -> bool:
        """Whether the user has named a module, or a package that it is in."""
        names = module.split(".")
        return any(".".join(names[: count + 1]) in self.trusted for count in range(len(names)))

    def admits(self, module: str) -> bool:
        """Whether a module's code is the user's own, or of a package that the user trusts."""
        if self.everything or self.names(module):
            return True
        top = module.split(".")[0]
        found = places_of(top)
        if not found:
            return bool(self.beside) and is_made_here(top)
        return all(is_own(path) and self.is_beside(path) for path in found)

    def is_beside(self, path: Path) -> bool:
        """Whether a resolved path lies beside the command: never in the folder of the record that is being opened, nor
        in any other on the way from the command to it, which may have come with it.
        """
        for folder in self.beside:
            if path.is_relative_to(folder):
                below = self.record.parts[len(folder.parts) :] if self.record and self.holds(folder) else ()
                apart = folder / below[0] if below else self.record
                if apart is None or not path.is_relative_to(apart):
                    return True
        return False

    def holds(self, folder: Path) -> bool:
        """Whether the record lies in a folder."""
        return self.record is not None and self.record.is_relative_to(folder)


# What the command line has granted to the record that it opens: packages, and whether everything is.
_granted: ContextVar[tuple[frozenset[str], bool]] = ContextVar("granted", default=(frozenset(), False))
_policy: ContextVar[Policy | None] = ContextVar("policy", default=None)


def beside() -> tuple[Path, ...]:
    """Where the modules lie that are the user's own: in the working directory, and beside a script that calls run()."""
    here, script = Path.cwd().resolve(), getattr(sys.modules.get("__main__"), "__file__", None)
    path = None if script is None else Path(script).resolve()
    return (here, path.parent) if path is not None and path.suffix == ".py" and is_own(path) else (here,)


def importable() -> tuple[Path, ...]:
    """The folders of sys.path, those of PYTHONPATH among them: a command of the user's own may name their modules."""
    return tuple(Path(entry).resolve() for entry in dict.fromkeys(sys.path))


def policy() -> Policy:
    """What is admitted now."""
    return _policy.get() or trusting([])


@contextmanager
def admitting(chosen: Policy) -> Iterator[None]:
    token = _policy.set(chosen)
    try:
        yield
    finally:
        _policy.reset(token)


def grant(packages: Sequence[str] = (), everything: bool = False) -> None:
    """What --trust and --trust-all say of the record that this command opens."""
    _granted.set((frozenset(packages), everything))


@contextmanager
def granting(packages: Sequence[str]) -> Iterator[None]:
    """As grant(), for the body."""
    token = _granted.set((frozenset(packages), False))
    try:
        yield
    finally:
        _granted.reset(token)


def named_by(cfg: Any) -> list[str]:
    """What a command trusts by its own words: the packages of its `trust`, and those that its targets name. A record's
    words trust nothing.
    """
    if policy().record is not None:
        return []
    tops = {name.split(".")[0] for name in targets_in(OmegaConf.to_container(cfg, resolve=False))}
    own = sorted(top for top in tops if any(map(is_own, places_of(top))))
    return [*granted()[0], *(cfg.get("trust") or []), *own, "runner.tracking"]


def granted() -> tuple[frozenset[str], bool]:
    return _granted.get()


Carried = tuple[Policy | None, tuple[frozenset[str], bool]]
NOTHING: Carried = (None, (frozenset(), False))


def carried() -> Carried:
    """What a worker process must be told: what was granted, and the policy where it is a record's."""
    now = _policy.get()
    return (None if now is None or now.record is None else now), _granted.get()


@contextmanager
def carrying(given: Carried) -> Iterator[None]:
    """With what carried() gave in another process."""
    tokens = _policy.set(given[0]), _granted.set(given[1])
    try:
        yield
    finally:
        _policy.reset(tokens[0])
        _granted.reset(tokens[1])


def of_record(folder: Path, others: Sequence[str] = (), starts: bool = False) -> Policy:
    """What is admitted of the targets of the record in a folder, whoever wrote it; see Policy."""
    packages, everything = granted()
    path = Path(os.path.realpath(folder))
    while path.parent != path and any((path.parent / name).exists() for name in RECORDS):
        path = path.parent  # a job's sweep came with it
    way_out = "--trust {top}, or all that the record names by --trust-all"
    made = Policy(beside(), packages, everything, way_out, path, starts=starts)
    return replace(made, others=tuple(top for top in others if top.isidentifier() and not made.admits(top)))


@contextmanager
def of_config(cfg: Any) -> Iterator[None]:
    """The policy of a command with this config; of a record that is being opened, the one that holds already.

    Raises:
        InputError: `trust` is no list of names.
    """
    packages = cfg.get("trust") or []
    is_list = isinstance(packages, list) or OmegaConf.is_list(packages)
    if not is_list or not all(isinstance(name, str) and name for name in packages):
        raise InputError(f"trust={packages}: must be a list of packages' names, as trust=[timm]")
    with admitting(_policy.get() or trusting(list(packages))):
        yield


def trusting(packages: Sequence[str]) -> Policy:
    """The policy of a command: what is beside it or found by import, and the packages that it names, in its config or
    by --trust.
    """
    named, everything = granted()
    return Policy((*beside(), *importable()), named | frozenset(packages), everything)


def is_own(path: Path) -> bool:
    """Whether a file or a package's folder is neither installed, nor Python's, nor ours."""
    if {"site-packages", "dist-packages"} & set(path.parts) or (path.suffix and path.suffix != ".py"):
        return False
    return not any(path.is_relative_to(folder) for folder in not_own())


@cache
def not_own() -> tuple[Path, ...]:
    """The folders of Python, of what is installed, and of this package."""
    ours = Path(__file__).resolve().parents[1]
    installed = (Path(folder).resolve() for folder in sysconfig.get_paths().values())
    return (*installed, ours, ours.parent / "hydra_plugins")


def is_made_here(top: str) -> bool:
    """Whether a module came from no file, but from the program that runs: a notebook's own, or one made in memory."""
    module = sys.modules.get(top)
    return module is not None and module.__spec__ is None and top not in sys.builtin_module_names


def places_of(top: str) -> list[Path]:
    """Where a top-level module lies, or would be imported from; nothing is imported."""
    module = sys.modules.get(top)
    if module is not None and top != "__main__":
        found = [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", []))
    elif module is not None:
        found = [getattr(module, "__file__", None)]
    else:
        spec = importlib.machinery.PathFinder.find_spec(top)
        found = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
    return [Path(str(path)).resolve() for path in found if path]


def check_hydra(node: Any) -> None:
    """Refuses what Hydra itself would make before any run is composed: its callbacks, and whatever else no line admits.

    Raises:
        InputError: names the target and its place.
    """
    for place, name in targets_below(OmegaConf.to_container(node, resolve=False), "hydra"):
        try:
            admitted(name, place)
        except Refused as error:
            raise InputError(f"{place}._target_={name}: {error}") from error
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "optuna":
                continue  # its sweeper names the line that installs it
            raise InputError(f"{place}._target_={name}: cannot be imported ({error})") from error


def targets_below(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Every `_target_` of plain containers, with the place of its node."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from targets_below(item, f"{place}.{index}")
    if isinstance(node, dict):
        if node.get("_target_") is not None:
            yield place, str(node["_target_"])
        for name, item in node.items():
            yield from targets_below(item, f"{place}.{name}")


def admitted(name: str, place: str) -> tuple[Any, str]:
    """The object that a target names in a place, and what admits it.

    Raises:
        Refused: nothing admits it; nothing was imported that is not admitted by its name.
        Exception: what its import raises.
    """
    rules, now = rules_of(place), policy()
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ValueError("must be a dotted name, as package.module.Class")
    if rules is None:
        raise Refused(f"no `_target_` may stand in {place}")
    by_name = [rule for rule in rules if rule.covers(name)]
    is_private = any(part.startswith("_") for part in parts) and not any(rule.spells_out(name) for rule in by_name)
    own = not is_hydras(place) and now.admits(parts[0] if len(parts) == 1 else name.rpartition(".")[0])
    if (not by_name and not own) or is_private:
        raise Refused(refusal(name, place, rules, is_private))
    found, module = walk(name, now if own else None)
    for rule in rules:
        defined = true_name(found)
        if rule.fits(found) and (rule.covers(defined) if defined else rule.covers(name)):
            return found, rule.says
    if own and is_of(found, module, now):
        return found, "code that you trust" if now.everything or now.names(module) else "your own code"
    raise Refused(refusal(name, place, rules, is_private))


def walk(name: str, own: Policy | None) -> tuple[Any, str]:
    """The object at a dotted name and the module it was found in; never by way of another package's module.

    Raises:
        Refused: the way leads out of the package.
    """
    import difflib

    first, *rest = name.split(".")
    found, path = importlib.import_module(first), first
    module = first
    for part in rest:
        if hasattr(found, part) or not isinstance(found, ModuleType):
            found, path = getattr(found, part), f"{path}.{part}"
        else:
            try:
                found, path = importlib.import_module(f"{path}.{part}"), f"{path}.{part}"
            except ModuleNotFoundError as error:
                if error.name != f"{path}.{part}":
                    raise
                near = difflib.get_close_matches(part, dir(found), 1)
                guess = f"; did you mean {near[0]}?" if near else ""
                raise AttributeError(f"{path} has no {part!r}{guess}") from error
        if isinstance(found, ModuleType):
            module = found.__name__
            if module.split(".")[0] != first and not (own is not None and own.admits(module)):
                raise Refused(f"{path} is the module {module} of another package")
    return found, module


def true_name(found: Any) -> str | None:
    """Where a class or function was defined, as a dotted name; None for what does not say it."""
    if not hasattr(found, "__qualname__"):
        return None
    return f"{getattr(found, '__module__', None)}.{found.__qualname__}"


def is_of(found: Any, module: str, now: Policy) -> bool:
    """Whether an object that an own module holds is its own: not a name that the module has imported."""
    if now.everything:
        return True
    inner = getattr(found, "func", found) if type(found).__name__ == "partial" else found
    owner = getattr(inner if hasattr(inner, "__qualname__") else type(inner), "__module__", None)
    return owner is not None and now.admits(str(owner))


def refusal(name: str, place: str, rules: Sequence[Admissible], is_private: bool) -> str:
    if is_private:
        return "a name with a leading underscore is nobody's to call"
    choices = "; ".join(rule.says for rule in rules) or "your own code"
    now, top = policy(), name.split(".")[0]
    if now.record is None and top not in (*sys.modules, *sys.builtin_module_names) and not places_of(top):
        known = [start.split(".")[0] for rule in rules for start in rule.names]
        known += [path.stem for folder in beside() for path in folder.glob("[!_.]*.py")]
        meant = guess(top, dict.fromkeys(known))
        return f"there is no module {top}; {meant}choices: {choices}; or a module of yours, beside where you start"
    tops = ",".join(dict.fromkeys([top, *now.others]))
    hint = f"; code of yours is admitted by {now.way_out.format(top=tops)}"
    if tops == "__main__":
        hint = "; it is a script's or a notebook's own: open the run from there, or put it into a module"
    return f"may not stand in {place}; choices: {choices}{'' if is_hydras(place) else hint}"
