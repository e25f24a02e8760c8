"""The study of a search: opened and held against the search, its trials asked for in whole generations."""

import math
from pathlib import Path
from typing import Any, Literal

from runner.errors import InputError
from runner.search import optuna_adapter, sampler_state
from runner.search.conditions import Conditions
from runner.search.sampler import make_sampler
from runner.search.space import Space, holds
from runner.search.stages import FIRST, check_stages
from runner.storage.files import read_regular

OURS = "torch-runner"  # the study's attribute that says which search it is
SEEDS = "seeds"  # ... and over which seeds a trial's value is the mean
POINTS = "points"  # settings to try, each with the number of the trial that it is to be
KEPT = "kept by the sampler"  # a trial's: what samplers had written into the study when it had been asked for


class Trials:
    """The study's trials, counted without those that have no settings."""

    def __init__(self, study: Any, conditions: Conditions) -> None:
        self.study, self.conditions = study, conditions

    def all(self) -> list[Any]:
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and not self.conditions.is_whole(trial.params):
                self.study.tell(trial.number, state=TrialState.FAIL)
        return [trial for trial in trials if self.conditions.is_whole(trial.params)]

    def begun(self) -> list[Any]:
        from optuna.trial import TrialState

        return [trial for trial in self.all() if trial.state == TrialState.RUNNING]

    def next_generation(self, size: int, total: int, sampler: Any, seed: int) -> list[Any]:
        """What has begun and is not told, and what is asked for with it; nothing at the end of the search."""
        # A sampler that has tried everything says so by stop(), which Optuna takes only inside its own loop. Some see
        # it when they are asked, others when a trial is told, by the sampler that the study then has.
        self.study.stop = lambda: self.study.set_user_attr("exhausted", True)
        count = len(self.all())
        self.study.sampler = make_sampler(sampler, max(count - 1, 0), seed, self.conditions.space.keys)
        if self.study.user_attrs.get("exhausted"):
            return self.begun()
        end = self.study.user_attrs.get("generation", 0)
        if count >= end and not self.begun():
            end = min(count + size, total)
            self.study.set_user_attr(FIRST, len(self.study.get_trials(deepcopy=False)))
            self.study.set_user_attr("generation", end)
        for number in range(count, min(end, total)):
            self.study.sampler = make_sampler(sampler, number, seed, self.conditions.space.keys)
            try:
                self.ask(self.queue().get(number))
            except Exception as error:  # whatever it found in the study, which may be anybody's
                name = type(self.study.sampler).__name__
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise InputError(f"hydra.sweeper.sampler: {name} cannot go on from this study; {reason}") from error
            if self.study.user_attrs.get("exhausted"):
                break
        return self.begun()

    def queue(self) -> dict[int, dict[str, Any]]:
        """The settings that are to be tried as the trials of these numbers."""
        return {number: params for number, params in self.study.user_attrs.get(POINTS, [])}

    def enqueue(self, points: list[dict[str, Any]]) -> None:
        """Puts what has not been put there before behind what was asked for and what is waiting."""
        before = self.queue()
        new: list[dict[str, Any]] = []
        for params in points:
            new += [params] if params not in [*before.values(), *new] else []
        first = max([len(self.all()), *(number + 1 for number in before)])
        if new:
            self.study.set_user_attr(POINTS, [list(entry) for entry in (*before.items(), *enumerate(new, first))])

    def ask(self, point: dict[str, Any] | None = None) -> None:
        """Asks for all settings of a new trial, in a copy of the study in memory: in the study itself a trial stands
        whole or not at all, whenever the search is killed, and no sampler has kept anything of one that is not there.
        """
        from optuna.trial import TrialState, create_trial

        copy, storage, number = in_memory(self.study)
        if point is not None:
            copy.enqueue_trial(point)
        trial = copy.ask()
        while more := [key for key in self.conditions.keys(trial.params) if key not in trial.params]:
            suggest(trial, more[0], self.conditions.space.keys[more[0]])
        asked = copy.get_trials()[-1]
        kept = storage.get_study_system_attrs(number)
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=asked.params,
                distributions=asked.distributions,
                user_attrs={KEPT: kept} if kept else {},
                system_attrs=asked.system_attrs,
            )
        )


