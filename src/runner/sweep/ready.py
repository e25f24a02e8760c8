"""Whether a sweep may start: what its launcher is able to do, and whether each of its jobs would begin to train."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.errors import InputError
from runner.sweep.combine import task_config
from runner.sweep.plan import Job, run_of


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
    from runner.before.beforehand import check_jobs

    named = [
        (f"job {number} ({' '.join(job.overrides)})", task_config(job.composed))
        for number, job in enumerate(jobs)
        if job.folder == Path() or not (job.folder / "run.json").exists()
    ]
    begun = Path(sweeper.config.hydra.sweep.dir).glob("*/run.json") if named and not sweeper.config.sweep.force else ()
    before = [record for path in sorted(begun) if (record := run_of(path.parent)) is not None]
    return check_jobs(named, not getattr(sweeper.launcher, "is_elsewhere", False), before)
