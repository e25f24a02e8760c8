"""What the measurements share: made-up data in MNIST's own files, commands with time and memory, the machine."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DENSE = ["model=mlp", "model.hidden=[64,128,64]", "model.batch_norm=true", "optimizer=adam", "scheduler=constant"]
DENSE += ["dataset=mnist", "dataset.val_size=5000", "dataloader.batch_size=128", "trainer.epochs=1"]


def write_mnist(root: Path, count: int = 60_000, test_count: int = 10_000) -> Path:
    """A root for torchvision's MNIST with random images: what a step costs does not depend on what they show."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("train", count), ("t10k", test_count)):
        arrays = {"images-idx3": rng.integers(0, 256, (size, 28, 28)), "labels-idx1": rng.integers(0, 10, (size,))}
        for kind, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return root


class Done(NamedTuple):
    """A command that ended well: seconds from its start to its end, and its highest memory in MB."""

    seconds: float
    megabytes: float
    output: str


# A small process in between: a child starts with its parent's highest memory on its own account.
STARTER = """
import resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
seconds = time.perf_counter() - began
print(done.returncode, seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(done.stdout)
"""


def command(words: Iterable[str]) -> Done:
    """Runs `python WORDS` in the current folder."""
    started = [sys.executable, "-S", "-c", STARTER, *words]
    first, _, output = subprocess.run(started, check=True, capture_output=True, text=True).stdout.partition("\n")
    code, seconds, peak = first.split()
    if code != "0":
        raise RuntimeError(f"{' '.join(words)} ended with {code}:\n{output}")
    return Done(float(seconds), float(peak) / (1e6 if sys.platform == "darwin" else 1024), output)


def in_turn(rounds: int, cases: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Every case's results, one after the other, round by round: what disturbs the machine disturbs all of them."""
    results: dict[str, list[Any]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in list(cases) if number % 2 == 0 else reversed(cases):
            results[name].append(cases[name]())
            print(f"  round {number + 1} of {rounds}: {name}", flush=True)
    return results


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def machine() -> str:
    """One line: processor, cores, memory, system, versions, date."""
    import psutil
    import torch
    import torchvision

    processor, about = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    text = about.read_text() if about.exists() else ""
    names = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")]
    bf16 = ", ".join(name for name in ("avx512_bf16", "amx_bf16") if name in text) or "no bf16 instructions"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{time.strftime('%Y-%m-%d')}, {names[0] if names else processor}, {os.cpu_count()} cores ({bf16}),"
        f" {psutil.virtual_memory().total / 2**30:.0f} GiB, {gpu}; {platform.system()},"
        f" Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__},"
        f" {torch.get_num_threads()} threads"
    )
