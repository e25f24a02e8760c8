"""`runner resume RUN_DIR`: continues a run from its folder alone, with the same bits as if it had never stopped."""

import argparse
from pathlib import Path
from typing import Any

from runner.run_dir import RunDir


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner resume",
        description="Continues a run from its newest good checkpoint, in its own folder. What cannot change what was"
        " trained already may be overridden: trainer.epochs upwards, device, checkpoint.*, dataloader.num_workers, ...",
    )
    made.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that holds a run")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. trainer.epochs=20")
    made.add_argument("--quiet", action="store_true", help="only the result on the screen")
    return made


def main(arguments: argparse.Namespace) -> int:
    overrides = [*arguments.overrides, *(["quiet=true"] if arguments.quiet else [])]
    resume(arguments.run_dir, overrides)
    return 0


def resume(path: Path, overrides: list[str], on_batch: Any = None) -> dict[str, Any]:
    """Continues the run in `path`, and returns what its run.json says at the end.

    Raises:
        InputError: no run, another process has it, no good checkpoint, or an override that would change the past.
    """
    run_dir = RunDir(path)
    record = run_dir.read_run()
    finished = f"{path}: finished, all {record['epochs']} epochs are done; trainer.epochs=N continues it"
    if record["state"] == "done" and not overrides:
        print(finished)
        return record
    from runner.config import overridden
    from runner.job import train
    from runner.resuming import check_changes, choose

    config = overridden(record["config"], overrides)
    check_changes(path, record, dict(config), overrides)
    if record["state"] == "done" and config.trainer.epochs == record["epochs"]:
        print(finished)
        return record
    run_dir.lock()
    try:
        resumed, notes = choose(run_dir, record)
        if config.device.type != record["config"]["device"]["type"]:
            notes.append("another device: from here on the bits are not those of the run that never stopped")
        return train(config, run_dir, notes, resumed, on_batch)
    finally:
        run_dir.release()
