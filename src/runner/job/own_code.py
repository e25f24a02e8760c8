"""The user's own modules that a run's objects come from: which files they are, and that a run gets its own again.

Contract: own is what a `_target_` leads to outside installed packages, and what those files import from the same
folders. run.json keeps each one's file and digest. Whoever opens the run again gets these files and no others of the
same name, whatever has been imported before, or an error that names both; and nothing of it stays behind. What a record
says of files is followed only to code that is trusted all the same: see runner.config.admission.
"""

import ast
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from runner.config import admission
from runner.config.admission import is_made_here, is_own
from runner.errors import InputError
from runner.values import flatten, targets_in

Own = dict[str, dict[str, str]]  # module -> {"file": absolute path, "sha256": digest}

# What each module's file held when it was first seen here, by the module and the spec that it was loaded with: a
# reload keeps the module, and gives it another spec.
_imported_as: WeakKeyDictionary[ModuleType, tuple[Any, bytes]] = WeakKeyDictionary()


def find(config: Any) -> Own:
    """The own modules of a resolved config, whose targets have been imported; `on_disk`: where a file has
    another text by now. What was defined in a notebook is in no file.
    """
    own: Own = {}
    for target in sorted(targets_in(config)):
        top, _, name = target.partition(".")
        if is_made_here(top) and (found := getattr(sys.modules[top], name.partition(".")[0], None)) is not None:
            text = own.get(top, {}).get("sha256", "") + repr(_live(found, top))
            own[top] = {"file": "", "sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}
    waiting = [module for target in sorted(targets_in(config)) for module in modules_of(target)]
    while waiting:
        name, path = waiting.pop(0)
        if name in own or not is_own(path):
            continue
        own[name] = {"file": str(path), "sha256": _digest_of(name, path)}
        if own[name]["sha256"] != (now := file_digest(path)):
            own[name]["on_disk"] = now
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
        if os.path.isfile(path):
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


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _digest_of(name: str, path: Path) -> str:
    """Of the text that runs here: of the file, as it was when this process imported or reloaded it; where no known text
    defines what runs, of the functions themselves.
    """
    text, module = path.read_bytes(), sys.modules.get(name)
    if module is not None:
        spec, before = _imported_as.get(module, (None, text))
        texts = [before, text] if spec is module.__spec__ else [text]
        is_as_written = type(getattr(module, "__loader__", None)) is SourceFileLoader  # pytest's rewrites assertions
        known = next((one for one in texts if _is_text_of(one, module)), None) if is_as_written else texts[0]
        if known is None:
            text = repr([_live(value, name) for value in vars(module).values() if _is_its(value, name)]).encode()
        else:
            text, _imported_as[module] = known, (module.__spec__, known)
    return hashlib.sha256(text).hexdigest()[:16]


def _is_text_of(text: bytes, module: ModuleType) -> bool:
    """Whether a module's functions, their defaults and its constants are as this text defines them."""

    def is_body_of(body: Sequence[ast.stmt], held: Mapping[str, Any]) -> bool:
        functions = [one for one in map(_function, held.values()) if one and _is_its(one, module.__name__)]
        if not all(one.__code__ in codes for one in functions if one.__code__.co_filename[:1] != "<"):
            return False
        nodes = {getattr(node, "name", ast.dump(getattr(node, "targets", [node])[0])): node for node in body}
        return all(is_held(node, held) for node in nodes.values())

    def is_held(node: ast.stmt, held: Mapping[str, Any]) -> bool:
        if isinstance(node, ast.Assign) and isinstance(name := node.targets[0], ast.Name) and name.id.isupper():
            return is_value(node.value, held.get(name.id, ...))
        if isinstance(node, ast.FunctionDef) and (found := _function(held.get(node.name))):
            return all(map(is_value, node.args.defaults, found.__defaults__ or ()))
        if isinstance(node, ast.ClassDef) and isinstance(found := held.get(node.name), type):
            return found.__module__ != module.__name__ or is_body_of(node.body, vars(found))
        return not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name in held

    def is_value(node: ast.expr, value: Any) -> bool:
        return not isinstance(node, ast.Constant) or repr(node.value) == repr(value)

    try:
        tree, codes = ast.parse(text), list(_codes(compile(text, "", "exec", dont_inherit=True)))
    except (SyntaxError, ValueError):
        return False
    return is_body_of(tree.body, vars(module))


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def _function(value: Any) -> FunctionType | None:
    found = inspect.unwrap(getattr(value, "__func__", None) or getattr(value, "fget", None) or value)
    return found if isinstance(found, FunctionType) else None


def _is_its(value: Any, module: str) -> bool:
    """Whether a class or function is of a module, or was put there by a notebook."""
    return getattr(value, "__module__", None) in (module, "__main__")


def _live(value: Any, module: str, seen: tuple[Any, ...] = ()) -> Any:
    """What runs under a name, in words that are the same wherever it was defined: a class with its bases and members, a
    function with its code, its defaults and what it names of its module.
    """
    if any(value is one for one in seen):
        return ...
    seen = (*seen, value)
    if isinstance(value, CodeType):
        consts = [_live(one, module, seen) for one in value.co_consts]
        return [value.co_name, value.co_code.hex(), value.co_names, value.co_varnames, consts]
    if isinstance(value, type):
        members = {name: one for name, one in vars(value).items() if name[:2] != "__" or _function(one)}
        parts = [base for base in value.__bases__ if _is_its(base, module)] + [
            members[name] for name in sorted(members)
        ]
        return [value.__qualname__, str(value.__bases__), sorted(members), [_live(one, module, seen) for one in parts]]
    if (function := _function(value)) is not None:
        code, known = function.__code__, function.__globals__
        names = {name for one in (code, *_codes(code)) for name in one.co_names}
        named = [known[name] for name in sorted(names & known.keys())]
        its = [one for one in named if _is_its(one, module) or isinstance(one, int | float | str)]
        return [repr(function.__defaults__), *(_live(one, module, seen) for one in (code, *its))]
    return repr(value) if isinstance(value, int | float | str | tuple | None) else type(value).__name__


def changed(record: Mapping[str, Any], folder: Path) -> list[str]:
    """The own files of the run in a folder that are not any more what they were, in words."""
    own, words = _own_of(record), []
    for name, path in places(record, policy_of(record, folder)).items():
        before = own[name].get("sha256")
        if before and file_digest(path) != before:
            words.append(f"{path} has changed since ({name})")
    return words


@contextmanager
def again(record: Mapping[str, Any], folder: Path, starts: bool = False) -> Iterator[None]:
    """In the body, the run's own modules are imported from where they were, as far as they are trusted, and nothing
    from the run's own folder; afterwards the process's modules are as before.

    Args:
        starts: the run begins, with the weights that its model may download.

    Raises:
        InputError: a file is gone, and another of its name is not the same.
    """
    policy = policy_of(record, folder, starts)
    found = places(record, policy)
    tops = {name.split(".")[0] for name in found}
    others = {name.split(".")[0] for name, path in found.items() if _is_another(name, path)}
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in tops}
    roots = [str(root) for root in dict.fromkeys(root_of(name, path) for name, path in found.items())]
    if policy.everything and os.path.isdir(started := str(record["working_directory"])) and started not in roots:
        roots.append(started)
    for name in [name for name in before if name.split(".")[0] in others]:
        del sys.modules[name]
    path = list(sys.path)
    sys.path[:] = [
        *roots,
        *(entry for entry in path if policy.record not in (at := Path(entry).resolve(), *at.parents)),
    ]
    importlib.invalidate_caches()
    try:
        with admission.admitting(policy):
            yield
    finally:
        sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path and entry not in roots)]
        foreign = {top for top in tops if top in others or not _is_found_here(top)}
        for name in [name for name in sys.modules if name.split(".")[0] in foreign]:
            del sys.modules[name]
        sys.modules.update(before)


