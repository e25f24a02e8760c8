"""Which device computes, with how many CPU threads, and how strictly."""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass

import torch

from runner.errors import InputError

TYPES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Device:
    """A device that works here, and the CPU thread count, which is part of the result."""

    torch: torch.device
    threads: int

    @property
    def name(self) -> str:
        if self.torch.type == "cuda":
            return f"{self.torch} ({torch.cuda.get_device_name(self.torch)})"
        return str(self.torch)


def resolve(type: str = "auto", index: int = 0, threads: int | None = None) -> Device:
    """The device that `type` means on this machine; sets torch's thread count.

    Raises:
        InputError: an unknown type, a device that is not available, an index out of range, threads below 1.
    """
    if type not in TYPES:
        raise InputError(f"device.type={type}: unknown; choices: {', '.join(TYPES)}")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise InputError(f"device.threads={threads}: must be at least 1, or null for the machine's own count")
    if index < 0:
        raise InputError(f"device.index={index}: must not be negative")
    if type == "auto":
        type = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if type == "cuda":
        if not torch.cuda.is_available():
            raise InputError("device=cuda: no CUDA GPU works here; choices: device=auto, device=cpu")
        count = torch.cuda.device_count()
        if index >= count:
            raise InputError(f"device.index={index}: this machine has {count} CUDA GPUs; choices: 0 to {count - 1}")
        torch.cuda.set_device(index)
    if type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device=mps: Apple's MPS does not work here; choices: device=auto, device=cpu")
    threads = torch.get_num_threads() if threads is None else threads
    torch.set_num_threads(threads)
    return Device(torch.device(type, index) if type == "cuda" else torch.device(type), threads)


def check_compiler(where: torch.device, key: str) -> None:
    """Refuses a machine where torch.compile would not find what it calls: a C++ compiler, and on CUDA triton.

    Raises:
        InputError: begins with the key.
    """
    command = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch._inductor.config.cpp
    if shutil.which(command) is None:
        raise InputError(
            f"{key}: torch.compile needs a C++ compiler, and there is no {command}; set CXX, or choose null"
        )
    if where.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise InputError(f"{key}: torch.compile on CUDA needs triton; install it, or choose null")


def set_deterministic(enabled: bool) -> None:
    """Switches torch's deterministic algorithms, and cuDNN's, on or off for this process."""
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    if enabled == torch.are_deterministic_algorithms_enabled() == torch.backends.cudnn.deterministic and not only_warns:
        return
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.deterministic = enabled
