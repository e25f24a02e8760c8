"""All that this project needs of torch beyond its public names: checked against torch 2.9 and 2.15.

Each entry says what breaks if torch moves it; tests/test_torch_adapter.py has a test that fails by its name.
"""

import functools
import multiprocessing.connection
import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

LIMITS = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")
MOST_SHAPES = 256  # that one function of a model is compiled for
EVERY_SHAPE = (MOST_SHAPES, 2**31, True)  # of its copies, in layers of one class, there may be any number


def mark_as_stepped(optimizer: Optimizer) -> None:
    """Says that a step has come before the scheduler's, as it has in a run that goes on in a new process. Without it
    torch warns "lr_scheduler.step() before optimizer.step()" at the first epoch's end after a resume.
    """
    optimizer._opt_called = True  # type: ignore[attr-defined]


def compile_modes() -> list[str]:
    """The modes of torch.compile, for an error's choices. If it moves, a wrong mode ends in torch's traceback."""
    return list(torch._inductor.list_mode_options())


def may_have_compiled() -> bool:
    """Whether torch's compiler is imported, which takes a second: else nothing was compiled. If its module moves, the
    jobs of one process share a compiler that gives up after a few models, and runs them uncompiled.
    """
    return "torch._dynamo" in sys.modules


def compile_limits() -> tuple[Any, ...] | None:
    """How often torch compiles one function, one with its copies, and whether more is an error; None: its compiler is
    not imported.
    """
    return tuple(getattr(torch._dynamo.config, name) for name in LIMITS) if may_have_compiled() else None


def set_compile_limits(limits: tuple[Any, ...] | None) -> None:
    """Beyond its limit (8) torch runs a function uncompiled without a word: which of a model's input shapes these are
    depends on which came first in the process, so a run that goes on in another one has other bits. If a name moves, a
    run with trainer.compile fails when it is built. None: as they were at the first call.
    """
    import torch._dynamo

    first = _first_limits()
    for name, value in zip(LIMITS, limits or first, strict=True):
        setattr(torch._dynamo.config, name, value)


@functools.cache
def _first_limits() -> tuple[Any, ...]:
    limits = compile_limits()
    assert limits is not None
    return limits


def is_past_limit(error: BaseException) -> bool:
    """Whether a model was to be compiled for more than MOST_SHAPES shapes. If the name moves, torch's error is said."""
    return type(error).__name__ == "FailOnRecompileLimitHit"


def copy_all(tensors: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copies each source into its tensor, in one call for all: a loop takes several times as long. If it moves, a run
    with averaging fails at its first evaluation.
    """
    torch._foreach_copy_(list(tensors), list(sources))


def dead_workers(iterator: Any) -> list[int]:
    """The process ids of a DataLoader's workers that have died. If the name moves, a run whose worker was killed may
    end with the error of the broken pipe between the two, which says less.
    """
    workers = getattr(iterator, "_workers", [])
    multiprocessing.connection.wait([worker.sentinel for worker in workers], timeout=0.5)  # it may be dying just now
    return [worker.pid for worker in workers if not worker.is_alive()]


def end_loader_workers(iterator: Any, grace: float = 1.0) -> None:
    """Ends the workers of a DataLoader's iterator now; those that need longer than `grace` seconds are killed.

    torch ends them when the iterator is collected, which is never if a traceback or a persistent loader holds it; at
    exit it then sends signals, which our workers ignore, and waits for ever. If a name moves, runs with workers do not
    exit. An iterator without workers, or None, has nothing to end.
    """
    workers = getattr(iterator, "_workers", None)
    if not workers:
        return
    kill = threading.Timer(grace, lambda: [worker.kill() for worker in workers])
    kill.start()
    try:
        iterator._shutdown_workers()
    except RuntimeError:  # torch's handler of SIGCHLD, about a worker that was killed just now
        pass
    finally:
        kill.cancel()
        kill.join()