def policy_of(record: Mapping[str, Any], folder: Path, starts: bool = False) -> admission.Policy:
    """What is admitted of the targets of the record in a folder."""
    return admission.of_record(folder, _named_by(record), starts)


def _named_by(record: Mapping[str, Any]) -> list[str]:
    """The packages and modules of a record's own code that its targets begin with."""
    config, own = _config_of(record), {name.split(".")[0] for name in _own_of(record)}
    named = {*targets_in(config), *(str(value) for key, value in flatten(config).items() if key.endswith("_target_"))}
    return sorted({name.split(".")[0] for name in named} & own)


def to_be_named(record: Mapping[str, Any], folder: Path) -> list[str]:
    """What --trust has to name when the record in a folder is opened from here."""
    trusted = _config_of(record).get("trust")
    return [*map(str, trusted if isinstance(trusted, list) else ()), *policy_of(record, folder).others]


@contextmanager
def as_it_was_started(record: Mapping[str, Any], folder: Path, starts: bool = False) -> Iterator[None]:
    """With the run's own modules; and, where all that it names is trusted, in the folder in which it was started.

    Raises:
        InputError: an own module is gone; see again. Of the body, with where its relative paths lead, if not here.
    """
    started, before = str(record["working_directory"]), os.getcwd()
    with again(record, folder, starts):
        if admission.policy().everything and os.path.isdir(started):
            os.chdir(started)
        try:
            yield
        except InputError as error:
            said = [value for key, value in flatten(_config_of(record)).items() if key.startswith("dataset.")]
            gone = [value for value in said if isinstance(value, str) and value and not os.path.exists(value)]
            there = next(filter(os.path.exists, (os.path.join(started, value) for value in gone)), None)
            if there is None or there in str(error):
                raise
            raise InputError(f"{error}; its {there} is found where it was started: cd {started}") from error
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
    """What a record keeps of its modules, as far as it may be true: a name, and a file of this name."""
    kept = record.get("own_code") or {}
    return {name: entry for name, entry in kept.items() if _is_file_of(name, Path(entry.get("file", "")))}


