"""`runner profile WORDS`: where the time of a training step goes, and what share of the machine's peak that is."""

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli import one_run
from runner.errors import InputError
from runner.storage.files import read_regular, write_atomically
from runner.terminal.printable import can_show, say
from runner.terminal.words import plural, size

if TYPE_CHECKING:
    from runner.before.profiling import Profile

STEPS, WARMUP, TOP, MOST = 50, 5, 10, 10_000
BAR = 30  # cells of a whole step
LONGEST = 60  # name of an operator
# What torch's profiler says of itself on stderr, which is no news to a reader. Read when torch is imported.
SILENT = {"KINETO_LOG_LEVEL": "6", "TORCH_CPP_LOG_LEVEL": "ERROR"}
MADE_BY = b'{"madeBy": "runner profile", '


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner profile",
        description="Trains some steps of a run and says where their time goes, which operators take it, how much"
        " memory and arithmetic they need, and what share of this machine's peak that is. Nothing is kept but the"
        " trace.",
    )
    one_run.add_flags(made)
    made.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"steps that are measured ({STEPS})")
    made.add_argument("--warmup", type=int, default=WARMUP, metavar="N", help=f"steps before them ({WARMUP})")
    made.add_argument("--top", type=int, default=TOP, metavar="N", help=f"operators that are listed ({TOP})")
    made.add_argument(
        "-o", "--output", type=Path, metavar="TRACE.json", help="a trace to look at in https://ui.perfetto.dev"
    )
    made.add_argument("--json", action="store_true", help="the figures, as JSON")
    return made


def main(arguments: argparse.Namespace) -> int:
    check(arguments)
    silent = {name: value for name, value in SILENT.items() if name not in os.environ}
    os.environ.update(silent)
    try:
        cfg = one_run.config_of(arguments)
        from runner.before.profiling import profiled

        found = profiled(cfg, arguments.steps, arguments.warmup)
    finally:
        for name in silent:
            os.environ.pop(name, None)
    if arguments.json:
        figures = {key: value for key, value in asdict(found).items() if key != "trace"}
        say(*json.dumps(figures, indent=2).splitlines())
    else:
        say(*lines(found, arguments.top))
    if arguments.output is not None:
        write(arguments.output, found.trace)
        say(arguments.output)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """Refuses counts out of range, and a file that is something else.

    Raises:
        InputError: names the flag and its value.
    """
    for flag, least in (("steps", 1), ("warmup", 0), ("top", 1)):
        if not least <= getattr(arguments, flag) <= MOST:
            raise InputError(f"--{flag} {getattr(arguments, flag)}: must be a whole number of {least} to {MOST:,}")
    if arguments.output is not None:
        check_trace(arguments.output)


def check_trace(path: Path) -> None:
    if path.is_dir() or not path.parent.is_dir():
        reason = "is a folder, not a file" if path.is_dir() else f"there is no folder {path.parent}"
        raise InputError(f"-o {path}: {reason}")
    if path.is_symlink() or path.exists():
        try:
            is_ours = not path.is_symlink() and read_regular(path).startswith(MADE_BY)
        except OSError:
            is_ours = False
        if not is_ours:
            raise InputError(f"-o {path}: is there already, and is no trace of `runner profile`; give another name")


def write(path: Path, trace: str) -> None:
    try:
        write_atomically(path, MADE_BY + trace.lstrip()[1:].encode())
    except OSError as error:
        raise InputError(f"-o {path}: cannot be written ({error.strerror or error})") from error


def lines(found: "Profile", top: int) -> list[str]:
    """The screen."""
    return [
        f"device {found.device}, {found.precision}, {plural(found.threads, 'CPU thread')}, batches from"
        f" {found.placement}",
        f"a step takes {time_of(found.step)} ({found.examples_per_second:,.0f} examples/s): the mean of {found.steps}"
        f" steps after {found.warmup} of warm-up; median {time_of(found.median)}, 8 of 10 from {time_of(found.low)} to"
        f" {time_of(found.high)}",
        "",
        *pieces(found),
        "",
        *operators(found, top),
        "",
        *memory(found),
        *arithmetic(found),
        *(f"note: {line}" for line in found.said),
    ]


