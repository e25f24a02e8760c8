"""How much arithmetic a step is, and how fast this machine multiplies matrices: counted and measured, not looked up."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from runner.before.stopwatch import wait

SIZES = (256, 512, 1024, 2048)  # of the square matrices
LARGER = (4096, 8192)  # ... that a GPU needs to be busy
LEAST_SECONDS = 0.1  # that each size is measured for
ROUNDS = 3


@dataclass(frozen=True)
class Peak:
    """The fastest matrix product that was measured."""

    flops: float  # a second
    size: int
    dtype: str


def matmul_peak(device: torch.device, dtype: torch.dtype, told: Callable[[], None] = lambda: None) -> Peak:
    """Multiplies square matrices of several sizes, as often as takes a moment, and takes the best.

    Args:
        told: called after each size, of which there are `len(sizes_of(device))`.
    """
    best = Peak(0.0, 0, str(dtype).removeprefix("torch."))
    for size in sizes_of(device):
        one = torch.randn(size, size, device=device).to(dtype)
        out = torch.empty_like(one)
        torch.mm(one, one, out=out)
        for _ in range(ROUNDS):
            wait(device)
            count, began, seconds = 0, time.perf_counter(), 0.0
            while seconds < LEAST_SECONDS / ROUNDS:
                torch.mm(one, one, out=out)
                wait(device)
                count, seconds = count + 1, time.perf_counter() - began
            best = max(best, Peak(2 * size**3 * count / seconds, size, best.dtype), key=lambda peak: peak.flops)
        told()
    return best


def sizes_of(device: torch.device) -> tuple[int, ...]:
    return SIZES + (LARGER if device.type == "cuda" else ())


def counted(step: Callable[[], Any]) -> dict[str, int]:
    """The floating-point operations of one call by operator, as torch counts them: products and convolutions.

    Raises:
        Exception: whatever torch says where it cannot.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return {str(name).removeprefix("aten."): int(count) for name, count in counter.get_flop_counts()["Global"].items()}