def _is_file_of(name: str, path: Path) -> bool:
    parts, end = name.split("."), path.with_suffix("").parts if path.name else ()
    end = end[:-1] if end[-1:] == ("__init__",) else end
    is_name = all(part.isidentifier() for part in parts) and list(end[-len(parts) :]) == parts
    return is_name and path.is_absolute() and path.suffix == ".py" and "\0" not in str(path)


def _config_of(record: Mapping[str, Any]) -> Any:
    """A run's config; of a sweep, what its jobs have in common."""
    return record.get("config") or record.get("base") or {}


def places(record: Mapping[str, Any], policy: admission.Policy) -> dict[str, Path]:
    """The files that a run's own modules are imported from, as far as they are trusted: what is named, with all that
    lies in its folder, and what lies beside the command.

    Raises:
        InputError: a file is gone, and another of its name is not the same.
    """
    own = {name: (Path(entry["file"]), entry.get("sha256")) for name, entry in _own_of(record).items()}
    roots = {root_of(name, path) for name, (path, _) in own.items() if is_followed(name, path, policy)}
    found = {}
    for name, (path, digest) in own.items():
        is_there, is_trusted = os.path.isfile(path), root_of(name, path) in roots
        if is_there and (is_trusted or policy.is_beside(path.resolve())):
            found[name] = path.resolve()
            continue
        here = next((one for one in _candidates(name, path, record) if policy.is_beside(one) and is_own(one)), None)
        if here is None and is_trusted:
            way_out = "put it back, or start the command in the folder that holds it"
            raise InputError(f"{name}: this run's own file {path} is gone; {way_out}")
        if here is not None and file_digest(here) != digest and not any(map(policy.holds, policy.beside)):
            flag = f"--trust {','.join(_named_by(record)) or name.split('.')[0]}"
            why = f"is {path} ({flag} takes it)" if is_there else f"{path} is gone"
            raise InputError(f"{name}: this run's own file {why}, and {here} is not the same")
        if here is not None:  # where it is not the same: the project has moved, and has changed since
            found[name] = here
    return found


def is_followed(name: str, path: Path, policy: admission.Policy) -> bool:
    """Whether a module is taken from where the record says: one that the user has named is not in the run's own folder,
    and is none that is installed here.
    """
    is_inside = policy.record is not None and path.resolve().is_relative_to(policy.record)
    is_meant = policy.names(name) and not is_inside and all(map(is_own, admission.places_of(name.split(".")[0])))
    return policy.everything or is_meant


def _candidates(name: str, path: Path, record: Mapping[str, Any]) -> Iterator[Path]:
    """Where a module may be found whose file is not to be taken from where the record says: see relocated."""
    if os.path.isfile(moved := relocated(path, record)):
        yield moved.resolve()
    for folder in admission.beside():
        if (found := file_of(folder, name)) is not None:
            yield found


def relocated(path: Path, record: Mapping[str, Any]) -> Path:
    """A path of the project that a record was written in, in the folder where the command is started."""
    started = Path(str(record["working_directory"]))
    return Path.cwd() / path.relative_to(started) if path.is_relative_to(started) else path
