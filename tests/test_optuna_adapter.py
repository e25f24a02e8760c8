"""Optuna's names that are not public: each has a test that fails by its name if it moves."""

import pickle

import pytest

from runner.search import optuna_adapter, sampler_state

optuna = pytest.importorskip("optuna", reason="the optional extra [optuna]")


def test_storage_and_study_id_write_to_a_trial_that_another_process_asked_for(tmp_path):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    def opened():
        storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
        return optuna.create_study(storage=storage, study_name="s", load_if_exists=True)

    number = opened().ask().number
    storage, of_study = optuna_adapter.storage_of(opened())
    trial = storage.get_trial_id_from_study_id_trial_number(of_study, number)
    storage.set_trial_user_attr(trial, "ours", 1)
    assert opened().trials[number].user_attrs == {"ours": 1}


def test_cmaes_reads_its_own_state_by_what_it_is_given():
    """By a search whose sampler has kept a state: it is read by the function, which may refuse it."""
    pytest.importorskip("cmaes", reason="Optuna does not bring it")
    asked = []

    def loads(text):
        asked.append(text)
        return sampler_state.loads(text)

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        optuna_adapter.read_states_by(loads)
        study = optuna.create_study(sampler=optuna.samplers.CmaEsSampler(seed=1, n_startup_trials=1))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1), n_trials=12)
    finally:
        optuna_adapter.read_states_by(pickle.loads)
    assert asked
