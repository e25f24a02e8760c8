"""A sweep from its arguments to its summary: plan, check, run what is not finished, sum up."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import InputError, Interrupted
from runner.job import own_code
from runner.printable import say
from runner.processes import stop_signals
from runner.storage import provenance, records
from runner.storage.run_dir import RunDir, now, resume_command
from runner.sweep import plan, show, summary
from runner.sweep.combine import compose_jobs, task_config
from runner.sweep.plan import Job
from runner.sweep.settings import members

log = logging.getLogger("runner")


class SweepFailed(Exception):
    """At least one job failed; the summary is written all the same. Exit code 1."""

    is_logged = True


def sweep(sweeper: Any, arguments: list[str]) -> list[dict[str, Any]]:
    """Runs a sweep that Hydra's multirun has composed.

    Raises:
        InputError: before anything on disk is changed.
        SweepFailed, Interrupted: after the summary is written.
    """
    master = sweeper.config
    options = master.sweep
    place = Path(master.hydra.sweep.dir)
    check_launcher(sweeper)
    jobs, swept, collapsed = compose_jobs(sweeper, arguments)
    base, code = plan.base_of(jobs[0].config, swept), code_of(jobs)
    plan.check_same(place, base, swept, code, bool(options.force))
    plan.place_jobs(jobs, place)
    said = [*collapsed, *check_new(sweeper, jobs)]
    if options.dry_run:
        show_plan(jobs, place, said)
        return []
    with locked(place), screen():
        for line in said:
            log.warning(line)
        facts = sweep_facts(sweeper, arguments, swept, base, code, jobs)
        for job in jobs:
            plan.write_job(job)
        write_record(place, facts)
        outcomes = run_jobs(sweeper, jobs, place, facts)
        return finish(jobs, place, facts, outcomes)


def check_launcher(sweeper: Any) -> None:
    """Refuses, before anything is written, what the launcher or a sweep cannot do; a launcher of ours knows its own."""
    options, hydra = sweeper.config.sweep, sweeper.config.hydra
    if options.retries < 0:
        raise InputError(f"sweep.retries={options.retries}: must be a whole number of at least 0")
    if hydra.job.chdir:
        raise InputError(
            "hydra.job.chdir=true: not in a sweep, whose jobs find their folders and data from where it was started;"
            " a run's own folder is hydra.runtime.output_dir"
        )
    if hasattr(sweeper.launcher, "check"):
        sweeper.launcher.check()
    if hasattr(sweeper.launcher, "engine"):
        return
    given = dict(word.partition("=")[::2] for word in hydra.overrides.task)
    unable = f"hydra/launcher={hydra.runtime.choices['hydra/launcher']} runs all jobs by itself and cannot do this"
    if options.fail_fast:
        raise InputError(f"sweep.fail_fast=true: {unable}; choices: hydra/launcher=local, ray, submitit_local")
    if "sweep.retries" in given and options.retries > 0:
        raise InputError(
            f"sweep.retries={options.retries}: {unable}; choices: hydra/launcher=local, ray, submitit_local"
        )


def check_new(sweeper: Any, jobs: Sequence[Job]) -> list[str]:
    """Looks at every job that has not begun, as far as it can be without training; returns what is likely a mistake.

    Raises:
        InputError: of the first job that would not begin to train.
    """
    from runner.job.beforehand import check_jobs

    named = [
        (f"job {number} ({' '.join(job.overrides)})", task_config(job.composed))
        for number, job in enumerate(jobs)
        if job.folder == Path() or not (job.folder / "run.json").exists()
    ]
    return check_jobs(named, with_data=not getattr(sweeper.launcher, "is_elsewhere", False))


def code_of(jobs: Sequence[Job]) -> dict[str, Any]:
    """The code of today, with the own modules of all these jobs."""
    own = {name: digest for job in jobs for name, digest in own_code.digests(own_code.find(job.config)).items()}
    return provenance.code_state(*provenance.git_state(), own=own)


def latest_code(record: Mapping[str, Any]) -> Any:
    """The code that a run was last continued with, or began with."""
    return next((event["code"] for event in reversed(record["resumed"]) if "code" in event), record.get("code"))


def sweep_facts(
    sweeper: Any, arguments: list[str], swept: Sequence[str], base: Mapping[str, Any], code: Any, jobs: Sequence[Job]
) -> dict[str, Any]:
    """What sweep.json says besides its jobs: all that the sweep can be continued from."""
    hydra = [w for w in sweeper.config.hydra.overrides.hydra if not w.startswith(("hydra.mode=", "hydra.sweep.dir="))]
    return {
        "command": provenance.command_line(),
        "started": now(),
        "arguments": arguments,
        "hydra": hydra,
        "config_dir": user_config_dir(sweeper.config),
        "working_directory": os.getcwd(),
        "own_code": own_code.find([job.config for job in jobs]),
        "swept": list(swept),
        "base": dict(base),
        "code": code,
    }


def user_config_dir(master: Any) -> str | None:
    from runner.config.conf_dir import conf_dir

    for source in master.hydra.runtime.config_sources:
        if source.provider == "main" and source.path != conf_dir():
            return str(source.path)
    return None


def run_jobs(
    sweeper: Any, jobs: Sequence[Job], place: Path, facts: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], int | None]:
    """Runs what is not finished; returns the outcomes by job, and the signal that stopped it, if one did."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    pending, outcomes = [], {}
    for job in jobs:
        state, error = finished_state(job, facts["code"])
        if state is None:
            with open_dict(job.composed):
                job.composed.hydra.sweep.subdir = job.name
            pending.append(job)
        else:
            outcomes[job.name] = {"state": state, "error": error, "kind": "before"}
    log.info("%s: %d jobs, %d of them finished before", place, len(jobs), len(jobs) - len(pending))
    HydraConfig.instance().set_config(sweeper.config)
    if not pending:
        return outcomes, None
    if not hasattr(sweeper.launcher, "engine"):
        words = [[*job.overrides, f"hydra.sweep.subdir='{job.name}'"] for job in pending]
        for result, job in zip(sweeper.launcher.launch(words, initial_job_idx=0), pending, strict=True):
            outcomes[job.name] = outcome_of_return(result)
        return outcomes, None
    from runner.sweep.loop import Loop
    from runner.sweep.watch import Watch

    options = sweeper.config.sweep
    with Watch(pending, done=len(outcomes)) as watch, stop_signals() as stop:
        engine = sweeper.launcher.engine(place, pending)
        loop = Loop(engine, options.retries, options.fail_fast, watch.change, stop)
        outcomes |= loop.run(pending)
    return outcomes, stop.signum


