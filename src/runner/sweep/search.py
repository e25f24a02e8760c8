"""A search by Optuna: it is asked for settings, the sweep's launcher runs them, and it is told what came out.

Contract: a trial is a job of the sweep, with a run directory of its own. Trials are asked for and told in whole
generations, whose bounds stand in the study, and each trial's sampler is made anew with a seed from (seed, number): so
a search that is killed and continued asks for the same settings as one that never was. A trial that has begun is
brought to its end first. One that Optuna was killed over while it was asked for has no settings: it does not count.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from runner.errors import InputError
from runner.printable import say
from runner.storage.files import read_regular, write_atomically
from runner.storage.run_dir import RunDir, now
from runner.sweep import plan, sampler_state
from runner.sweep.combine import compose_job
from runner.sweep.plan import Job
from runner.sweep.ready import check_launcher, check_new
from runner.sweep.run import (
    code_of,
    finish,
    locked,
    run_jobs,
    screen,
    sweep_facts,
    write_record,
)
from runner.sweep.space import ends, holds, make_sampler, search_space, text_of, try_sampler

log = logging.getLogger("runner")

OURS = "torch-runner"  # the study's attribute that says which search it is


def search(sweeper: Any, arguments: list[str]) -> list[dict[str, Any]]:
    """Runs trials until there are n_trials in the study.

    Raises:
        InputError: before anything on disk is changed.
        SweepFailed, Interrupted: after the summary is written.
    """
    master = sweeper.config
    options, place = master.sweep, Path(master.hydra.sweep.dir)
    check_launcher(sweeper)
    fixed, space = search_space(sweeper, arguments)
    first = check_space(sweeper, fixed, space)
    base, code = plan.base_of(first.config, list(space)), code_of([first])
    plan.check_same(place, base, list(space), code, bool(options.force))
    described = {"base": base, "space": {key: repr(d) for key, d in space.items()}, "place": str(place.resolve())}
    try_sampler(make_sampler(sweeper.sampler, 0, int(first.config["seed"])), space)
    if options.dry_run:
        for key, distribution in space.items():
            say(f"{key}: {distribution}")
        say(f"up to {sweeper.n_trials} trials in {place}; nothing was run (sweep.dry_run=true)")
        return []
    is_new = not place.exists()
    with locked(place), screen():
        try:
            study = open_study(sweeper.storage, place, direction(first.config), plan.digest(described))
            check_study(study, space, sweeper.storage or str(place / "study.journal"))
        except InputError:
            if is_new:
                RunDir(place).discard()
            raise
        facts = sweep_facts(sweeper, arguments, list(space), base, code, [first])
        jobs, outcomes, stopped_by = run_trials(sweeper, Trials(study, space), fixed, place, facts)
        conclude(Trials(study, space), place)
        return finish(jobs, place, facts, (outcomes, stopped_by))


def check_space(sweeper: Any, fixed: list[str], space: Mapping[str, Any]) -> Job:
    """Composes and checks a job for each choice and each bound of the space; returns the first one."""
    usual = {key: ends(distribution)[0] for key, distribution in space.items()}
    jobs = [
        compose_job(sweeper, trial_words(fixed, {**usual, key: value}), list(space))
        for key, distribution in space.items()
        for value in ends(distribution)
    ]
    check_new(sweeper, jobs)
    return jobs[0]


class Trials:
    """The study's trials, counted without those that have no settings."""

    def __init__(self, study: Any, space: Mapping[str, Any]) -> None:
        self.study, self.space = study, dict(space)

    def all(self) -> list[Any]:
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and set(trial.params) != set(self.space):
                self.study.tell(trial.number, state=TrialState.FAIL)
        return [trial for trial in trials if set(trial.params) == set(self.space)]

    def begun(self) -> list[Any]:
        from optuna.trial import TrialState

        return [trial for trial in self.all() if trial.state == TrialState.RUNNING]

    def next_generation(self, size: int, total: int, sampler: Any, seed: int) -> list[Any]:
        """What has begun and is not told, and what is asked for with it; nothing at the end of the search."""
        # A sampler that has tried everything says so by stop(), which Optuna takes only inside its own loop.
        self.study.stop = lambda: self.study.set_user_attr("exhausted", True)
        if self.study.user_attrs.get("exhausted"):
            return self.begun()
        count = len(self.all())
        end = self.study.user_attrs.get("generation", 0)
        if count >= end and not self.begun():
            end = min(count + size, total)
            self.study.set_user_attr("generation", end)
        for number in range(count, min(end, total)):
            self.study.sampler = make_sampler(sampler, number, seed)
            try:
                self.study.ask(self.space)
            except Exception as error:  # whatever it found in the study, which may be anybody's
                name = type(self.study.sampler).__name__
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise InputError(f"hydra.sweeper.sampler: {name} cannot go on from this study; {reason}") from error
            if self.study.user_attrs.get("exhausted"):
                break
        return self.begun()


