"""What the measurements share: made-up data in MNIST's own files, commands with time and memory, the machine."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
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


def command(words: Iterable[str]) -> Done:
    """Runs `python WORDS` in the current folder."""
    with tempfile.TemporaryFile("w+") as file:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        file.seek(0)
        output = file.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{output}")
    return Done(seconds, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1024), output)


def in_turn(rounds: int, cases: dict[str, Callable[[], Any]]) -> dict[str, list[Any]]:
    """Every case's results, one after the other, round by round: what disturbs the machine disturbs all of them."""
    results: dict[str, list[Any]] = {name: [] for name in cases}
    for number in range(rounds):
        for name, case in cases.items():
            results[name].append(case())
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