def finished_state(job: Job, code: Any) -> tuple[str | None, str | None]:
    """("done", None) or ("failed", why) where the job need not run; (None, None) where it must."""
    run_dir = RunDir(job.folder)
    if not run_dir.run_json.exists():
        return None, None
    record = run_dir.read_run()
    if record["state"] == "done":
        return "done", None
    diverged = record["state"] == "failed" and record.get("failure") == "diverged"
    if diverged and not provenance.code_changes(latest_code(record), code):
        return "failed", record["error"]
    return None, None


def outcome_of_return(job: Any) -> dict[str, Any]:
    from runner.config.hydra_adapter import value_of

    try:
        value_of(job)
    except Exception as error:
        return {"state": "failed", "kind": "exception", "error": f"{type(error).__name__}: {error}"}
    return {"state": "done"}


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """The sweep's folder, for one process at a time."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = RunDir(place)
        lock.lock()
    except OSError as error:
        raise InputError(f"hydra.sweep.dir={place}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def screen() -> Iterator[None]:
    """The sweep's own lines, on the screen and nowhere else: each job has its log."""
    from runner.job.logs import Screen

    own, handler = logging.getLogger("runner"), Screen(quiet=False)
    level = own.level
    own.setLevel(logging.INFO)
    own.addHandler(handler)
    own.propagate = False
    try:
        yield
    finally:
        own.propagate = True
        own.setLevel(level)
        own.removeHandler(handler)


def job_rows(place: Path) -> list[dict[str, Any]]:
    """Every job in the sweep's folder, from its own files: name, settings, state, error, deaths."""
    rows = []
    for name, known in plan.known_jobs(place).items():
        run_dir = RunDir(place / name)
        row = {"name": name, "settings": known["settings"], "overrides": known["overrides"], "state": "planned"}
        if run_dir.run_json.exists():
            record = run_dir.read_run()
            row |= {"state": records.state_of(run_dir, record), "error": record.get("error")}
        rows.append({**row, "deaths": known["deaths"]})
    return rows


def write_record(place: Path, facts: dict[str, Any]) -> None:
    plan.write_sweep(place, facts, job_rows(place))


def finish(
    jobs: Sequence[Job], place: Path, facts: dict[str, Any], ended: tuple[dict[str, dict[str, Any]], int | None]
) -> list[dict[str, Any]]:
    """Writes sweep.json and the summary, says what failed and how to go on.

    Raises:
        Interrupted: a signal stopped the sweep.
        SweepFailed: a job failed.
    """
    outcomes, stopped_by = ended
    write_record(place, facts)
    failed = {name: outcome["error"] for name, outcome in outcomes.items() if outcome.get("state") == "failed"}
    summed = summary.summarize(members(place, failed))
    show.write(place, summed)
    for line in show.lines(summed):
        log.info(line)
    failures = {job.name: outcomes[job.name] for job in jobs if outcomes.get(job.name, {}).get("state") == "failed"}
    for name, outcome in failures.items():
        log.error("failed: %s: %s; log: %s", name, outcome["error"], place / name / "runner.log")
    log.info("%s", place)
    if stopped_by is not None:
        log.warning("stopped; continue with: %s", resume_command(place))
        raise Interrupted(stopped_by)
    if failures:
        log.error("%d of %d jobs failed", len(failures), len(jobs))
    if open_jobs := [job.name for job in jobs if outcomes.get(job.name, {}).get("state") not in ("done", "failed")]:
        log.error("not finished: %s; continue with: %s", ", ".join(open_jobs), resume_command(place))
    if failures or open_jobs:
        raise SweepFailed
    return [RunDir(job.folder).read_run() for job in jobs]


def show_plan(jobs: Sequence[Job], place: Path, said: Sequence[str]) -> None:
    from runner.tables import table

    rows = []
    for job in jobs:
        run_dir = RunDir(job.folder)
        state = records.state_of(run_dir, run_dir.read_run()) if run_dir.run_json.exists() else "new"
        rows.append([job.name, " ".join(job.overrides), state])
    say(*table(["folder", "overrides", "state"], rows).splitlines(), *said)
    say(f"{len(jobs)} jobs in {place}; nothing was run (sweep.dry_run=true)")
