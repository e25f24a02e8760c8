"""From a sweep's words to its jobs: every combination, composed and checked."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf, open_dict, read_write

from runner.config import admission
from runner.config.checks import check_composed, check_targets
from runner.config.compose import COMPOSITION_ERRORS, set_up
from runner.config.messages import one_line
from runner.errors import InputError
from runner.storage.identity import NO_RESULT
from runner.sweep import plan
from runner.sweep.plan import Job
from runner.sweep.points import Point, is_points, read_points, refuse_twice
from runner.terminal.progress import with_bar
from runner.values import flatten, shown


def compose_jobs(sweeper: Any, arguments: list[str]) -> tuple[list[Job], list[str], list[str]]:
    """Every job, composed and checked: a mistake in the last one is found before the first one trains. Then the swept
    keys, and what to say of combinations that are one job.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader).parse_overrides(arguments)
    swept = [override.get_key_element() for override in parsed if override.is_sweep_override()]
    for key in swept:
        if key.split(".")[0].lstrip("+") in ("hydra", "sweep"):
            raise InputError(f"{key}: cannot be swept over: it belongs to the sweep as a whole")
    batch = combinations(parsed)
    if not batch:
        raise InputError(f"{' '.join(arguments)}: an empty list leaves no job to run")
    points = read_points(sweeper.config.sweep.points)
    refuse_twice(points, [override.get_key_element() for override in parsed])
    swept = [*dict.fromkeys(key for point in points for key in point.settings), *swept]
    several: list[tuple[Point | None, list[str]]] = [(p, [*words, *p.words]) for p in points for words in batch]
    several = several or [(None, words) for words in batch]
    jobs = []
    for number, (point, overrides) in enumerate(with_bar(several, "planning jobs")):
        try:
            jobs.append(compose_job(sweeper, overrides, swept))
        except InputError as error:
            label = point.where if point is not None else f"job {number} ({' '.join(overrides)})"
            raise InputError(f"{label}: {error}") from error
        except COMPOSITION_ERRORS as error:
            if point is None:
                raise
            raise InputError(f"{point.where}: {one_line(error)}") from error
    return plan.unique(jobs), [key.lstrip("+") for key in swept], collapsed(jobs)


def collapsed(jobs: Sequence[Job]) -> list[str]:
    """What to say of combinations that are one job: which of the swept keys cannot change a result."""
    first: dict[str, Job] = {}
    differing: dict[str, None] = {}
    for job in jobs:
        kept = first.setdefault(job.identity, job).settings
        differing |= {key: None for key in job.settings if job.settings[key] != kept.get(key)}
    if len(first) == len(jobs):
        return []
    count = f"{len(jobs)} combinations are {len(first)} job{'s' if len(first) > 1 else ''}"
    given = {key: dict.fromkeys(job.settings[key] for job in jobs if key in job.settings) for key in differing}
    words = " ".join(f"{key}={','.join(values)}" for key, values in given.items())
    if any(f"{key}.".startswith(NO_RESULT) for key in differing):
        return [f"{words}: cannot change a result: {count}, run with the first value"]
    return [f"{words or 'a value given twice'}: the same config: {count}"]


def combinations(parsed: Sequence[Any]) -> list[list[str]]:
    """The words of each job: every combination of the swept values, the last key's varying fastest; of two overrides
    of one key the later one counts.
    """
    choices: dict[str, list[str]] = {}
    for override in parsed:
        key = override.get_key_element()
        if is_points(override):
            continue
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise InputError(
                f"{override.input_line}: an interval has no list of values to run; give them (0.1,0.01), or search in"
                " it with hydra/sweeper=optuna"
            )
    return [list(words) for words in itertools.product(*choices.values())]


def alternatives(words: list[str]) -> list[list[str]]:
    """The words of each combination of a command's several values.

    Raises:
        InputError: a word that is no override, or an interval.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    set_up()
    try:
        return combinations(OverridesParser.create().parse_overrides(words))
    except COMPOSITION_ERRORS as error:
        raise InputError(one_line(error)) from error


def compose_job(sweeper: Any, overrides: list[str], swept: Sequence[str]) -> Job:
    """One job, composed and checked.

    Raises:
        InputError: what is wrong with its config.
    """
    from runner.groups.modes import mode_of, monitoring

    cfg = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, overrides)
    refuse_own_sweep(cfg, sweeper.config)
    with read_write(cfg), open_dict(cfg):
        cfg.sweep.points = None  # of all jobs: each has its own
    task = task_config(cfg)
    check_composed(task)
    check_targets(task)
    with admission.of_config(task):
        for group in monitoring(task):
            mode_of(group, task)
    values = dict(override.split("=", 1) for override in overrides if "=" in override)
    named = swept or [key for key in values if not key.startswith("sweep.")]
    settings = {key.lstrip("+"): values[key] for key in named if key in values}
    source: Any = OmegaConf.to_container(task, resolve=False)
    choices = {str(group): str(name or "null") for group, name in cfg.hydra.runtime.choices.items()}
    choices = {group: name for group, name in choices.items() if not group.startswith("hydra/")}
    return Job(overrides, resolved(task), settings, cfg, source=source, choices=choices)


def refuse_own_sweep(cfg: Any, master: Any) -> None:
    """Refuses a job whose files say how the sweep is to be run, which is read before any job is composed.

    Raises:
        InputError: the choice, or the key and its value.
    """
    chosen, before = (
        {f"hydra/{kind}": c.hydra.runtime.choices[f"hydra/{kind}"] for kind in ("sweeper", "launcher")}
        | {
            name: value
            for key in ("hydra.sweeper", "hydra.launcher", "hydra.sweep", "sweep")
            for name, value in flatten(OmegaConf.to_container(OmegaConf.select(c, key), resolve=False), key).items()
        }
        for c in (cfg, master)
    )
    given = {word.partition("=")[0].lstrip("+") for word in master.hydra.overrides.task}
    for name, value in chosen.items():
        if value != before.get(name) and name not in given:
            raise InputError(
                f"{name}={shown(value)}: belongs to the sweep as a whole, for which it is {shown(before.get(name))}: a"
                " file that is swept over cannot set it; give it on the command line"
            )


def task_config(cfg: Any) -> Any:
    """The job's config without hydra.*."""
    task = copy.deepcopy(cfg)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


def resolved(task: Any) -> dict[str, Any]:
    return OmegaConf.to_container(task, resolve=True)  # type: ignore[return-value]
