"""A run's first steps under a stopwatch and under torch.profiler: their time, operators, memory and arithmetic.

Contract: the objects and the loop are the run's own; no folder, no checkpoint, no listener; what is measured is what a
run does between two evaluations. The stopwatch goes first, without the profiler, which makes a step slower.
"""

import gc
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch.profiler import ProfilerActivity

from runner.before.beforehand import quietly
from runner.before.peak import Peak, counted, matmul_peak, sizes_of
from runner.before.stopwatch import Stopwatch, watched_steps
from runner.config import admission
from runner.config.checks import check_composed, check_targets
from runner.errors import Diverged, InputError
from runner.job.build import build
from runner.job.built import Built
from runner.seeding import alone
from runner.storage.checkpoint import Checkpoints
from runner.terminal.progress import bar
from runner.train.precision import AUTOCAST
from runner.train.steps import to_device, train_step
from runner.train.trainer import Trainer

MOST_TRACED = 10  # steps under torch.profiler: a trace of more is large


@dataclass(frozen=True)
class Operator:
    """One of torch's operators, by step, under the profiler: without the operators that it calls.

    Args:
        seconds: on the host; device_seconds: on the device, where that is another.
    """

    name: str
    calls: float
    seconds: float
    device_seconds: float


@dataclass(frozen=True)
class Profile:
    """What the steps took, in seconds a step and in bytes.

    Args:
        pieces: the mean of each piece on the host; they add up to `step`. device_pieces: on the device's own clock.
        low, median, high: of a step: 8 of 10 lie from low to high.
        operators: the most expensive first. traced_step: of a step under the profiler.
        memory: bytes of parameters, gradients and the optimizer's state; at most at once: what a step allocates beyond
            what stands between two of them (CPU), all of the device's, all of the process's.
        flops: of a step, by operator. why_not: why they could not be counted.
    """

    device: str
    precision: str
    threads: int
    placement: str
    batches: int
    steps: int
    warmup: int
    step: float
    low: float
    median: float
    high: float
    examples_per_second: float
    pieces: dict[str, float]
    device_pieces: dict[str, float] | None
    operators: list[Operator]
    traced_step: float
    traced_steps: int
    memory: dict[str, int]
    flops: dict[str, int]
    why_not: str | None
    peak: Peak
    trace: str  # in Chrome's format, which ui.perfetto.dev reads
    said: list[str]


def profiled(cfg: DictConfig, steps: int, warmup: int) -> Profile:
    """Trains `warmup` steps, and then `steps` that are measured, and some more under torch.profiler.

    Raises:
        InputError: as a run would, before its first step; or the run diverges.
    """
    check_composed(cfg)
    with alone(), admission.of_config(cfg), quietly() as found:
        check_targets(cfg, True)
        with closing(build(cfg, is_new=True)) as built:
            built.trainer.checkpoints = Checkpoints(save="none")
            if not gc.isenabled():  # in a process of our own; from here on as runner.job.run has it
                gc.freeze()
                gc.enable()
            try:
                return measured(built, steps, warmup, list(found.lines))
            except Diverged as error:
                raise InputError(f"{error}: there is nothing to measure") from error


def measured(built: Built, steps: int, warmup: int, warned: list[str]) -> Profile:
    trainer, device = built.trainer, built.trainer.config.device
    traced = min(steps, MOST_TRACED)
    with bar("profiling", steps + warmup + traced + len(sizes_of(device))) as done:
        if warmup:
            watched_steps(trainer, warmup, Stopwatch(device), done.add)
        said = [*warned, *remarks(built)]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        watch = Stopwatch(device)
        examples = watched_steps(trainer, steps, watch, done.add)
        memory = memory_of(trainer)
        operators, seconds, trace = under_profiler(trainer, traced, done.add)
        if device.type == "cpu" and (most := most_allocated(trace)) is not None:
            memory["step"] = most
        flops, why_not = arithmetic(trainer)
        dtype = AUTOCAST.get(trainer.config.step.precision.type, torch.float32)
        peak = matmul_peak(device, dtype, done.add)
    each = watch.steps()
    tenths = statistics.quantiles(each, n=10, method="inclusive") if len(each) > 1 else each * 9
    on_device = watch.on_device()
    return Profile(
        device=built.device.name,
        precision=trainer.config.step.precision.type,
        threads=built.device.threads,
        placement=built.placement.where,
        batches=len(trainer.train_loader),
        steps=steps,
        warmup=warmup,
        step=watch.seconds / steps,
        low=tenths[0],
        median=statistics.median(each),
        high=tenths[-1],
        examples_per_second=examples / watch.seconds,
        pieces={piece: spent / steps for piece, spent in watch.on_host().items()},
        device_pieces=None if on_device is None else {piece: spent / steps for piece, spent in on_device.items()},
        operators=operators,
        traced_step=seconds / traced,
        traced_steps=traced,
        memory=memory,
        flops=flops,
        why_not=why_not,
        peak=peak,
        trace=trace,
        said=said,
    )


