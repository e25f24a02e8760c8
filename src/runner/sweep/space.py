"""A search's space, from Hydra's grammar to Optuna's distributions, and the sampler that draws from it."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from runner.errors import InputError

TRIED = 12  # made-up trials: more than any sampler of Optuna's begins with at random


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


def holds(distribution: Any, value: Any) -> bool:
    """Whether a value is one that the distribution can give. A study's file may say anything."""
    if hasattr(distribution, "choices"):
        return value in distribution.choices
    kinds = (int,) if isinstance(distribution.low, int) else (int, float)
    return type(value) in kinds and bool(distribution.low <= value <= distribution.high)


def text_of(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def try_sampler(sampler: Any, space: Mapping[str, Any]) -> None:
    """Lets a sampler choose once, in a study in memory with some trials: several import what they need only then.

    Raises:
        InputError: a package that it needs is not there.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.stop = lambda: None  # of one that has tried everything
    for value in range(TRIED):
        study.tell(study.ask(dict(space)), value)
    study.sampler = sampler
    try:
        study.ask(dict(space))
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"hydra.sweeper.sampler._target_={type(sampler).__name__}: {reason}") from error
    except Exception:  # whatever else it thinks of made-up trials
        return


def make_sampler(node: Any, number: int, seed: int) -> Any:
    """The sampler of one trial, with a seed from (seed, number). One whose seed chooses an order that all trials walk
    along, a grid's or a quasi-random sequence's, keeps one seed throughout.
    """
    import warnings

    import optuna
    from omegaconf import OmegaConf

    from runner.config.checks import locate
    from runner.job.instantiate import instantiate
    from runner.seeding import derive

    plain = OmegaConf.to_container(copy.deepcopy(node), resolve=True)
    assert isinstance(plain, dict)
    one_order = (optuna.samplers.GridSampler, optuna.samplers.QMCSampler)

    def give_seeds(node: Any) -> None:  # a sampler may hold others
        if not isinstance(node, dict):
            return
        for inner in node.values():
            give_seeds(inner)
        kind = locate(node.get("_target_"), "hydra.sweeper.sampler")
        if not isinstance(kind, type) or not issubclass(kind, optuna.samplers.BaseSampler):
            return
        takes_seed = "seed" in inspect.signature(kind).parameters
        if node.get("seed", None) is None and (takes_seed or "seed" in node):
            node["seed"] = derive(seed, "sampler", 0 if issubclass(kind, one_order) else number) % 2**32
        if not takes_seed:
            node.pop("seed", None)  # the default choice's key, which this one does not take

    give_seeds(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = instantiate(plain, "hydra.sweeper.sampler")
    if not isinstance(made, optuna.samplers.BaseSampler):
        raise InputError(f"hydra.sweeper.sampler: must be an optuna sampler, got {type(made).__name__}")
    return made
