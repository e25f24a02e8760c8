"""Which jobs a sweep has: their names, folders and identities, and what makes two sweeps the same.

Contract: a job's identity is the hash of its config without what cannot change its result. A job that is known by
its identity keeps its folder, whatever the command calls it. What the plan knows of a job stands in its folder
(job.json), so that sweep.json can be made again from the folders.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage.files import make_directory
from runner.storage.identity import LATER, NO_RESULT
from runner.storage.inside import refuse_link
from runner.storage.provenance import code_changes
from runner.storage.record_schema import BadRecord, JobRecord, SweepRecord, read_record, write_record
from runner.storage.run_dir import RunDir, resume_command
from runner.terminal import notices
from runner.terminal.progress import with_bar
from runner.values import flatten

log = logging.getLogger("runner")

LONGEST_NAME = 120
SET_ASIDE = ".set-aside"  # the ending of what is kept, and not looked at


@dataclass
class Job:
    """One run of a sweep."""

    overrides: list[str]
    config: dict[str, Any]  # resolved as far as it can be before the data is built
    settings: dict[str, str]  # what varies: swept key -> value, as text
    composed: Any = None  # Hydra's config of the job, hydra.* included
    folder: Path = Path()
    source: dict[str, Any] = field(default_factory=dict)  # the config with its interpolations
    choices: dict[str, str] = field(default_factory=dict)  # group -> the name of its choice

    @property
    def identity(self) -> str:
        return digest(result_config(self.config))

    @property
    def name(self) -> str:
        return self.folder.name


def result_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The flat config without what cannot change a result."""
    flat = {key: value for key, value in flatten(config).items() if not key.startswith(NO_RESULT)}
    return {key: value for key, value in flat.items() if key not in LATER or value != LATER[key]}


