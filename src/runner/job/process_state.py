"""What a job finds in its process and leaves there: a worker's later job equals the run that has a process of its own.

Contract: after a job the process-wide switches of torch stand as it found them, except that what the import of a user's
modules sets (which happens once in a process) is set again for each job whose targets are of these modules. What was
compiled for an earlier job is forgotten. Generators are seeded before the first object of a job is made. Left alone are
sys.path, sys.modules, the environment, and what a module keeps for itself.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from runner.torch_adapter import compile_limits, may_have_compiled, set_compile_limits

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # set by device.set_deterministic
PRECISIONS = (  # the general ones first: they set the others too
    *("", "cudnn.", "mkldnn.", "cuda.matmul.", "cudnn.conv.", "cudnn.rnn."),
    *("mkldnn.conv.", "mkldnn.rnn.", "mkldnn.matmul."),
)
LIBRARIES = ("torch", "torchvision", "torchmetrics", "numpy", "runner")  # they set nothing when they are imported
Switch = tuple[Callable[[], Any], Callable[[Any], Any]]

_of_modules: list[tuple[frozenset[str], dict[str, Any]]] = []  # modules imported together: the switches that they set


def of_backend(name: str) -> Switch:
    """An attribute somewhere in torch.backends."""
    *path, last = name.split(".")

    def owner() -> Any:
        found: Any = torch.backends
        for part in path:
            found = getattr(found, part)
        return found

    return lambda: getattr(owner(), last), lambda value: setattr(owner(), last, value)


def default_device() -> torch.device | None:
    try:
        found = torch.get_default_device()
    except AttributeError:  # torch 2.9, after set_default_device(None)
        return None
    return None if found == torch.device("cpu") else found


def set_cublas(value: str | None) -> None:
    os.environ.pop(CUBLAS, None)
    if value is not None:
        os.environ[CUBLAS] = value


def deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def flushes_denormals() -> bool:
    return torch.tensor(1e-310, dtype=torch.float64).mul(1.0).item() == 0


def of_autocast(device: str) -> Switch:
    def put_back(found: tuple[bool, torch.dtype]) -> None:
        torch.set_autocast_enabled(device, found[0])
        torch.set_autocast_dtype(device, found[1])

    return lambda: (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)), put_back


SWITCHES: dict[str, Switch] = {
    "dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "device": (default_device, torch.set_default_device),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "grad": (torch.is_grad_enabled, torch.set_grad_enabled),
    "anomaly": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "deterministic": (deterministic, lambda both: torch.use_deterministic_algorithms(both[0], warn_only=both[1])),
    "cublas": (lambda: os.environ.get(CUBLAS), set_cublas),
    "compile": (compile_limits, set_compile_limits),
    "directory": (os.getcwd, os.chdir),
    **{f"cudnn.{name}": of_backend(f"cudnn.{name}") for name in ("enabled", "benchmark", "deterministic")},
    "matmul": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    **{name: of_backend(f"{name}fp32_precision") for name in PRECISIONS},
    "flash": (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    "efficient": (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    "math": (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "mkldnn.enabled": of_backend("mkldnn.enabled"),
    "denormals": (flushes_denormals, torch.set_flush_denormal),
    **{f"autocast.{device}": of_autocast(device) for device in ("cpu", "cuda")},
    "sharing": (torch.multiprocessing.get_sharing_strategy, torch.multiprocessing.set_sharing_strategy),
    "numpy": (np.geterr, lambda found: np.seterr(**found)),
}


def switches() -> dict[str, Any]:
    """Where every switch stands; one that this torch does not have, or cannot tell, is left out."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 warns whoever asks where "matmul" stands
        for name, (get, _) in SWITCHES.items():
            with contextlib.suppress(AttributeError, RuntimeError, OSError):
                found[name] = get()
    return found


def put(wanted: Mapping[str, Any]) -> None:
    """Sets the switches that stand elsewhere: some setters import for a second, or cost each later call."""
    for name, value in wanted.items():
        get, put_one = SWITCHES[name]
        with contextlib.suppress(AttributeError, RuntimeError, OSError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # see switches
            if get() != value:
                put_one(value)


@contextmanager
def as_if_alone() -> Iterator[None]:
    """Around a whole job: nothing of an earlier one is in its way, and nothing of it in a later one's."""
    if may_have_compiled():
        torch.compiler.reset()  # else the recompile limit is soon met, and the model runs eagerly
    before = switches()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        put(before)


@contextmanager
def importing(targets: Collection[str]) -> Iterator[None]:
    """Around the import of a job's targets.

    Args:
        targets: the config's dotted names.
    """
    known, before = set(sys.modules), switches()
    yield
    changed = {name: value for name, value in switches().items() if before.get(name) != value}
    for modules, values in _of_modules:  # of an earlier job
        if any(target.startswith(tuple(f"{module}." for module in modules)) for target in targets):
            put({name: value for name, value in values.items() if name not in changed})
    if changed:
        new = (name for name in sys.modules if name not in known and name.split(".")[0] not in LIBRARIES)
        _of_modules.append((frozenset(new), changed))
