"""A search by Optuna: it is asked for settings, the sweep's launcher runs them, and it is told what came out.

Contract: a trial is a job of the sweep, with a run directory of its own. Trials are asked for and told in whole
generations, each sampler made anew with a seed from (seed, number of the trial): so a search that is killed and
continued asks for the same settings as one that never was. A trial that has begun is brought to its end first.
"""

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from runner import provenance
from runner.errors import InputError
from runner.files import write_atomically
from runner.run_dir import RunDir, now
from runner.sweep import plan
from runner.sweep.plan import Job
from runner.sweep.run import compose_job, finish, locked, run_jobs, screen, sweep_facts

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
    sweeper.launcher.check() if hasattr(sweeper.launcher, "check") else None
    for key in ("n_trials", "at_once"):
        value = getattr(sweeper, key)
        if (value is not None or key == "n_trials") and (not isinstance(value, int) or value < 1):
            raise InputError(f"hydra.sweeper.{key}={value}: must be a whole number of at least 1")
    fixed, space = search_space(sweeper, arguments)
    first = compose_job(sweeper, [*fixed, *(f"{key}={text_of(any_value(d))}" for key, d in space.items())], list(space))
    base, code = plan.base_of(first.config, list(space)), provenance.code_state(*provenance.git_state())
    plan.check_same(place, base, list(space), code, bool(options.force))
    identity = plan.digest({"base": base, "space": {key: repr(d) for key, d in space.items()}})
    make_sampler(sweeper.sampler, 0, int(first.config["seed"]))
    if options.dry_run:
        for key, distribution in space.items():
            print(f"{key}: {distribution}")
        print(f"up to {sweeper.n_trials} trials in {place}; nothing was run (sweep.dry_run=true)")
        return []
    mode = direction(first.config)
    is_new = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        study = open_study(sweeper.storage, place, mode, identity)
    except OSError as error:
        raise InputError(f"hydra.sweep.dir={place}: cannot be written ({error.strerror})") from error
    except InputError:
        if is_new and not any(place.iterdir()):
            place.rmdir()
        raise
    with locked(place), screen():
        facts = sweep_facts(sweeper, arguments, list(space), base, code)
        jobs, outcomes, stopped_by = run_trials(sweeper, study, fixed, space, place, facts)
        plan.write_sweep(place, facts, [])
        say(study, place)
        return finish(jobs, place, facts, (outcomes, stopped_by))


def run_trials(
    sweeper: Any, study: Any, fixed: list[str], space: Mapping[str, Any], place: Path, facts: dict[str, Any]
) -> tuple[list[Job], dict[str, Any], int | None]:
    """Generation by generation; returns the jobs of this start, their outcomes, and the signal that stopped it."""
    from optuna.trial import TrialState

    jobs: list[Job] = []
    outcomes: dict[str, Any] = {}
    size = sweeper.at_once or 1
    while True:
        trials = study.get_trials(deepcopy=False)
        begun = [t for t in trials if t.state == TrialState.RUNNING]
        for trial in [t for t in begun if set(t.params) != set(space)]:  # killed while it was asked for
            study.tell(trial.number, state=TrialState.FAIL)
            begun.remove(trial)
        if not begun and len(trials) >= sweeper.n_trials:
            return jobs, outcomes, None
        numbers = {t.number: t.params for t in begun}
        # A generation that was cut off while it was asked for is asked to its end, as if it had not been.
        start = len(trials) - len(begun)
        while len(trials) + len(numbers) - len(begun) < min(sweeper.n_trials, start + size):
            number = len(trials) + len(numbers) - len(begun)
            study.sampler = make_sampler(sweeper.sampler, number, int(sweeper.config.seed))
            trial = study.ask(dict(space))
            numbers[trial.number] = trial.params
        made = {n: compose_job(sweeper, trial_words(fixed, params), list(space)) for n, params in numbers.items()}
        generation = plan.unique(list(made.values()))
        plan.place_jobs(generation, place)
        for job in generation:
            plan.write_job(job)
        plan.write_sweep(place, facts, [])
        ended, stopped_by = run_jobs(sweeper, generation, place, facts)
        jobs += [job for job in generation if job.name not in {known.name for known in jobs}]
        outcomes |= ended
        names = {job.identity: job for job in generation}
        for number, made_job in sorted(made.items()):
            tell(study, number, names[made_job.identity], ended)
        if stopped_by is not None:
            return jobs, outcomes, stopped_by


