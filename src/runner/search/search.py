"""A search by Optuna: it is asked for settings, the sweep's launcher runs them, and it is told what came out.

Contract: a trial is a job of the sweep with a run directory of its own, or one such job for each seed, and its value is
then the mean over them. Trials are asked for and told in whole generations, whose bounds stand in the study, and each
trial's sampler is made anew with a seed from (seed, number): so a search that is killed and continued asks for the same
settings as one that never was. A trial that has begun is brought to its end first. One that an older version was killed
over while it was asked for has not all settings: it does not count.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from runner.errors import InputError
from runner.job.pruning import Judge, make_pruner, pruner_config
from runner.search.conditions import Conditions, check_space, first_trials
from runner.search.outcome import conclude
from runner.search.sampler import make_sampler, try_sampler
from runner.search.space import ONE_OBJECTIVE, Space, search_space, text_of
from runner.search.stages import is_pruned, keep_stages, write_facts, write_history
from runner.search.study import Trials, check_study, open_study
from runner.storage.run_dir import RunDir, resume_command
from runner.sweep import plan, statistics
from runner.sweep.combine import compose_job
from runner.sweep.plan import Job
from runner.sweep.points import keep_copy, read_points
from runner.sweep.ready import check_launcher
from runner.sweep.run import code_of, finish, locked, run_jobs, screen, sweep_facts, write_record
from runner.terminal.printable import say

log = logging.getLogger("runner")


def search(sweeper: Any, arguments: list[str]) -> list[dict[str, Any]]:
    """Runs trials until there are n_trials in the study.

    Raises:
        InputError: before anything on disk is changed.
        SweepFailed, Interrupted: after the summary is written.
    """
    master = sweeper.config
    options, place = master.sweep, Path(master.hydra.sweep.dir)
    check_launcher(sweeper)
    if options.lengthen:
        raise InputError(
            f"trainer.epochs: {place} is a search, whose trials were told their values at its own length; lengthen"
            f" one of its jobs: {resume_command(place / 'JOB')} trainer.epochs=N"
        )
    sweeper.pruner = pruner_config(sweeper.pruner)
    if sweeper.pruner is not None:
        Judge(make_pruner(sweeper.pruner), "minimize", "tried", [], 0).is_pruned(1, 0.0)
    if OmegaConf.is_list(monitor := master.trainer.monitor):
        raise InputError(f"trainer.monitor={monitor}: {ONE_OBJECTIVE}")
    space = search_space(sweeper, arguments)
    conditions = Conditions(sweeper, space)
    first = check_space(conditions)
    points = first_trials(read_points(options.points), conditions)
    base, code = plan.base_of(first.config, space.swept), code_of([first])
    plan.check_same(place, base, space.swept, code, bool(options.force))
    described: dict[str, Any] = {
        "base": base,
        "space": {key: repr(d) for key, d in space.keys.items()},
        "place": str(place.resolve()),
    }
    if sweeper.pruner is not None:
        described["pruner"] = sweeper.pruner
    seed = int(first.config["seed"])
    try_sampler(make_sampler(sweeper.sampler, 0, seed, space.keys), space.keys)
    if options.dry_run:
        show_space(conditions, points, sweeper.n_trials, place)
        return []
    is_new = not place.exists()
    with locked(place), screen():
        try:
            study = open_study(sweeper.storage, place, direction(first.config), plan.digest(described))
            check_study(study, space, seed, sweeper.storage or str(place / "study.journal"))
        except InputError:
            if is_new:
                RunDir(place).discard()
            raise
        facts = sweep_facts(sweeper, arguments, space.swept, base, code, [first])
        keep_copy(options.points, place)
        trials = Trials(study, conditions)
        trials.enqueue(points)
        if late := [number for number in trials.queue() if number >= sweeper.n_trials]:
            log.warning("sweep.points: %d of them wait for a higher hydra.sweeper.n_trials", len(late))
        jobs, outcomes, stopped_by = run_trials(sweeper, trials, space, place, facts, seed)
        conclude(trials, space, place)
        return finish(jobs, place, facts, (outcomes, stopped_by))


def show_space(conditions: Conditions, points: list[dict[str, Any]], n_trials: int, place: Path) -> None:
    space = conditions.space
    for key, distribution in space.keys.items():
        only = f" (only with {' '.join(conditions.with_choices(key))})" if key in conditions.conditional else ""
        say(f"{key}: {distribution}{only}")
    for params in points:
        say(f"first: {' '.join(f'{key}={text_of(value)}' for key, value in params.items())}")
    jobs = ""
    if space.seeds:
        say(f"seed: a trial's value is the mean over {','.join(space.seeds)}")
        jobs = f" of {len(space.seeds)} jobs each"
    say(f"up to {n_trials} trials{jobs} in {place}; nothing was run (sweep.dry_run=true)")


def run_trials(
    sweeper: Any, trials: Trials, space: Space, place: Path, facts: dict[str, Any], seed: int
) -> tuple[list[Job], dict[str, Any], int | None]:
    """Generation by generation, up to n_trials, or to the first trial that stays open; returns the jobs of this start,
    their outcomes, and the signal that stopped it.
    """
    jobs: dict[str, Job] = {}
    outcomes: dict[str, Any] = {}
    while generation := trials.next_generation(sweeper.at_once or 1, sweeper.n_trials, sweeper.sampler, seed):
        made = {t.number: jobs_of(sweeper, trials, space, t) for t in generation}
        made = {number: of_trial for number, of_trial in sorted(made.items()) if of_trial}
        begun, ended, stopped_by = run_generation(sweeper, trials.study, made, place, facts)
        jobs |= {job.name: job for of_trial in begun.values() for job in of_trial}
        outcomes |= ended
        whole = len(space.seeds) or 1
        told = [tell(trials.study, n, of_trial, ended, whole, sweeper.pruner) for n, of_trial in begun.items()]
        failed = any(outcome["state"] == "failed" for outcome in ended.values())
        if stopped_by is not None or not all(told) or (failed and sweeper.config.sweep.fail_fast):
            return list(jobs.values()), outcomes, stopped_by
    return list(jobs.values()), outcomes, None


def run_generation(
    sweeper: Any, study: Any, made: Mapping[int, list[Job]], place: Path, facts: dict[str, Any]
) -> tuple[dict[int, list[Job]], dict[str, Any], int | None]:
    """Runs a generation's jobs, all of them together; where a pruner decides on a trial, its seeds one after the other.
    Returns the jobs of each trial that have begun, the outcomes, and the signal that stopped it.
    """
    begun: dict[int, list[Job]] = {number: [] for number in made}
    outcomes: dict[str, Any] = {}
    placed: dict[str, Job] = {}
    if sweeper.pruner is not None:
        write_history(study, place)
    while going := {n: of_trial for n, of_trial in made.items() if is_going(begun[n], of_trial, outcomes)}:
        rounds = {n: jobs if sweeper.pruner is None else jobs[len(begun[n]) :][:1] for n, jobs in going.items()}
        several = plan.unique([job for jobs in rounds.values() for job in jobs])
        plan.place_jobs(several, place)
        placed |= {job.identity: job for job in several}
        for number, jobs in rounds.items():
            begun[number] += [placed[job.identity] for job in jobs]
        for job in several:
            plan.write_job(job)
        if sweeper.pruner is not None:
            for number in rounds:
                write_facts(study, sweeper.pruner, number, begun[number])
        write_record(place, facts)
        ended, stopped_by = run_jobs(sweeper, several, place, facts)
        outcomes |= ended
        is_open = not all(is_told(ended.get(job.name)) for job in several)
        failed = any(outcome["state"] == "failed" for outcome in ended.values())
        if stopped_by is not None or is_open or (failed and sweeper.config.sweep.fail_fast):
            return begun, outcomes, stopped_by
    return begun, outcomes, None


def is_going(begun: Sequence[Job], jobs: Sequence[Job], outcomes: Mapping[str, Any]) -> bool:
    """Whether a trial has another job to run: those before are whole."""
    done = all(outcomes[job.name]["state"] == "done" for job in begun)
    return len(begun) < len(jobs) and done and not (begun and is_pruned(begun[-1]))


def jobs_of(sweeper: Any, trials: Trials, space: Space, trial: Any) -> list[Job]:
    """A trial's jobs; none of one whose choices do not go together, which has failed."""
    from optuna.trial import TrialState

    try:
        return [compose_job(sweeper, words, space.swept) for words in space.jobs(trial.params)]
    except InputError as error:  # each choice was looked at, but among the usual ones
        log.error("a trial failed: %s: %s", " ".join(space.jobs(trial.params)[0][len(space.fixed) :]), error)
        trials.study.tell(trial.number, state=TrialState.FAIL)
        return []