def setting_of(config: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """What seeds are repetitions of: the flat result config without the seed, the same before and after a run is built.

    Values that follow from the seed, or that the data fills in, are kept as the source has them. A thread count that
    nobody asked for is the machine's: settings.members puts back one that was.
    """
    flat = flatten(source)
    values = result_config(config)
    for key in ("seed", "device.threads"):
        values.pop(key, None)
    return {key: written_at(flat, key) if is_open(flat, key) else value for key, value in values.items()}


def written_at(source: Mapping[str, Any], key: str) -> Any:
    """What the source says at a key, or at the node above it that is an interpolation as a whole."""
    while key not in source and "." in key:
        key = key.rpartition(".")[0]
    return source.get(key)


def is_open(source: Mapping[str, Any], key: str, depth: int = 8) -> bool:
    """Whether the value at a key is null, follows from the seed, or is filled in when the data is there."""
    if key == "seed" or key.startswith("derived."):
        return True
    if key in source and source[key] is None:
        return True
    written = written_at(source, key)
    text = json.dumps(written, default=str) if isinstance(written, (list, str)) else ""
    if "${" not in text or depth == 0:
        return False
    if "derived." in text:  # also inside another, as ${derived.run_length.${scheduler.interval}}
        return True
    for dots, name in re.findall(r"\$\{(\.*)([\w.]+)\}", text):
        above = key.split(".")[: -len(dots)] if dots else []
        if is_open(source, ".".join([*above, name]), depth - 1):
            return True
    return False


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def base_of(config: Mapping[str, Any], swept: Iterable[str]) -> dict[str, Any]:
    """What all jobs of a sweep share: the flat config less the swept keys and groups, and the seed."""
    gone = [*swept, "seed"]
    return {
        key: value
        for key, value in result_config(config).items()
        if not any(key == other or key.startswith(f"{other}.") for other in gone)
    }


def safe_name(settings: Mapping[str, str]) -> str:
    """`optimizer.lr=0.1,seed=1`: sorted by key, what a file name should not hold made "_", cut with a hash if long."""
    text = ",".join(f"{key}={value}" for key, value in sorted(settings.items())) or "job"
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", text).lstrip(".")
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{digest(text)[:8]}"


def known_jobs(place: Path) -> dict[str, dict[str, Any]]:
    """job.json of every job in a sweep's folder, by folder name."""
    known = {}
    for path in with_bar(sorted(place.glob("*/job.json")), "reading jobs"):
        if path.parent.name.endswith(SET_ASIDE):
            continue
        refuse_link(path.parent, "sweep")
        try:
            known[path.parent.name] = read_record(path, JobRecord)
        except InputError as error:  # what its run says tells whose the folder is
            notices.add(str(error))
    return known


def run_of(folder: Path) -> dict[str, Any] | None:
    """run.json of a job's folder; None where it has none that can be read."""
    try:
        return RunDir(folder).read_run()
    except InputError:
        return None


def is_of(job: Job, record: Mapping[str, Any], swept_only: bool = False) -> bool:
    """Whether a folder's run is this job's: of one seed, and with the same values at the keys that both have (an older
    run lacks those that came later), or at those only that are swept. The mode is filled in when a run is built.
    """
    theirs = setting_of(record["config"], record["config_source"])
    ours = setting_of(job.config, job.source)
    sources = flatten(record["config_source"]), flatten(job.source)  # what the data fills in has many forms
    known = [key for key, value in ours.items() if key in theirs and value is not None]
    common = [key for key in known if not any(is_open(source, key) for source in sources)]
    common = [key for key in common if not key.startswith(("trainer.mode", "device."))]
    if swept_only:  # a run may have been lengthened by hand
        swept = tuple(f"{key}." for key in job.settings if key not in ("seed", "trainer.epochs"))
        common = [key for key in common if f"{key}.".startswith(swept)]
    if str(record["config"].get("seed")) != str(job.config.get("seed")):
        return False
    if any(digest(one) != digest(other) for one, other in written_pairs(job, sources, swept_only)):
        return False
    return all(digest(ours[key]) == digest(theirs[key]) for key in common)


def written_pairs(job: Job, sources: Sequence[Mapping[str, Any]], swept_only: bool) -> Iterable[tuple[Any, Any]]:
    """What a run's config and a job's say, as written, where the comparison of values is blind: at the swept keys, for
    null may stand for what the data fills in; and at the keys that a setting leaves out at their defaults.
    """
    swept = tuple(f"{key.lstrip('+')}." for key in job.settings if key not in ("seed", "trainer.epochs"))
    kept = () if swept_only else tuple(key for key in LATER if not key.startswith(("trainer.steps", "stopping.")))
    for key in {*sources[0], *kept}:
        if key in kept or (f"{key}.".startswith(swept) and key in sources[1]):
            yield sources[0].get(key, LATER.get(key)), sources[1].get(key, LATER.get(key))


def unique(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each result once."""
    return list({job.identity: job for job in reversed(jobs)}.values())[::-1]


def place_jobs(jobs: Sequence[Job], place: Path) -> None:
    """Gives each job its folder: the one it has, or a new one by its name; a clash gets a hash."""
    known = known_jobs(place)
    by_identity = {record["identity"]: name for name, record in known.items()}
    folders = [path.parent for path in sorted(place.glob("*/run.json")) if not path.parent.name.endswith(SET_ASIDE)]
    runs = {folder.name: run for folder in folders if (run := run_of(folder)) is not None}
    ours = {job.identity for job in jobs}
    # Whose identity no job has now: an older plan's, or one that is damaged.
    unclaimed = [name for name in runs if name not in known or known[name]["identity"] not in ours]
    taken = {*known}
    for job in jobs:
        name = by_identity.get(job.identity)
        if name in runs and not is_of(job, runs[name], swept_only=True):
            notices.add(f"{place / name / 'job.json'}: its identity is another job's than its run's; not believed")
            name = None
        if name is None:
            name = next((name for name in [safe_name(job.settings), *runs] if is_its(job, name, runs, unclaimed)), None)
        if name is None and is_unknown(place / safe_name(job.settings), known):
            name = safe_name(job.settings)  # neither of its records can be read: said when it is to run
        if name is None:
            name = safe_name(job.settings)
            if name in taken or (place / name / "run.json").exists():
                name = f"{name[: LONGEST_NAME - 9]}-{job.identity[:8]}"
        taken.add(name)
        job.folder = place / name
        refuse_link(job.folder, "sweep")


def is_its(job: Job, name: str, runs: Mapping[str, Mapping[str, Any]], unclaimed: Sequence[str]) -> bool:
    return name in runs and is_of(job, runs[name]) and (name in unclaimed or name == safe_name(job.settings))


def is_unknown(folder: Path, known: Mapping[str, Any]) -> bool:
    """Whether a job's folder is there and holds a job.json that cannot be read."""
    return folder.name not in known and (folder / "job.json").exists() and run_of(folder) is None


def write_job(job: Job) -> None:
    """Leaves in the job's folder what the plan knows of it."""
    make_directory(job.folder)
    path = job.folder / "job.json"
    before = read_job(path)
    record = {**before, "identity": job.identity, "overrides": job.overrides, "settings": job.settings}
    record |= {"seed": job.config.get("seed"), "setting": setting_of(job.config, job.source), "choices": job.choices}
    write_record(path, record)


def read_job(path: Path) -> dict[str, Any]:
    """What a job.json says; one that cannot be read is set aside and begun anew."""
    try:
        return read_record(path, JobRecord)
    except FileNotFoundError:
        return {"deaths": []}
    except BadRecord:
        aside = path.with_name(path.name + SET_ASIDE)
        os.replace(path, aside)
        log.warning("%s: cannot be read; it is kept as %s and written anew", path, aside.name)
        return {"deaths": []}


def record_death(folder: Path, event: Mapping[str, Any]) -> None:
    """Adds a worker's death to the job's record."""
    path = folder / "job.json"
    record = read_job(path)
    write_record(path, {**record, "deaths": [*record["deaths"], dict(event)]})


def check_same(place: Path, base: Mapping[str, Any], swept: Sequence[str], code: Any, force: bool) -> None:
    """Refuses a folder that holds another sweep.

    Raises:
        InputError: another base or other code, with the first differences; sweep.force=true adds all the same.
    """
    path = place / "sweep.json"
    if force or not path.exists():
        return
    try:
        before = read_record(path, SweepRecord)
    except BadRecord as error:  # it can be made again from the jobs, whose identities are checked one by one
        notices.add(f"{error}; it is made again from the jobs, without a check that this is the same sweep")
        return
    old, old_code = before["base"], before["code"]
    ignored = [*swept, *before["swept"], "seed"]

    def counts(key: str) -> bool:
        return not any(key == other or key.startswith(f"{other}.") for other in ignored)

    missing = object()
    keys = [key for key in {**old, **base} if counts(key) and old.get(key, missing) != base.get(key, missing)]
    differing = [f"{key}: {old.get(key, '-')} -> {base.get(key, '-')}" for key in keys]
    way_out = "choose another sweep.name, or add to it all the same with sweep.force=true"
    if differing:
        words = " ".join(f"{key}={json.dumps(old[key])}" for key in keys[:3] if key in old)
        go_on = f"give {words} to go on with it, " if words and len(keys) <= 3 else ""
        if keys == ["trainer.epochs"]:
            way_out = f"raise it for all jobs by: {resume_command(place)} trainer.epochs=N; or {way_out}"
        raise InputError(f"{place}: holds a sweep of another config; {'; '.join(differing[:3])}; {go_on}{way_out}")
    if changes := code_changes(old_code, code):
        raise InputError(f"{place}: holds a sweep of other code; {'; '.join(changes[:3])}; {way_out}")


def last_code(place: Path) -> dict[str, Any] | None:
    """The code that the sweep was last started with, as far as sweep.json tells."""
    try:
        return read_record(place / "sweep.json", SweepRecord)["code"]  # type: ignore[no-any-return]
    except (OSError, InputError):
        return None


def write_sweep(place: Path, facts: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> None:
    path = place / "sweep.json"
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a file; move it away")
    write_record(path, {**facts, "jobs": list(jobs)})