def pieces(found: "Profile") -> list[str]:
    """Where the time goes, with the sum."""
    from runner.before.stopwatch import PIECES

    on_device = found.device_pieces
    measured = found.pieces if on_device is None else on_device
    total = sum(measured.values())
    rows = []
    for piece, seconds in measured.items():
        times = [time_of(found.pieces[piece]), *([] if on_device is None else [time_of(seconds)])]
        rows.append([piece, *times, percent(seconds / total), stripe(seconds / total), PIECES[piece]])
    sums = [time_of(sum(found.pieces.values())), *([] if on_device is None else [time_of(total)])]
    rows.append(["sum", *sums, percent(1.0), "", ""])
    times = ["time"] if on_device is None else ["on the host", "on the device"]
    return aligned(["", *times, "share", "", ""], rows, right=range(1, len(times) + 2))


def operators(found: "Profile", top: int) -> list[str]:
    """The operators that take most, and what is none of an operator."""
    is_host = found.device_pieces is None
    times = [(one, one.seconds if is_host else one.device_seconds) for one in found.operators]
    first, others = times[:top], times[top:]
    rows = [(one.name, f"{one.calls:g}", seconds) for one, seconds in first]
    if others:
        rows.append((f"{len(others)} others", "", sum(seconds for _, seconds in others)))
    left = found.traced_step - sum(seconds for _, seconds in times)
    if left > 0:
        rows.append(("in none (Python, the loop, the profiler)" if is_host else "the device waits", "", left))
    cells = [
        [shortened(name), calls, time_of(seconds), percent(seconds / found.traced_step)]
        for name, calls, seconds in rows
    ]
    return [
        f"operators, each without those that it calls: the mean of {found.traced_steps} steps under torch.profiler,"
        f" where one takes {time_of(found.traced_step)}",
        *aligned(["", "calls", "time", "share"], cells, right=range(1, 4)),
    ]


def memory(found: "Profile") -> list[str]:
    known = found.memory
    said = ", ".join(f"{name} {size(known[name])}" for name in ("parameters", "gradients", "optimizer"))
    lines = [f"memory: {said}"]
    if "step" in known:
        lines.append(
            f"  a step allocates {size(known['step'])} at once at most: gradients, activations, passing things"
        )
    if "device" in known:
        lines.append(f"  the device held {size(known['device'])} at most")
    return [*lines, f"  the process held {size(known['process'])} at most, libraries and data included"]


def arithmetic(found: "Profile") -> list[str]:
    """What share of the peak forward and backward reach."""
    peak = f"{in_units(found.peak.flops, 'FLOP/s')}, the best that torch.mm reached here just now"
    peak += f" ({found.peak.dtype}, {found.peak.size} x {found.peak.size})"
    if not found.flops:
        return [f"arithmetic: not counted ({found.why_not}); the machine's peak is {peak}"]
    total, times = sum(found.flops.values()), found.device_pieces or found.pieces
    by_operator = sorted(found.flops.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{name} {count / total:.0%}".replace("%", " %") for name, count in by_operator[:4])
    speed = total / (times["forward"] + times["backward"])
    return [
        f"arithmetic: {in_units(total, 'FLOP')} a step, of what torch counts ({shares})",
        f"  in forward and backward {in_units(speed, 'FLOP/s')}: {percent(speed / found.peak.flops)} of {peak}",
    ]


# ---------------------------------------------------------------------------------------------------------- in words


def time_of(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.{2 if seconds * factor < 10 else 1}f} {unit}"
    return f"{seconds * 1e6:.0f} µs"


def in_units(count: float, unit: str) -> str:
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}{unit}"
    return f"{count:.0f} {unit}"


def shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..."


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def stripe(share: float) -> str:
    return ("█" if can_show("█") else "#") * round(share * BAR)


def aligned(header: list[str], rows: list[list[str]], right: Iterable[int]) -> list[str]:
    """A table whose columns of `right` are figures with units."""
    every = [header, *rows]
    widths = [max(len(row[at]) for row in every) for at in range(len(header))]
    to_right = set(right)
    return [
        "  ".join(
            f"{text:>{w}}" if at in to_right else f"{text:{w}}"
            for at, (text, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in every
    ]