def tell(study: Any, number: int, jobs: Sequence[Job], outcomes: Mapping[str, Any], whole: int, pruner: Any) -> bool:
    """Tells a trial's value, the mean of its jobs' best, that it was pruned, or that it failed. False: it stays open,
    for one of its jobs was stopped or has not begun, its worker died, or another process is running it.

    Args:
        jobs: those that have begun. whole: how many there are of a trial that is not given up.
    """
    from optuna.trial import TrialState

    ended = [outcomes.get(job.name) for job in jobs]
    if not jobs or not all(is_told(outcome) for outcome in ended):
        return False
    done = [job for job, outcome in zip(jobs, ended, strict=True) if outcome and outcome["state"] == "done"]
    given_up = len(done) == len(jobs) and any(is_pruned(job) for job in done)
    values = {job.name: value_of(job) for job in done}
    if (lost := [job.name for job in jobs if values.get(job.name) is None]) and not given_up:
        if whole > 1:
            log.error("a trial failed: it has no mean over %d seeds without %s", whole, ", ".join(lost))
        study.tell(number, state=TrialState.FAIL)
        return True
    if len(jobs) < whole and not given_up:
        return False
    if pruner is not None:
        keep_stages(study, number, jobs)
    if given_up:
        study.tell(number, state=TrialState.PRUNED)
    else:
        study.tell(number, statistics.mean([value for value in values.values() if value is not None]))
    return True


def is_told(outcome: Mapping[str, Any] | None) -> bool:
    """Whether a job has come to its end, for good or ill."""
    if outcome is None or outcome["state"] not in ("done", "failed"):
        return False
    return outcome["state"] == "done" or outcome.get("kind") not in ("death", "held")


def value_of(job: Job) -> float | None:
    """A finished job's best value; None where it has none that can be reckoned with."""
    value = RunDir(job.folder).read_run()["best_value"]
    return None if value is None or abs(value) >= statistics.LARGEST else float(value)


def direction(config: Mapping[str, Any]) -> Literal["minimize", "maximize"]:
    from runner.groups.modes import mode_of

    monitor = config["trainer"]["monitor"]
    if not isinstance(monitor, str):
        raise InputError(f"trainer.monitor={monitor}: {ONE_OBJECTIVE}")
    return "minimize" if mode_of("trainer", config) == "min" else "maximize"
