"""One job of a sweep, under any launcher: run, resumed, or skipped because it is finished."""

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.errors import Diverged, InputError, Interrupted
from runner.processes import STOP_SIGNALS
from runner.run_dir import RunDir, now
from runner.sweep.plan import Job, record_death


def run_or_resume(
    cfg: Any, folder: Path, is_shown: bool = True, stop_on: Sequence[signal.Signals] = STOP_SIGNALS
) -> dict[str, Any]:
    """Brings the run in `folder` to its end, and returns what its run.json says.

    Raises:
        As runner.job.train.
    """
    from runner.job import train
    from runner.resuming import resume

    run_dir = RunDir(folder)
    if run_dir.run_json.exists():
        record = run_dir.read_run()
        return record if record["state"] == "done" else resume(folder, [], is_shown=is_shown, stop_on=stop_on)
    run_dir.claim()
    try:
        return train(cfg, run_dir, [], is_shown=is_shown, stop_on=stop_on)
    finally:
        run_dir.release()


def work(composed: Any, folder: str, threads: int, stop_on: Sequence[signal.Signals] = STOP_SIGNALS) -> dict[str, Any]:
    """Runs one job in a worker process, on any machine. What goes wrong is returned, and stands in its log."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import JobStatus, run_job
    from hydra.types import HydraContext

    from runner import config

    config.set_up()
    if composed.device.threads is None:
        composed.device.threads = threads
    try:
        job = run_job(
            hydra_context=HydraContext(config_loader=None, callbacks=Callbacks(composed)),  # type: ignore[arg-type]
            task_function=lambda cfg: run_or_resume(cfg, Path(folder), is_shown=False, stop_on=stop_on),
            config=composed,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            configure_logging=False,
        )
        if job.status != JobStatus.COMPLETED:
            raise job._return_value
        return {"state": "done"}
    except Interrupted as stopped:
        return {"state": "interrupted", "error": str(stopped), "signal": stopped.signum}
    except Diverged as error:
        return {"state": "failed", "kind": "diverged", "error": str(error)}
    except Exception as error:
        kind = "input" if isinstance(error, InputError) else "exception"
        return {"state": "failed", "kind": kind, "error": f"{type(error).__name__}: {error}"}


def died(job: Job, error: str, exit_code: int | None = None) -> dict[str, Any]:
    """The outcome of a job whose worker died, which is recorded in its folder."""
    record_death(job.folder, {"at": now(), "exit_code": exit_code, "error": error})
    run_dir = RunDir(job.folder)
    if run_dir.run_json.exists():
        run_dir.write_run({**run_dir.read_run(), "state": "failed", "ended": now(), "error": error})
    return {"state": "failed", "kind": "death", "error": error, "exit_code": exit_code}
