"""Which jobs a sweep has: their names, folders and identities, and what makes two sweeps the same.

Contract: a job's identity is the hash of its config without what cannot change its result. A job that is known by
its identity keeps its folder, whatever the command calls it. What the plan knows of a job stands in its folder
(job.json), so that sweep.json can be made again from the folders.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.storage.files import make_directory, write_atomically
from runner.storage.provenance import code_changes
from runner.storage.records import flatten

NO_RESULT = (
    *("sweep.", "derived.", "checkpoint.", "name", "tags", "notes", "quiet", "trainer.log_every"),
    *("dataloader.placement", "dataloader.memory_limit", "dataloader.num_workers", "dataloader.pin_memory"),
    *("dataloader.persistent_workers", "dataloader.prefetch_factor"),
)
# Keys that came later: null, they say what a config without them says, so that older sweeps keep their identities.
LATER = ("dataset.transform_train", "dataset.val", "dataset.val_root")
LONGEST_NAME = 120


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
    return {key: value for key, value in flat.items() if value is not None or key not in LATER}


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
    name = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", text).lstrip(".") or "job"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{digest(text)[:8]}"


def known_jobs(place: Path) -> dict[str, dict[str, Any]]:
    """job.json of every job in a sweep's folder, by folder name."""
    known = {}
    for path in sorted(place.glob("*/job.json")):
        try:
            known[path.parent.name] = json.loads(path.read_text())
        except ValueError:
            continue  # a write that never finished: the job is planned again
    return known


def unique(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each result once."""
    return list({job.identity: job for job in reversed(jobs)}.values())[::-1]


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
    words = " ".join(f"{key}={','.join(dict.fromkeys(job.settings[key] for job in jobs))}" for key in differing)
    if any(f"{key}.".startswith(NO_RESULT) for key in differing):
        return [f"{words}: cannot change a result: {count}, run with the first value"]
    return [f"{words or 'a value given twice'}: the same config: {count}"]


def place_jobs(jobs: Sequence[Job], place: Path) -> None:
    """Gives each job its folder: the one it has, or a new one by its name; a clash gets a hash."""
    by_identity = {record["identity"]: name for name, record in known_jobs(place).items()}
    taken = set(by_identity.values())
    for job in jobs:
        name = by_identity.get(job.identity)
        if name is None:
            name = safe_name(job.settings)
            if name in taken or (place / name / "run.json").exists():
                name = f"{name[: LONGEST_NAME - 9]}-{job.identity[:8]}"
        taken.add(name)
        job.folder = place / name


def write_job(job: Job) -> None:
    """Leaves in the job's folder what the plan knows of it."""
    make_directory(job.folder)
    path = job.folder / "job.json"
    before = json.loads(path.read_text()) if path.exists() else {"deaths": []}
    record = {**before, "identity": job.identity, "overrides": job.overrides, "settings": job.settings}
    record |= {"seed": job.config.get("seed"), "setting": setting_of(job.config, job.source), "choices": job.choices}
    write_atomically(path, (json.dumps(record, indent=2, default=str) + "\n").encode())


def record_death(folder: Path, event: Mapping[str, Any]) -> None:
    """Adds a worker's death to the job's record."""
    path = folder / "job.json"
    record = json.loads(path.read_text())
    record["deaths"].append(dict(event))
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def check_same(place: Path, base: Mapping[str, Any], swept: Sequence[str], code: Any, force: bool) -> None:
    """Refuses a folder that holds another sweep.

    Raises:
        InputError: another base or other code, with the first differences; sweep.force=true adds all the same.
    """
    path = place / "sweep.json"
    if force or not path.exists():
        return
    try:
        before = json.loads(path.read_text())
        old, old_code = before["base"], before["code"]
    except (ValueError, KeyError):
        return  # it can be made again from the jobs, whose identities are checked one by one
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
        raise InputError(f"{place}: holds a sweep of another config; {'; '.join(differing[:3])}; {go_on}{way_out}")
    if changes := code_changes(old_code, code):
        raise InputError(f"{place}: holds a sweep of other code; {'; '.join(changes[:3])}; {way_out}")


def last_code(place: Path) -> dict[str, Any] | None:
    """The code that the sweep was last started with, as far as sweep.json tells."""
    try:
        code = json.loads((place / "sweep.json").read_text())["code"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, dict) else None


def write_sweep(place: Path, facts: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> None:
    record = {**facts, "jobs": list(jobs)}
    write_atomically(place / "sweep.json", (json.dumps(record, indent=2, default=str) + "\n").encode())
