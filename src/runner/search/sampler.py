"""The sampler of each trial, with a seed of its own."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from runner.errors import InputError
from runner.search.space import chosen, in_words
from runner.values import flatten, guess

GROUP = "hydra.sweeper.sampler"
TRIED = 12  # made-up trials: more than any sampler of Optuna's begins with at random


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


def make_sampler(node: Any, number: int, seed: int, space: Mapping[str, Any]) -> Any:
    """The sampler of one trial, with a seed from (seed, number). One whose seed chooses an order that all trials walk
    along, a grid's or a quasi-random sequence's, keeps one seed throughout. The values of a grid, and those that are
    fixed, are the space's own: a choice's is a text.

    Raises:
        InputError: no sampler, or a value that the space does not hold.
    """
    import warnings

    import optuna
    from omegaconf import OmegaConf

    from runner.config.checks import locate
    from runner.groups.instantiate import instantiate
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
        if issubclass(kind, optuna.samplers.QMCSampler) and node.get("independent_sampler") is None:
            of_trial = derive(seed, "sampler", number) % 2**32  # its own would draw the same for each trial
            node["independent_sampler"] = {"_target_": "optuna.samplers.RandomSampler", "seed": of_trial}
        if not takes_seed:
            node.pop("seed", None)  # the default choice's key, which this one does not take
        if issubclass(kind, optuna.samplers.GridSampler):
            node["search_space"] = grid_of(node.get("search_space") or {}, space)
        if issubclass(kind, optuna.samplers.PartialFixedSampler):
            node["fixed_params"] = of_space("fixed_params", node.get("fixed_params") or {}, space)

    give_seeds(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = instantiate(plain, "hydra.sweeper.sampler")
    if not isinstance(made, optuna.samplers.BaseSampler):
        raise InputError(f"hydra.sweeper.sampler: must be an optuna sampler, got {type(made).__name__}")
    return made


def grid_of(given: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A grid's values for each key: those that are given, else all that the key's distribution holds.

    Raises:
        InputError: too many values to list, or one that is not in the space.
    """
    found = of_space("search_space", given, space)
    for key, distribution in space.items():
        if key in found:
            continue
        if not hasattr(distribution, "choices") and distribution.step is None:
            raise InputError(
                f"{GROUP}.search_space: {key.lstrip('+')} has {in_words(distribution)}, and a grid needs its values:"
                f" '+{GROUP}.search_space={{{key.lstrip('+')}: [{distribution.low}, {distribution.high}]}}'"
            )
        found[key] = all_of(distribution)
    return found


def all_of(distribution: Any) -> list[Any]:
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    count = round((distribution.high - distribution.low) / distribution.step)
    return [distribution.low + number * distribution.step for number in range(count + 1)]


def of_space(name: str, given: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's values by key, as Optuna has them in this space.

    Raises:
        InputError: names the key, the value and what the space holds.
    """
    found = {}
    for key, values in flatten(given).items():
        own = next((known for known in space if known.lstrip("+") == key.lstrip("+")), None)
        if own is None:
            known = [known.lstrip("+") for known in space]
            raise InputError(
                f"{GROUP}.{name}: {key}: is not searched over; {guess(key, known)}choices: {', '.join(known)}"
            )
        if name == "search_space" and (not isinstance(values, list) or not values):
            raise InputError(f"{GROUP}.{name}: {key}={values}: must be a list of values, as in {{{key}: [0.1, 1.0]}}")
        several = values if name == "search_space" else [values]
        made = [chosen(space[own], value) for value in several]
        if None in made:
            wrong = several[made.index(None)]
            raise InputError(f"{GROUP}.{name}: {key}={wrong}: is not in the search's space: {in_words(space[own])}")
        found[own] = made if name == "search_space" else made[0]
    return found
