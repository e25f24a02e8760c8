"""Learning-rate schedulers that torch's own classes leave to the caller to size or to assemble."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from runner.values import compile_expression

Factor = str | float | Callable[[int], float]


def lambda_lr(
    optimizer: Optimizer,
    lr_lambda: Factor | Sequence[Factor],
    batches_per_epoch: int,
    interval: str = "epoch",
    epochs: int | None = None,
    steps: int | None = None,
) -> LambdaLR:
    """torch's LambdaLR from expressions in `epoch` and `step` (batches), both counted from 0, or from functions.

    A function gets the number of intervals done. A list holds one for each of the optimizer's param groups.

    Args:
        epochs, steps: of the whole run; an expression may name them, and batches_per_epoch.

    Raises:
        ValueError: an expression that does not parse, or a list of another length than the param groups.
    """

    def as_function(factor: Factor) -> Callable[[int], float]:
        if callable(factor):
            function = factor
            return lambda count: function(count)  # LambdaLR pickles a callable object's attributes; not a function's
        expression = compile_expression(str(factor), ("epoch", "step"), known)
        if interval == "batch":
            return lambda count: float(expression(epoch=count // batches_per_epoch, step=count))
        return lambda count: float(expression(epoch=count, step=count * batches_per_epoch))

    known = {"batches_per_epoch": batches_per_epoch, "epochs": epochs, "steps": steps}

    if isinstance(lr_lambda, (list, tuple)):
        if len(lr_lambda) != len(optimizer.param_groups):
            raise ValueError(f"lr_lambda has {len(lr_lambda)} entries for {len(optimizer.param_groups)} param groups")
        return LambdaLR(optimizer, [as_function(factor) for factor in lr_lambda])
    return LambdaLR(optimizer, as_function(lr_lambda))  # type: ignore[arg-type]


def has_momentum(optimizer: Optimizer) -> bool:
    """Whether OneCycleLR has a momentum to cycle: betas, or a momentum that is not 0."""
    return all("betas" in group or group.get("momentum", 0) != 0 for group in optimizer.param_groups)


def one_cycle(
    optimizer: Optimizer,
    max_lr: float | Sequence[float],
    total_steps: int,
    pct_start: float = 0.3,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    cycle_momentum: bool | None = None,
) -> OneCycleLR:
    """torch's OneCycleLR; cycle_momentum None cycles the momentum where the optimizer has one.

    Args:
        max_lr: of the first param group; the others keep their ratio to it. A list has one for each.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if not isinstance(max_lr, (list, tuple)) and len(set(rates)) > 1 and rates[0] > 0:
        max_lr = [max_lr * rate / rates[0] for rate in rates]  # type: ignore[operator]
    return OneCycleLR(
        optimizer,
        max_lr=max_lr,  # type: ignore[arg-type]
        total_steps=total_steps,
        pct_start=pct_start,
        anneal_strategy=anneal_strategy,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
        cycle_momentum=has_momentum(optimizer) if cycle_momentum is None else cycle_momentum,
    )


def cosine_restarts(
    optimizer: Optimizer,
    run_length: int,
    cycles: int = 2,
    T_0: int | None = None,
    T_mult: int = 1,
    eta_min: float = 0.0,
) -> CosineAnnealingWarmRestarts:
    """torch's CosineAnnealingWarmRestarts; T_0 None is the run's length cut into `cycles`, rounded up."""
    if cycles < 1:
        raise ValueError(f"cycles={cycles}: must be at least 1")
    length = math.ceil(run_length / cycles) if T_0 is None else T_0
    return CosineAnnealingWarmRestarts(optimizer, T_0=length, T_mult=T_mult, eta_min=eta_min)


def warmup_cosine(
    optimizer: Optimizer,
    run_length: int,
    warmup: float = 0.1,
    start_factor: float = 0.01,
    eta_min: float = 0.0,
) -> LRScheduler:
    """A linear warm-up from start_factor x lr to lr, then a cosine to eta_min at the end of the run.

    Args:
        warmup: a float is a fraction of run_length (rounded, at least 1); an int is a number of intervals. 0: none.

    Raises:
        ValueError: a warm-up as long as the run, or negative.
    """
    length = warmup if isinstance(warmup, int) else max(1, round(warmup * run_length)) if warmup > 0 else warmup
    if length < 0 or (length >= run_length and run_length > 1):
        raise ValueError(f"warmup={warmup}: must be at least 0 and shorter than the run ({run_length})")
    if length == 0 or run_length == 1:
        return CosineAnnealingLR(optimizer, T_max=run_length, eta_min=eta_min)
    rising = LinearLR(optimizer, start_factor=start_factor, total_iters=int(length))
    falling = CosineAnnealingLR(optimizer, T_max=run_length - int(length), eta_min=eta_min)
    return SequentialLR(optimizer, [rising, falling], milestones=[int(length)])
