"""All that a search needs of Optuna beyond its public names: checked against optuna 4.0 and 5.0.

Each entry says what breaks if Optuna moves it; tests/test_optuna_adapter.py has a test that fails by its name.
"""

import pickle
import types
from collections.abc import Callable
from typing import Any


def read_states_by(loads: Callable[[bytes], Any]) -> None:
    """Lets Optuna's CMA-ES sampler read its pickled state by `loads`. Optuna has no public way in. If its module moves,
    a search says so when it opens its study; a state that is not read by `loads` could run a stranger's code.
    """
    from optuna.samplers import _cmaes

    _cmaes.pickle = types.SimpleNamespace(loads=loads, dumps=pickle.dumps)


def storage_of(study: Any) -> tuple[Any, int]:
    """A study's storage, and the study's number there. A trial that another process asked for can only be written to
    by it. If it moves, a search with a pruner stops after its first trial.
    """
    return study._storage, study._study_id
