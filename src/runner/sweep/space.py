"""A search's space, from Hydra's grammar to Optuna's distributions, and the sampler that draws from it."""

import copy
from typing import Any

from runner.errors import InputError


def search_space(sweeper: Any, arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides that are the same for each trial, and an Optuna distribution for each key that varies."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader).parse_overrides(arguments)
    fixed, space = [], {}
    for override in parsed:
        key = override.get_key_element()
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
            continue
        if key.split(".")[0].lstrip("+") in ("hydra", "sweep"):
            raise InputError(f"{key}: cannot be searched over: it belongs to the sweep as a whole")
        space[key] = distribution_of(override)
    if not space:
        raise InputError(
            "hydra/sweeper=optuna: there is nothing to search over; give a key a space, as in"
            " 'optimizer.lr=tag(log, interval(0.01, 1))' or scheduler=step,cosine"
        )
    return fixed, space


def distribution_of(override: Any) -> Any:
    """Hydra's grammar as Optuna's distributions: interval and range with tag(log, ...), choice."""
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    tags = set(getattr(value, "tags", ()))
    if unknown := tags - {"log"}:
        raise InputError(f"{override.input_line}: unknown tag {sorted(unknown)[0]}; choices: log")
    is_log = "log" in tags
    try:
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            assert low is not None and high is not None
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=is_log)
            return FloatDistribution(float(low), float(high), log=is_log)
        if isinstance(value, RangeSweep) and not value.shuffle:
            numbers = list(value.range())
            if is_log or not numbers:
                raise ValueError("a range takes no log, and must not be empty; interval(low, high) takes it")
            if all(isinstance(number, int) for number in numbers):
                return IntDistribution(numbers[0], numbers[-1], step=int(value.step))
            return FloatDistribution(float(numbers[0]), float(numbers[-1]), step=float(value.step))
    except ValueError as error:
        raise InputError(f"{override.input_line}: {error}") from error
    if is_log:
        raise InputError(f"{override.input_line}: log is for an interval")
    return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))


def ends(distribution: Any) -> list[Any]:
    """Every choice, or the two bounds."""
    return list(getattr(distribution, "choices", ())) or [distribution.low, distribution.high]


def text_of(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def make_sampler(node: Any, number: int, seed: int) -> Any:
    """The sampler of one trial, with a seed from (seed, number). A quasi-random sequence keeps one seed throughout."""
    import warnings

    import optuna
    from omegaconf import OmegaConf

    from runner.job.instantiate import instantiate
    from runner.seeding import derive

    plain = OmegaConf.to_container(copy.deepcopy(node), resolve=True)
    assert isinstance(plain, dict)
    if "seed" in plain and plain["seed"] is None:
        of_trial = 0 if str(plain.get("_target_", "")).endswith("QMCSampler") else number
        plain["seed"] = derive(seed, "sampler", of_trial) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = instantiate(plain, "hydra.sweeper.sampler")
    if not isinstance(made, optuna.samplers.BaseSampler):
        raise InputError(f"hydra.sweeper.sampler: must be an optuna sampler, got {type(made).__name__}")
    return made
