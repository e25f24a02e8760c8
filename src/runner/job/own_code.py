"""The user's own modules that a run's objects come from: which files they are, and that a run gets its own again.

Contract: own is what a `_target_` leads to outside installed packages, and what those files import from the same
folders. run.json keeps each one's file and digest. Whoever opens the run again gets these files and no others of the
same name, whatever has been imported before, or an error that names both; and nothing of it stays behind.
"""

import ast
import hashlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from runner.config import admission
from runner.config.admission import is_own
from runner.errors import InputError
from runner.values import targets_in

Own = dict[str, dict[str, str]]  # module -> {"file": absolute path, "sha256": digest}

# What a module's file was when it was first seen here: what runs is what was imported.
_imported_as: WeakKeyDictionary[ModuleType, str] = WeakKeyDictionary()


def find(config: Any) -> Own:
    """The own modules of a resolved config, whose targets have been imported."""
    own: Own = {}
    waiting = [module for target in sorted(targets_in(config)) for module in modules_of(target)]
    while waiting:
        name, path = waiting.pop(0)
        if name in own or not is_own(path):
            continue
        own[name] = {"file": str(path), "sha256": _digest_of(name, path)}
        waiting += imported_from_the_same_folder(name, path)
    return dict(sorted(own.items()))


def digests(own: Own) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in own.items()}


def modules_of(target: str) -> Iterator[tuple[str, Path]]:
    """The imported modules on a target's dotted name, and the one that really defines the object."""
    parts = target.split(".")
    names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    found: Any = next((sys.modules[name] for name in names if name in sys.modules), None)
    for name in names:
        module = sys.modules.get(name)
        if module is not None and getattr(module, "__file__", None):
            yield name, Path(str(module.__file__)).resolve()
    for part in parts[1:]:
        found = getattr(found, part, None)
    defined = sys.modules.get(str(getattr(found, "__module__", None)))
    if defined is not None and getattr(defined, "__file__", None):
        yield defined.__name__, Path(str(defined.__file__)).resolve()


def root_of(name: str, path: Path) -> Path:
    """The folder that has to be on sys.path for the module to be imported from the file."""
    depth = name.count(".") + (1 if path.name == "__init__.py" else 0)
    return path.parents[depth]


def file_of(root: Path, name: str) -> Path | None:
    """The file of a module below a folder, if it is there."""
    base = root.joinpath(*name.split("."))
    for path in (base.with_name(base.name + ".py"), base / "__init__.py"):
        if path.is_file():
            return path.resolve()
    return None


def imported_from_the_same_folder(name: str, path: Path) -> list[tuple[str, Path]]:
    """What a source file imports, anywhere in it, from the folder that it lies in; read, not run."""
    root = root_of(name, path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    wanted: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            wanted += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    whole = [".".join(word.split(".")[:count]) for word in wanted for count in range(1, word.count(".") + 2)]
    return [(word, found) for word in dict.fromkeys(whole) if word and (found := file_of(root, word)) is not None]


def _digest_of(name: str, path: Path) -> str:
    """Of the file, or of what it was when this process imported it: that is what runs."""
    now = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    module = sys.modules.get(name)
    return now if module is None else _imported_as.setdefault(module, now)


def changed(record: Mapping[str, Any]) -> list[str]:
    """The own files of a run that are not any more what they were, in words; none for a run that did not keep them."""
    words = []
    for name, entry in _own_of(record).items():
        path, before = Path(entry.get("file", "")), entry.get("sha256")
        if before and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()[:16] != before:
            words.append(f"{path} has changed since ({name})")
    return words


@contextmanager
def again(record: Mapping[str, Any], is_mine: bool) -> Iterator[None]:
    """In the body, the run's own modules are imported from where they were, and its folder comes first on sys.path, as
    when it was started; afterwards the process's modules are as before.

    Args:
        is_mine: False: of a stranger's record, nothing is imported but what the command line has granted.

    Raises:
        InputError: a file is gone, and another of its name is not the same.
    """
    places = {name: _place_of(name, entry) for name, entry in _own_of(record).items() if is_followed(name, is_mine)}
    tops = {name.split(".")[0] for name in places}
    others = {name.split(".")[0] for name, path in places.items() if _is_another(name, path)}
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in tops}
    roots = [str(root) for root in dict.fromkeys(root_of(name, path) for name, path in places.items())]
    if is_followed(None, is_mine) and os.path.isdir(folder := str(record["working_directory"])) and folder not in roots:
        roots.append(folder)
    for name in [name for name in before if name.split(".")[0] in others]:
        del sys.modules[name]
    sys.path[:0] = roots
    importlib.invalidate_caches()
    try:
        with admission.admitting(policy_of(record, is_mine)):
            yield
    finally:
        for root in roots:
            sys.path.remove(root)
        foreign = {top for top in tops if top in others or not _is_found_here(top)}
        for name in [name for name in sys.modules if name.split(".")[0] in foreign]:
            del sys.modules[name]
        sys.modules.update(before)