def trial_words(fixed: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    return [*fixed, *(f"{key}={text_of(value)}" for key, value in params.items())]


def tell(study: Any, number: int, job: Job, outcomes: Mapping[str, Any]) -> None:
    """Tells a trial's value, or that it failed. One that was stopped, or whose worker died, stays open."""
    from optuna.trial import TrialState

    outcome = outcomes.get(job.name, {"state": "interrupted"})
    study._storage.set_trial_user_attr(study.get_trials(deepcopy=False)[number]._trial_id, "folder", job.name)
    if outcome["state"] == "done":
        value = RunDir(job.folder).read_run()["best_value"]
        study.tell(number, value) if value is not None else study.tell(number, state=TrialState.FAIL)
    elif outcome["state"] == "failed":
        study.tell(number, state=TrialState.FAIL)


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
        space[key] = distribution_of(key, override)
    if not space:
        raise InputError(
            "hydra/sweeper=optuna: there is nothing to search over; give a key a space, as in"
            " 'optimizer.lr=tag(log, interval(0.01, 1))' or scheduler=step,cosine"
        )
    return fixed, space


def distribution_of(key: str, override: Any) -> Any:
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
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=is_log)
            return FloatDistribution(float(low or 0), float(high or 0), log=is_log)
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


def any_value(distribution: Any) -> Any:
    """A value of the space, to compose a first job with."""
    return distribution.choices[0] if hasattr(distribution, "choices") else distribution.low


def text_of(value: Any) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def direction(config: Mapping[str, Any]) -> Literal["minimize", "maximize"]:
    trainer = config["trainer"]
    mode = trainer["mode"] or ("min" if str(trainer["monitor"]).endswith("loss") else "max")
    return "minimize" if mode == "min" else "maximize"


def make_sampler(node: Any, number: int, seed: int) -> Any:
    """The sampler of one trial, with a seed from (seed, number). A quasi-random sequence keeps one seed throughout."""
    import warnings

    import optuna
    from omegaconf import OmegaConf

    from runner.build import instantiate
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


def open_study(storage: str | None, place: Path, mode: Literal["minimize", "maximize"], identity: str) -> Any:
    """The study of this search, new or continued.

    Raises:
        InputError: the storage cannot be opened, or holds a study of another search under this name.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    where = f"hydra.sweeper.storage={storage}"
    try:
        backend = storage if storage is not None else JournalStorage(JournalFileBackend(str(place / "study.journal")))
        study = optuna.create_study(storage=backend, study_name=place.name, direction=mode, load_if_exists=True)
    except OSError:
        raise
    except Exception as error:
        raise InputError(
            f"{where}: cannot be opened; {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    found = study.user_attrs.get(OURS)
    if found is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(OURS, identity)
    elif found != identity or study.direction.name.lower() != mode:
        raise InputError(
            f"{where}: holds another study under the name {place.name} (another search space, config or direction);"
            " choose another sweep.name or storage"
        )
    return study


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


def say(study: Any, place: Path) -> None:
    """Writes study.json, and logs the best trial and the importances."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    record: dict[str, Any] = {"written": now(), "trials": len(trials), "complete": len(complete), "best": None}
    if complete:
        best, weights = study.best_trial, importances(study)
        record["best"] = {"trial": best.number, "value": best.value, "params": best.params}
        record["best"]["folder"] = best.user_attrs.get("folder")
        record["importances"] = weights
        settings = " ".join(f"{key}={text_of(value)}" for key, value in best.params.items())
        log.info("best of %d trials: %.4f, %s", len(complete), best.value, settings)
        if weights:
            log.info("importances: %s", ", ".join(f"{key} {value:.2f}" for key, value in weights.items()))
    record["history"] = [
        {"trial": t.number, "state": t.state.name.lower(), "value": t.value, "params": t.params} for t in trials
    ]
    write_atomically(place / "study.json", (json.dumps(record, indent=2) + "\n").encode())
