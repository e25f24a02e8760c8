"""One job of a sweep, under any launcher: run, resumed, or skipped because it is finished."""

from pathlib import Path
from typing import Any

from runner.run_dir import RunDir


def run_or_resume(cfg: Any, folder: Path, is_shown: bool = True) -> dict[str, Any]:
    """Brings the run in `folder` to its end, and returns what its run.json says.

    Raises:
        As runner.job.train.
    """
    from runner.job import train
    from runner.resuming import resume

    run_dir = RunDir(folder)
    if run_dir.run_json.exists():
        record = run_dir.read_run()
        return record if record["state"] == "done" else resume(folder, [], is_shown=is_shown)
    run_dir.claim()
    try:
        return train(cfg, run_dir, [], is_shown=is_shown)
    finally:
        run_dir.release()