def run_trials(
    sweeper: Any, trials: Trials, fixed: list[str], place: Path, facts: dict[str, Any]
) -> tuple[list[Job], dict[str, Any], int | None]:
    """Generation by generation, up to n_trials, or to the first trial that stays open; returns the jobs of this start,
    their outcomes, and the signal that stopped it.
    """
    jobs: dict[str, Job] = {}
    outcomes: dict[str, Any] = {}
    seed = int(sweeper.config.seed)
    while generation := trials.next_generation(sweeper.at_once or 1, sweeper.n_trials, sweeper.sampler, seed):
        names = list(trials.space)
        made = {t.number: compose_job(sweeper, trial_words(fixed, t.params), names) for t in generation}
        several = plan.unique(list(made.values()))
        plan.place_jobs(several, place)
        for job in several:
            plan.write_job(job)
        write_record(place, facts)
        ended, stopped_by = run_jobs(sweeper, several, place, facts)
        jobs |= {job.name: job for job in several}
        outcomes |= ended
        by_identity = {job.identity: job for job in several}
        told = [tell(trials.study, number, by_identity[made[number].identity], ended) for number in sorted(made)]
        failed = any(outcome["state"] == "failed" for outcome in ended.values())
        if stopped_by is not None or not all(told) or (failed and sweeper.config.sweep.fail_fast):
            return list(jobs.values()), outcomes, stopped_by
    return list(jobs.values()), outcomes, None


def trial_words(fixed: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    return [*fixed, *(f"{key}={text_of(value)}" for key, value in params.items())]


def tell(study: Any, number: int, job: Job, outcomes: Mapping[str, Any]) -> bool:
    """Tells a trial's value, or that it failed. False: it stays open, for it was stopped, its worker died, or another
    process is running it.
    """
    from optuna.trial import TrialState

    outcome = outcomes.get(job.name, {"state": "interrupted"})
    if outcome["state"] == "done":
        value = RunDir(job.folder).read_run()["best_value"]
        study.tell(number, value) if value is not None else study.tell(number, state=TrialState.FAIL)
        return True
    if outcome["state"] == "failed" and outcome.get("kind") not in ("death", "held"):
        study.tell(number, state=TrialState.FAIL)
        return True
    return False


def direction(config: Mapping[str, Any]) -> Literal["minimize", "maximize"]:
    from runner.job.modes import mode_of

    monitor = config["trainer"]["monitor"]
    if not isinstance(monitor, str):
        raise InputError(
            f"trainer.monitor={monitor}: a search has one objective; name one metric, and take more from `runner ls`"
        )
    return "minimize" if mode_of("trainer", config) == "min" else "maximize"


def open_study(storage: str | None, place: Path, mode: Literal["minimize", "maximize"], identity: str) -> Any:
    """The study of this search, new or continued.

    Raises:
        InputError: the storage cannot be opened, or holds a study of another search under this name.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler_state.read_as_data()
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


def check_study(study: Any, space: Mapping[str, Any], where: str) -> None:
    """Refuses a study that holds what no search of ours has put there: it becomes words of a command, and figures.

    Raises:
        InputError: names the trial, the key and the value.
    """
    generation = study.user_attrs.get("generation", 0)
    if type(generation) is not int or generation < 0:
        raise InputError(f"{where}: the study's generation is {generation!r}: must be a whole number")
    for trial in study.get_trials(deepcopy=False):
        for key, value in trial.params.items():
            if key not in space or not holds(space[key], value):
                raise InputError(
                    f"{where}: trial {trial.number} has {key}={value!r}, which is not in the search's space"
                )
        for value in trial.values or ():
            if type(value) not in (int, float) or not math.isfinite(value):
                raise InputError(f"{where}: trial {trial.number} has the value {value!r}: must be a finite number")


def importances(study: Any) -> dict[str, float]:
    """How much each key explains of the values, from 0 to 1 (Optuna's default, functional ANOVA); none if too few."""
    import optuna

    try:
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    except (ValueError, RuntimeError, ImportError):
        return {}
    return {key: float(value) for key, value in found.items()}


def conclude(trials: Trials, place: Path) -> None:
    """Writes study.json, and logs the best trial and the importances."""
    from optuna.trial import TrialState

    found = trials.all()
    complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
    history = [
        {"trial": number, "state": trial.state.name.lower(), "value": trial.value, "params": trial.params}
        for number, trial in enumerate(found)
    ]
    record: dict[str, Any] = {"written": now(), "trials": len(found), "complete": len(complete), "best": None}
    if complete:
        best, weights = trials.study.best_trial, importances(trials.study)
        record["best"] = {"trial": found.index(best), "value": best.value, "params": best.params}
        record["importances"] = weights
        settings = " ".join(f"{key}={text_of(value)}" for key, value in best.params.items())
        log.info("best of %d trials: %.4f, %s", len(complete), best.value, settings)
        if weights:
            log.info("importances: %s", ", ".join(f"{key} {value:.2f}" for key, value in weights.items()))
    write_atomically(place / "study.json", (json.dumps({**record, "history": history}, indent=2) + "\n").encode())
