"""`runner resume RUN_DIR`: continues a run from its folder alone, with the same bits as if it had never stopped."""

import argparse
from pathlib import Path

from runner.cli import trust
from runner.errors import InputError
from runner.storage.record_schema import BadRecord, SweepRecord, read_record


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner resume",
        description="Continues a run from its newest good checkpoint, in its own folder. What cannot change what was"
        " trained already may be overridden: trainer.epochs upwards, device, checkpoint.*, dataloader.num_workers, ..."
        " Data that has changed is refused; accept_data_change=true goes on with it.",
    )
    made.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that holds a run or a sweep")
    made.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. trainer.epochs=20")
    made.add_argument("--quiet", action="store_true", help="only the result on the screen")
    trust.add_flags(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    trust.grant(arguments)
    overrides = [*arguments.overrides, *(["quiet=true"] if arguments.quiet else [])]
    from runner.job.resuming import resume

    if (arguments.run_dir / "sweep.json").exists():
        resume_sweep(arguments.run_dir, overrides)
    else:
        resume(arguments.run_dir, overrides)
    return 0


def resume_sweep(path: Path, overrides: list[str]) -> None:
    """Runs a sweep's own command again in its folder: what is finished is not run again."""
    from runner.job.own_code import as_it_was_started
    from runner.sweep.multirun import check_words, resume

    try:
        record = read_record(path / "sweep.json", SweepRecord)
    except BadRecord as error:
        raise InputError(f"{error}; give the sweep's command again") from error
    check_words(path / "sweep.json", record)
    place = path if record["working_directory"] == str(Path.cwd()) else path.absolute()
    with as_it_was_started(record, path):
        resume(place, record, overrides)
