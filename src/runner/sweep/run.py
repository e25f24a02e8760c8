"""A sweep from its arguments to its summary: plan, check, run what is not finished, sum up."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import InputError, Interrupted
from runner.job import own_code
from runner.processes import stop_signals
from runner.storage import provenance, records
from runner.storage.record_schema import BadRecord
from runner.storage.run_dir import RunDir, now, resume_command
from runner.sweep import lengthen, plan, points, show, summary
from runner.sweep.combine import compose_jobs
from runner.sweep.plan import Job
from runner.sweep.ready import check_launcher, check_new
from runner.sweep.settings import members
from runner.sweep.worker import is_shorter
from runner.terminal.printable import say
from runner.terminal.words import folder_word, pasted, plural

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
    longer = [lengthen.EPOCHS] if options.lengthen else []
    plan.check_same(place, base, [*swept, *longer], code, bool(options.force))
    if options.lengthen:
        jobs = lengthen.lengthened(sweeper, jobs, swept, place)
    else:
        plan.place_jobs(jobs, place)
    said = [*collapsed, *check_new(sweeper, jobs)]
    if options.dry_run:
        show_plan(jobs, place, said)
        return []
    with locked(place), screen():
        for line in said:
            log.warning(line)
        facts = sweep_facts(sweeper, arguments, swept, base, code, jobs)
        points.keep_copy(options.points, place)
        if options.lengthen:  # from here on it is a sweep of this length, whenever it is killed
            write_record(place, facts)
        for job in jobs:
            plan.write_job(job)
        write_record(place, facts)
        outcomes = run_jobs(sweeper, jobs, place, facts)
        return finish(jobs, place, facts, outcomes)


def code_of(jobs: Sequence[Job]) -> dict[str, Any]:
    """The code of today, with the own modules of all these jobs."""
    own = {name: digest for job in jobs for name, digest in own_code.digests(own_code.find(job.config)).items()}
    return provenance.code_state(*provenance.git_state(), own=own)


def latest_code(record: Mapping[str, Any]) -> Any:
    """The code that a run was last continued with, or began with."""
    return next((event["code"] for event in reversed(record["resumed"]) if event.get("code")), record.get("code"))


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
    try:
        record = run_dir.read_run()
    except BadRecord as error:
        return "failed", f"{error}; {way_out(job.folder)}"
    if record["state"] == "done" and not is_shorter(record, job.config.get("trainer", {}).get("epochs", 0)):
        return "done", None
    diverged = record["state"] == "failed" and record.get("failure") == "diverged"
    if diverged and not provenance.code_changes(latest_code(record), code):
        return "failed", record["error"]
    return None, None


def way_out(folder: Path) -> str:
    """What to do with a job whose record cannot be read: the others go on without it."""
    move = pasted(["mv", folder_word(folder), folder_word(f"{folder}{plan.SET_ASIDE}")])
    return f"put run.json back, or train it again: {move}, and the same command"


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
            try:
                record = run_dir.read_run()
                row |= {"state": records.state_of(run_dir, record), "error": record["error"]}
            except BadRecord as error:
                row |= {"state": "failed", "error": str(error)}
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
    command = resume_command(place, own_code.to_be_named(facts, place))
    if stopped_by is not None:
        log.warning("stopped; continue with: %s", command)
        raise Interrupted(stopped_by)
    if failures:
        log.error("%d of %d jobs failed", len(failures), len(jobs))
    if open_jobs := [job.name for job in jobs if outcomes.get(job.name, {}).get("state") not in ("done", "failed")]:
        log.error("not finished: %s; continue with: %s", ", ".join(open_jobs), command)
    if failures or open_jobs:
        raise SweepFailed
    return [RunDir(job.folder).read_run() for job in jobs]


def show_plan(jobs: Sequence[Job], place: Path, said: Sequence[str]) -> None:
    from runner.terminal.tables import table

    rows = []
    for job in jobs:
        run_dir = RunDir(job.folder)
        try:
            state = records.state_of(run_dir, run_dir.read_run()) if run_dir.run_json.exists() else "new"
        except BadRecord:
            state = "unreadable"
        rows.append([job.name, " ".join(job.overrides), state])
    say(*table(["folder", "overrides", "state"], rows).splitlines(), *said)
    say(f"{plural(len(jobs), 'job')} in {place}; nothing was run (sweep.dry_run=true)")