def is_followed(module: str | None, is_mine: bool) -> bool:
    """Whether a record may say where a module is imported from, or (None) where the process works."""
    packages, everything = admission.granted()
    return is_mine or everything or (module is not None and module.split(".")[0] in packages)


def policy_of(record: Mapping[str, Any], is_mine: bool) -> admission.Policy:
    """What is admitted of this record's targets."""
    said = [record.get("config", {}).get("trust"), record.get("base", {}).get("trust")]  # a run's, or a sweep's
    own = [str(name) for names in said if isinstance(names, list) for name in names] + list(_own_of(record))
    folder = Path(str(record["working_directory"])) if is_mine else Path()  # a stranger's says nothing here
    return admission.of_record(is_mine, own, folder.resolve())


@contextmanager
def as_it_was_started(record: Mapping[str, Any], is_mine: bool) -> Iterator[None]:
    """With the run's own modules, and in the folder in which it was started, where that still is there: its config may
    hold relative paths. A stranger's record says neither.

    Raises:
        InputError: an own module is gone; see again.
    """
    folder, before = str(record["working_directory"]), os.getcwd()
    with again(record, is_mine):
        if is_followed(None, is_mine) and os.path.isdir(folder):
            os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def _is_another(name: str, path: Path) -> bool:
    """Whether a module of this name has been imported from elsewhere."""
    if name in sys.modules:
        return Path(str(getattr(sys.modules[name], "__file__", ""))).resolve() != path
    top = name.split(".")[0]
    folders = [Path(folder).resolve() for folder in getattr(sys.modules.get(top), "__path__", [])]
    return top in sys.modules and root_of(name, path) / top not in folders


def _is_found_here(top: str) -> bool:
    """Whether an import in this process would find the module that is loaded."""
    module, spec = sys.modules.get(top), PathFinder.find_spec(top)
    return module is None or (spec is not None and spec.origin == getattr(module, "__file__", None))


def _own_of(record: Mapping[str, Any]) -> Own:
    """What run.json keeps; of an older run, the targets' modules that lie in the folder where it was started."""
    if record.get("own_code") is not None:
        return dict(record["own_code"])
    root = Path(record["working_directory"])
    names = {target.split(".")[0] for target in targets_in(record["config"])} - {"runner"}
    return {name: {"file": str(path)} for name in sorted(names) if (path := file_of(root, name)) is not None}


def _place_of(name: str, entry: Mapping[str, str]) -> Path:
    """The recorded file; where it is gone, the same file under the folder in which the command was started."""
    path = Path(entry.get("file", ""))
    if path.is_file():
        return path.resolve()
    other = file_of(Path.cwd(), name)
    if other is None:
        raise InputError(
            f"{name}: this run's own file {path} is gone; put it back, or start the command in the folder that holds it"
        )
    if hashlib.sha256(other.read_bytes()).hexdigest()[:16] != entry.get("sha256"):
        raise InputError(f"{name}: this run's own file {path} is gone, and {other} is not the same")
    return other
