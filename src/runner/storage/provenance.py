"""Where a run comes from: the code's commit, the packages, the machine."""

import hashlib
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch-runner", "torch", "torchvision", "hydra-core", "omegaconf", "numpy", "scikit-learn", "torchmetrics")


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def git_state() -> tuple[dict[str, Any] | None, str]:
    """({commit, dirty}, diff against it) of the working directory's repository; (None, "") outside one."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None, ""
    status = _git("status", "--porcelain") or ""
    diff = _git("diff", "HEAD") or ""
    return {"commit": commit.strip(), "dirty": bool(status.strip())}, diff


def code_state(git: dict[str, Any] | None, diff: str) -> dict[str, Any]:
    """What the code was, to be compared: the commit, the digest of what differs from it, the runner's version."""
    digest = hashlib.sha256(diff.encode(errors="replace")).hexdigest()[:16] if diff else None
    version = environment()["packages"].get("torch-runner")
    return {"commit": git["commit"] if git else None, "diff": digest, "runner": version}


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
        "python": platform.python_version(),
        "packages": versions,
        "working_directory": str(Path.cwd()),
    }


def command_line() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]