def in_memory(study: Any) -> tuple[Any, Any, int]:
    """A copy of a study, its storage, and its number there: with the same trials, and what samplers keep of a study,
    which stands in its last trial.
    """
    import optuna

    storage = optuna.storages.InMemoryStorage()
    copy = optuna.create_study(
        storage=storage,
        study_name=study.study_name,
        directions=study.directions,
        sampler=study.sampler,
        pruner=study.pruner,
    )
    copy.stop = study.stop
    trials = study.get_trials(deepcopy=False)
    copy.add_trials(trials)
    number = storage.get_study_id_from_name(study.study_name)
    kept: Any = next((trial.user_attrs[KEPT] for trial in reversed(trials) if KEPT in trial.user_attrs), {})
    for key, value in kept.items():
        storage.set_study_system_attr(number, key, value)
    return copy, storage, number


def suggest(trial: Any, key: str, distribution: Any) -> None:
    if hasattr(distribution, "choices"):
        trial.suggest_categorical(key, distribution.choices)
    else:
        kind = trial.suggest_int if isinstance(distribution.low, int) else trial.suggest_float
        kind(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def open_study(storage: str | None, place: Path, mode: Literal["minimize", "maximize"], identity: str) -> Any:
    """The study of this search, new or continued.

    Raises:
        InputError: the storage cannot be opened, or holds a study of another search under this name.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    optuna_adapter.read_states_by(sampler_state.loads)
    journal = place / "study.journal"
    where = f"hydra.sweeper.storage={storage}" if storage is not None else str(journal)
    if storage is None and journal.exists():
        try:
            read_regular(journal)
        except OSError as error:
            raise InputError(f"{journal}: cannot be read ({error.strerror})") from error
    if storage is None:  # the folder is ours alone now: a lock that a killed process left holds nobody
        lock = journal.with_name(journal.name + ".lock")
        try:
            lock.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{lock}: cannot be removed ({error.strerror})") from error
    name = place.resolve().name
    try:
        backend = storage if storage is not None else JournalStorage(JournalFileBackend(str(journal.absolute())))
        study = optuna.create_study(storage=backend, study_name=name, direction=mode, load_if_exists=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise InputError(f"{where}: cannot be opened; {reason}") from error
    if len(study.directions) > 1:
        raise InputError(f"{where}: holds a study of {len(study.directions)} objectives; a search has one")
    found = study.user_attrs.get(OURS)
    if found is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(OURS, identity)
    elif found is None and storage is None:
        raise InputError(
            f"{where}: has lost which search it is of; move it away: what is finished is told to a new one"
        )
    elif found != identity or study.direction.name.lower() != mode:
        raise InputError(
            f"{where}: holds another study under the name {name} (another search space, config, direction or folder);"
            " choose another sweep.name or storage"
        )
    return study


def check_study(study: Any, space: Space, seed: int, where: str) -> None:
    """Refuses a study that holds what no search of ours has put there, for it becomes words of a command, and figures;
    and one whose values are those of other seeds.

    Raises:
        InputError: names the trial, the key and the value.
    """
    generation = study.user_attrs.get("generation", 0)
    first = study.user_attrs.get(FIRST, 0)
    if type(first) is not int or not 0 <= first <= len(study.get_trials(deepcopy=False)):
        raise InputError(f"{where}: the study's generation begins at {first!r}: must be one of its trials")
    if type(generation) is not int or generation < 0:
        raise InputError(f"{where}: the study's generation is {generation!r}: must be a whole number")
    queue = study.user_attrs.get(POINTS, [])
    if not isinstance(queue, list) or not all(map(is_queued, queue)):
        raise InputError(f"{where}: what the study is to try next is {queue!r}: must be numbers and settings")
    trials = study.get_trials(deepcopy=False)
    for name, params in [*((f"trial {t.number}", t.params) for t in trials), *((f"point {n}", p) for n, p in queue)]:
        for key, value in params.items():
            if key not in space.keys or not holds(space.keys[key], value):
                raise InputError(f"{where}: {name} has {key}={value!r}, which is not in the search's space")
    for trial in trials:
        for value in trial.values or ():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise InputError(f"{where}: trial {trial.number} has the value {value!r}: must be a finite number")
        check_stages(trial, where)
    seeds = space.seeds or [str(seed)]
    if SEEDS not in study.user_attrs:  # a new one, or of an older version
        study.set_user_attr(SEEDS, seeds)
    elif (before := study.user_attrs[SEEDS]) != seeds:
        known = ",".join(map(str, before)) if isinstance(before, list) else str(before)
        raise InputError(
            f"{where}: its trials have the values of seed={known}, not of seed={','.join(seeds)}; go on with"
            f" seed={known}, or choose another sweep.name or storage"
        )


def is_queued(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and isinstance(entry[1], dict)
