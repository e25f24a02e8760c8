"""A search's space, from Hydra's grammar to Optuna's distributions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runner.errors import InputError
from runner.sweep.points import is_points

ONE_OBJECTIVE = "a search has one objective; name one metric, and take more from `runner ls`"


@dataclass
class Space:
    """What a search varies.

    Args:
        fixed: the overrides that are the same for each trial.
        keys: an Optuna distribution for each key that varies, in the order of the command.
        seeds: over which a trial's value is the mean; none: of the one seed that the config has.
    """

    fixed: list[str]
    keys: dict[str, Any]
    seeds: list[str]

    @property
    def swept(self) -> list[str]:
        """What varies from job to job."""
        return [*self.keys, *(["seed"] if self.seeds else [])]

    def jobs(self, params: Mapping[str, Any]) -> list[list[str]]:
        """The overrides of each of a trial's jobs."""
        words = [*self.fixed, *(f"{key}={text_of(value)}" for key, value in params.items())]
        return [[*words, f"seed={seed}"] for seed in self.seeds] or [words]

    def settings(self, params: Mapping[str, Any], seed: str) -> dict[str, str]:
        """What varies of a trial's job, as its job.json has it."""
        return {**{key.lstrip("+"): text_of(value) for key, value in params.items()}, "seed": seed}


def search_space(sweeper: Any, arguments: list[str]) -> Space:
    """The space that a command's words say.

    Raises:
        InputError: what cannot be searched over, or nothing to search over.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader).parse_overrides(arguments)
    fixed, space = [], dict[str, Any]()
    seeds: list[str] = []
    for override in parsed:
        key = override.get_key_element()
        if is_points(override):
            continue
        if key.lstrip("+") == "seed":
            seeds = seeds_of(override)
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
            space.pop(key, None)  # of two overrides of one key the later one counts
            continue
        if key.split(".")[0].lstrip("+") in ("hydra", "sweep"):
            raise InputError(f"{key}: cannot be searched over: it belongs to the sweep as a whole")
        if key.lstrip("+") in ("trainer.monitor", "trainer.mode"):
            raise InputError(f"{override.input_line}: {ONE_OBJECTIVE}")
        if key.lstrip("+") != "seed":
            space[key] = distribution_of(override)
    if not space:
        seeds_alone = "; over seeds alone a plain sweep runs (without hydra/sweeper=optuna)" if seeds else ""
        raise InputError(
            "hydra/sweeper=optuna: there is nothing to search over; give a key a space, as in"
            f" 'optimizer.lr=tag(log, interval(0.01, 1))' or scheduler=step,cosine{seeds_alone}"
        )
    return Space(fixed, space, seeds) if len(seeds) > 1 else Space([*fixed, *(f"seed={s}" for s in seeds)], space, [])


def seeds_of(override: Any) -> list[str]:
    """The seeds of `seed=1,2,3`, each once: a seed is nothing that a sampler could learn from."""
    if not override.is_sweep_override():
        return []
    if not override.is_discrete_sweep():
        raise InputError(
            f"{override.input_line}: a seed is no hyperparameter; a list of seeds (seed=1,2,3) makes each trial's value"
            " the mean over them"
        )
    found = list(dict.fromkeys(override.sweep_string_iterator()))
    if not found:
        raise InputError(f"{override.input_line}: an empty list leaves no seed to run")
    return found


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


def chosen(distribution: Any, value: Any) -> Any:
    """What Optuna has for a value that was given; None where the distribution does not hold it."""
    if hasattr(distribution, "choices"):
        own = [choice for choice in distribution.choices if choice == value or is_same(as_value(choice), value)]
        return next(iter(own), None)
    if isinstance(distribution.low, int) and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not holds(distribution, value):
        return None
    steps = (value - distribution.low) / (distribution.step or 1)
    if distribution.step is not None and abs(steps - round(steps)) > 1e-8:
        return None
    return float(value) if isinstance(distribution.low, float) else value


def as_value(text: str) -> Any:
    """What a word's value means to Hydra; the text itself where it is none."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(f"key={text}").value()
    except HydraException:
        return text
    return text if isinstance(value, Mapping) else value


def is_same(one: Any, two: Any) -> bool:
    return bool(one == two) and isinstance(one, bool) == isinstance(two, bool)


def in_words(distribution: Any) -> str:
    """What a distribution holds."""
    if hasattr(distribution, "choices"):
        return f"one of {', '.join(distribution.choices)}"
    step = distribution.step if distribution.step not in (None, 1) else None
    return f"{distribution.low} to {distribution.high}" + (f" in steps of {step}" if step is not None else "")


def text_of(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)
