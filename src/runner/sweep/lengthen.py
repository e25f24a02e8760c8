"""A sweep that goes on longer: trainer.epochs raised for all jobs of its folder, or for none.

Contract: every job is looked at before the first is touched. Then sweep.json says the new length, then each job.json,
then each run goes on by itself: a sweep that is killed in between goes on to the new length when it is resumed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runner.config import admission
from runner.errors import InputError
from runner.job.changes import check_length
from runner.storage.run_dir import resume_command
from runner.sweep import plan
from runner.sweep.combine import compose_job
from runner.sweep.multirun import is_followed
from runner.sweep.plan import Job

EPOCHS = "trainer.epochs"


def lengthened(sweeper: Any, jobs: Sequence[Job], swept: Sequence[str], place: Path) -> list[Job]:
    """The command's jobs and all others of the folder at the command's length, each in the folder that it has.

    Raises:
        InputError: names the job that cannot go on longer, and why.
    """
    epochs = jobs[0].config["trainer"]["epochs"]
    if EPOCHS in swept:
        raise InputError(f"{EPOCHS}: is swept over, so there is no one length to raise")
    known = plan.known_jobs(place)
    for name in known:
        record = plan.run_of(place / name)
        if record is not None and record.get("config_yaml", "") is not None:  # it was built
            try:
                check_length(record, "epochs", epochs, f"another sweep.name begins anew with {EPOCHS}={epochs}")
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
    by_setting = {setting_key(record["setting"], record["seed"]): name for name, record in known.items()}
    by_words = {words_key(record["settings"]): name for name, record in known.items()}
    for job in jobs:
        own = setting_key(plan.setting_of(job.config, job.source), job.config["seed"])
        own_name = by_setting.get(own) or by_words.get(words_key(job.settings))
        job.folder = place / own_name if own_name is not None else Path()
    taken = {job.folder.name for job in jobs}
    plan.place_jobs([job for job in jobs if job.folder == Path()], place)
    trusted = jobs[0].config.get("trust") or []
    others = [
        again(sweeper, place / name, record, epochs, trusted) for name, record in known.items() if name not in taken
    ]
    return [*jobs, *others]


def setting_key(setting: Mapping[str, Any] | None, seed: Any) -> str:
    return plan.digest([{key: value for key, value in (setting or {}).items() if key != EPOCHS}, str(seed)])


def words_key(settings: Mapping[str, str]) -> str:
    return plan.digest({key: value for key, value in settings.items() if key != EPOCHS})


def again(sweeper: Any, folder: Path, record: Mapping[str, Any], epochs: int, trusted: Sequence[str]) -> Job:
    """A job that another command has brought into the folder, from the words that it was planned with."""
    words = [word for word in record["overrides"] if word.lstrip("+").partition("=")[0] != EPOCHS]
    wrong = [word for word in words if not is_followed(word, trusted)]
    if wrong and not admission.granted()[1]:
        raise InputError(f"{folder / 'job.json'}: {wrong[0]}: is not taken from a record but by --trust-all")
    try:
        job = compose_job(sweeper, [*words, f"{EPOCHS}={epochs}"], [])
    except InputError as error:
        raise InputError(f"{folder.name}: {error}") from error
    job.folder, job.settings = folder, dict(record["settings"])
    if setting_key(plan.setting_of(job.config, job.source), job.config["seed"]) != setting_key(
        record["setting"], record["seed"]
    ):
        command = f"{resume_command(folder)} {EPOCHS}={epochs}"
        raise InputError(f"{folder.name}: is no more what its words compose to; lengthen it by itself: {command}")
    return job
