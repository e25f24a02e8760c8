"""One job of a sweep, under any launcher: run, resumed, or skipped because it is finished."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from runner.config import admission
from runner.errors import Diverged, Held, InputError, Interrupted
from runner.processes import STOP_SIGNALS
from runner.storage import provenance
from runner.storage.lease import BEAT_SECONDS, STALE_SECONDS, other_holder
from runner.storage.record_schema import SweepRecord, read_record
from runner.storage.run_dir import RunDir, is_locked, now
from runner.sweep.plan import Job, record_death


def run_or_resume(
    cfg: Any, folder: Path, is_shown: bool = True, stop_on: Sequence[signal.Signals] = STOP_SIGNALS
) -> dict[str, Any]:
    """Brings the run in `folder` to its end, and returns what its run.json says.

    Raises:
        As runner.job.run.train.
    """
    from runner.job.changes import ACCEPT
    from runner.job.record import never_began, record_of_no_run
    from runner.job.resuming import resume
    from runner.job.run import train

    run_dir = RunDir(folder)
    if run_dir.run_json.exists():
        record = run_dir.read_run()
        longer = [f"trainer.epochs={cfg.trainer.epochs}"] if is_shorter(record, cfg.trainer.epochs) else []
        if record["state"] == "done" and not longer:
            return record
        if not never_began(record):
            named = admission.named_by(cfg)
            accepts = [f"{ACCEPT}=true"] if cfg.sweep.force else []
            with admission.granting(named) if named else nullcontext():
                return resume(folder, [*longer, *accepts], is_shown=is_shown, stop_on=stop_on)
        run_dir.run_json.unlink()  # it says only why the last start came to nothing
    run_dir.claim()
    try:
        return train(cfg, run_dir, [], is_shown=is_shown, stop_on=stop_on)
    except Exception as error:
        if not run_dir.run_json.exists():
            run_dir.write_run(record_of_no_run(cfg, error))
        raise
    finally:
        run_dir.release()


def is_shorter(record: Mapping[str, Any], epochs: int) -> bool:
    """Whether a run is planned for fewer epochs than its sweep is now: the sweep was lengthened."""
    trainer = record["config"].get("trainer")
    planned = trainer.get("epochs") if isinstance(trainer, dict) else None
    return isinstance(planned, int) and planned < epochs


def work(
    composed: Any,
    folder: str,
    threads: int,
    stop_on: Sequence[signal.Signals] = STOP_SIGNALS,
    admits: admission.Carried = admission.NOTHING,
) -> dict[str, Any]:
    """Runs one job in a worker process, on any machine. What goes wrong is returned, and stands in its log."""
    from runner.config import compose, hydra_adapter

    compose.set_up()
    before, provenance.typed = provenance.typed, command_of(Path(folder).parent)
    try:
        wait_for_dead_host(RunDir(Path(folder)))
        if composed.device.threads is None:
            composed.device.threads = threads
        with admission.carrying(admits):
            hydra_adapter.run_of_sweep(
                composed, lambda cfg: run_or_resume(cfg, Path(folder), is_shown=False, stop_on=stop_on)
            )
        return {"state": "done"}
    except Interrupted as stopped:
        return {"state": "interrupted", "error": str(stopped), "signal": stopped.signum}
    except Diverged as error:
        return {"state": "failed", "kind": "diverged", "error": str(error)}
    except Exception as error:
        kind = "held" if isinstance(error, Held) else "input" if isinstance(error, InputError) else "exception"
        return {"state": "failed", "kind": kind, "error": f"{type(error).__name__}: {error}"}
    finally:
        provenance.typed = before


def command_of(place: Path) -> list[str] | None:
    """What was typed to start the sweep; None where its record does not say."""
    try:
        return read_record(place / "sweep.json", SweepRecord)["command"] or None
    except (OSError, InputError):
        return None


def share_memory(at_once: int, per_gpu: int = 1) -> None:
    """Says in this process how many jobs run at once on this machine, and on each of its GPUs, so that all of them
    together take no more of the memory for their data than one alone would. It is no part of a job's config.
    """
    from runner.batches.memory import JOBS_AT_ONCE, JOBS_PER_GPU

    os.environ[JOBS_AT_ONCE], os.environ[JOBS_PER_GPU] = str(max(1, at_once)), str(max(1, per_gpu))


def wait_for_dead_host(run_dir: RunDir) -> None:
    """An engine may run a job of a dead host again before the host's lease has run out: waits until it has, unless the
    host is seen to be alive.
    """
    deadline, before = time.monotonic() + STALE_SECONDS + 2 * BEAT_SECONDS, 0.0
    while (held := other_holder(run_dir.lease_file)) is not None and time.monotonic() < deadline:
        if held[1] < before:
            return  # it was touched
        before = held[1]
        time.sleep(1)


def died(job: Job, error: str, exit_code: int | None = None) -> dict[str, Any]:
    """The outcome of a job whose worker died, which is recorded in its folder."""
    run_dir = RunDir(job.folder)
    record = run_dir.read_run() if run_dir.run_json.exists() else None
    if record is not None and record["state"] == "done":
        return {"state": "done"}  # it died afterwards
    record_death(job.folder, {"at": now(), "exit_code": exit_code, "error": error})
    if record is not None and not is_locked(run_dir):
        run_dir.write_run({**record, "state": "failed", "ended": now(), "error": error})
    return {"state": "failed", "kind": "death", "error": error, "exit_code": exit_code}