def remarks(built: Built) -> list[str]:
    """Why later steps may take less than the measured ones."""
    said, part = [], built.parts.train
    store = built.placement.stores.get(id(part.dataset))
    if store is not None and not store.holds(part.indices):
        batches = len(built.trainer.train_loader)
        said.append(
            "these steps are of the first epoch, which reads each example into memory; later ones do not, and"
            f" --warmup {batches} measures those"
        )
    if built.config["trainer"].get("compile"):
        said.append("torch.compile works anew for each shape: a short last batch of an epoch may be among these steps")
    return said


# --------------------------------------------------------------------------------------------------------- operators


def under_profiler(trainer: Trainer, steps: int, told: Callable[[], None]) -> tuple[list[Operator], float, str]:
    """The operators of some steps, the most expensive first; the seconds of all steps; and the trace."""
    is_cuda = trainer.config.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    watch = Stopwatch(trainer.config.device, is_traced=True)
    trainer.optimizer.zero_grad()  # what is freed under the profiler is to be what was allocated there
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        watched_steps(trainer, steps, watch, told)
    found = [
        Operator(
            one.key, one.count / steps, one.self_cpu_time_total / 1e6 / steps, one.self_device_time_total / 1e6 / steps
        )
        for one in profile.key_averages()
        if not one.is_user_annotation and one.device_type.name == "CPU"  # a kernel's time is its operator's too
    ]
    found.sort(key=lambda one: -(one.device_seconds if is_cuda else one.seconds))
    with tempfile.TemporaryDirectory(prefix="runner-profile-") as folder:
        path = Path(folder, "trace.json")
        profile.export_chrome_trace(str(path))
        text = path.read_text(encoding="utf-8", errors="replace")
    return found, watch.seconds, text


def most_allocated(text: str) -> int | None:
    """The most bytes that were allocated at once in a trace, beyond what was before it; None: it does not tell."""
    events = json.loads(text)["traceEvents"]
    at_once = [event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]"]
    return max(at_once, default=None)


# ------------------------------------------------------------------------------------------------ memory, arithmetic


def memory_of(trainer: Trainer) -> dict[str, int]:
    """Bytes by what they are for."""
    trained = [p for p in trainer.task.parameters() if p.requires_grad]
    kept = [v for state in trainer.optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
    found = {
        "parameters": sum(map(size_of, trainer.task.parameters())),
        "gradients": sum(map(size_of, trained)),
        "optimizer": sum(map(size_of, kept)),
    }
    if trainer.config.device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(trainer.config.device)
    unit = 1 if sys.platform == "darwin" else 1024
    return found | {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}


def size_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def arithmetic(trainer: Trainer) -> tuple[dict[str, int], str | None]:
    """The floating-point operations of one step by operator, or why they are not known."""
    batch = to_device(
        next(iter(trainer.train_loader.batches())), trainer.config.device, trainer.config.step.channels_last
    )
    try:
        flops = counted(lambda: train_step(trainer.task, trainer.optimizer, batch, trainer.config.step))
    except Exception as error:
        return {}, f"{type(error).__name__}: {' '.join(str(error).split())}"
    return flops, None if flops else "none of its operators is one that torch counts: products, convolutions, attention"
