"""Where a run comes from: the code's commit, the packages, the machine, the data."""

import hashlib
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.storage.run_dir import OURS

PACKAGES = ("torch-runner", "torch", "torchvision", "hydra-core", "omegaconf", "numpy", "scikit-learn", "torchmetrics")


# A folder with one of these is a run's or a sweep's; what lies in it, and what Python caches, is no code.
MARKS = ("run.json", "run.lock", "job.json", "sweep.json")
SAFELY = ("--no-optional-locks", "-c", "core.fsmonitor=false")  # a setting that names a command is not asked


def _git(*arguments: str) -> str | None:
    words = ["git", *SAFELY, *arguments]
    try:
        result = subprocess.run(words, capture_output=True, text=True, errors="surrogateescape", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def git_state() -> tuple[dict[str, Any] | None, str]:
    """({commit, dirty}, diff against it) of the working directory's repository; (None, "") outside one. What runs have
    written there makes it no dirtier.
    """
    commit, root = _git("rev-parse", "HEAD"), Path((_git("rev-parse", "--show-toplevel") or "").removesuffix("\n"))
    if commit is None:
        return None, ""
    status = _git("status", "--porcelain", "-z", "--untracked-files=normal", "--ignore-submodules=untracked") or ""
    changes = [entry for entry in status.split("\0") if entry and not is_of_runs(root, entry)]
    diff = _git("diff", "--no-ext-diff", "--no-textconv", "HEAD") or ""
    return {"commit": commit.strip(), "dirty": bool(changes)}, diff.encode(errors="surrogateescape").decode(
        errors="replace"
    )


def is_of_runs(root: Path, entry: str) -> bool:
    """Whether a line of git's status is of files that git does not follow and that runs have written."""

    def is_marked(folder: Path) -> bool:
        return any((folder / name).exists() for name in MARKS)

    def is_written(path: Path) -> bool:
        if path.name in ("__pycache__", "mlflow.db") or (path.name in OURS and is_marked(path.parent)):
            return True
        if path.is_symlink() or not path.is_dir():
            return False
        return is_marked(path) or all(map(is_written, path.iterdir()))

    try:
        return entry.startswith("?? ") and is_written(root / entry[3:])
    except OSError:
        return False


def code_state(git: dict[str, Any] | None, diff: str, own: Mapping[str, str]) -> dict[str, Any]:
    """What the code was, to be compared: the commit, the digest of what differs from it, the runner's version, and the
    digests of the user's own modules (`own`, by name), which no commit may know.
    """
    digest = hashlib.sha256(diff.encode(errors="replace")).hexdigest()[:16] if diff else None
    version = environment()["packages"].get("torch-runner")
    return {"commit": git["commit"] if git else None, "diff": digest, "runner": version, "own": dict(own)}


def code_changes(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """In what two states of the code differ, in words. What only one of them knows of is not compared."""
    if before is None:
        return []
    pairs = [(key, before.get(key), now.get(key)) for key in ("commit", "diff", "runner")]
    own, own_now = before.get("own") or {}, now.get("own") or {}
    pairs += [(f"own module {name}", own[name], own_now[name]) for name in own if name in own_now]
    return [f"{what}: {one} -> {two}" for what, one, two in pairs if one != two]


def environment_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In what two records' surroundings differ that a figure may depend on, in words: Python, machine, packages."""
    pairs = [(key, before.get(key), now.get(key)) for key in ("python", "machine", "cpu") if before.get(key)]
    packages, packages_now = before.get("packages", {}), now.get("packages", {})
    pairs += [(name, version, packages_now.get(name)) for name, version in packages.items()]
    return [f"{what}: {one} -> {two}" for what, one, two in pairs if one != two]


def data_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """In what two records' data (runner.batches.contents) differs, in words: for certain, and perhaps: in numbers that
    other code, versions or processors compute otherwise, or in the times of files alone. What only one of them knows of
    is not compared.
    """
    certain: list[str] = []
    possible: list[str] = []
    is_elsewhere = bool(environment_changes(before, now) or code_changes(before.get("code"), now.get("code") or {}))
    is_elsewhere |= before.get("threads") != now.get("threads")
    data, data_now = before.get("data") or {}, now.get("data") or {}
    for key in [key for key in data if key in data_now]:
        old, new = data[key], data_now[key]
        words = [
            f"{shown(new.get(what))}{of} where the run had {shown(old.get(what))}"
            for of, what in (("", "class"), (" examples", "count"), (" as classes", "classes"))
            if old.get(what) != new.get(what)
        ]
        words += other_files(old.get("files") or {}, new.get("files") or {})
        names = [
            name for name, digest in old.get("values", {}).items() if new.get("values", {}).get(name, digest) != digest
        ]
        words += [f"another content of its {', '.join(names)}"] if names and not words else []
        if words:
            (possible if new.get("is_saved") else certain).append(f"{key}: {'; '.join(words)}")
        names = [
            name
            for name, digest in old.get("computed", {}).items()
            if new.get("computed", {}).get(name, digest) != digest
        ]
        if names and not words:
            (possible if is_elsewhere else certain).append(f"{key}: other numbers in its {', '.join(names)}")
        elif not words and (new.get("newest") or 0) > (old.get("newest") or float("inf")):
            possible.append(f"{key}: files of the same names and sizes were written later")
    return certain, possible


def other_files(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what two listings by folder differ, in words."""
    words = []
    for folder in sorted({*old, *new}):
        then, now = old.get(folder, [0]), new.get(folder, [0])
        where = "" if folder == "." else f" in {folder}"
        if then != now:
            changed = f"{now[0]} files{where} where it had {then[0]}" if then[0] != now[0] else f"other files{where}"
            words.append(changed + those_that_differ(*(each[2] if len(each) > 2 else {} for each in (then, now))))
    return [*words[:3], *([f"and {len(words) - 3} folders more"] if len(words) > 3 else [])]


def those_that_differ(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """(a.png is new, b.png is gone, c.png has another content), where the files are known one by one."""
    found = [f"{name} is {'new' if name in new else 'gone'}" for name in sorted({*old} ^ {*new})]
    found += [f"{name} has another content" for name in sorted(old) if name in new and old[name] != new[name]]
    more = f", and {len(found) - 3} more" if len(found) > 3 else ""
    return f" ({', '.join(found[:3])}{more})" if found else ""


def shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)


def environment() -> dict[str, Any]:
    """Host, python and the versions of the packages that a number may depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "python": platform.python_version(),
        "packages": versions,
        "working_directory": str(Path.cwd()),
    }


def cpu_model() -> str:
    """The processor's name, as far as the system tells it: other kinds compute other last digits."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor()


typed: list[str] | None = None  # in a sweep's worker: the command of the sweep, which a person has typed


def command_line() -> list[str]:
    return typed or [sys.executable, *sys.orig_argv[1:]]
