"""The sampler of each trial, with a seed of its own."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from runner.errors import InputError

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


def make_sampler(node: Any, number: int, seed: int) -> Any:
    """The sampler of one trial, with a seed from (seed, number). One whose seed chooses an order that all trials walk
    along, a grid's or a quasi-random sequence's, keeps one seed throughout.
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

    give_seeds(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = instantiate(plain, "hydra.sweeper.sampler")
    if not isinstance(made, optuna.samplers.BaseSampler):
        raise InputError(f"hydra.sweeper.sampler: must be an optuna sampler, got {type(made).__name__}")
    return made
