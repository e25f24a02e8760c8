"""`runner replay RUN_DIR`: a finished run again from its folder alone, into a new one, and both side by side."""

import argparse
import os
from pathlib import Path
from typing import Any

from runner.cli import trust
from runner.cli.verify import check_length, differences
from runner.errors import InputError
from runner.job import own_code
from runner.job.record import unbegun
from runner.job.saved import check_targets_of
from runner.storage import identity, provenance
from runner.storage.files import write_atomically
from runner.storage.run_dir import RunDir, now
from runner.terminal.printable import say
from runner.terminal.tables import table


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner replay",
        description="Trains a finished run once more with its config, seed and threads, into a new folder, and shows"
        " both side by side: equal in every bit, or the first row and the first tensor in which they part. What differs"
        " in code, packages and machine is listed first. Exit code 0: equal; 1: not.",
    )
    made.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that holds a finished run")
    made.add_argument("-o", "--output", type=Path, metavar="DIR", help="the new folder (default: RUN_DIR-replay)")
    trust.add_flags(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    trust.grant(arguments)
    first = RunDir(arguments.run_dir)
    again = RunDir(arguments.output or first.path.absolute().with_name(f"{first.path.absolute().name}-replay"))
    first.refuse_links()
    record = first.read_run(is_to_be_opened=True)
    if record["state"] != "done":
        raise InputError(f"{first.path}: is {record['state']}; only a finished run can be replayed")
    check_length(first.path, record)
    if os.path.lexists(again.path):
        raise InputError(f"-o {again.path}: is there already; give a folder that is not")
    if again.path.absolute().is_relative_to(first.path.absolute()):
        raise InputError(f"-o {again.path}: lies in the run's own folder; give another")
    from runner.job.changes import ACCEPT
    from runner.job.resuming import resume

    check_targets_of(first, record)
    changes = prepare(first, record, again)
    say(*(f"note: {change}: other bits are to be expected" for change in changes))
    if not changes:
        say("code, packages and machine are as they were")
    try:
        resume(again.path, [f"{ACCEPT}=true"])  # which says what has changed
    except InputError:
        if not again.read_run()["epochs_done"]:
            again.run_json.unlink()
            again.discard()
        raise
    again.write_run({**again.read_run(), "resumed": []})
    return side_by_side(first, again)


def prepare(first: RunDir, record: dict[str, Any], again: RunDir) -> list[str]:
    """Leaves a run that has not begun in the new folder; returns in what today differs from then."""
    git, diff = provenance.git_state()
    code = provenance.code_state(git, diff, {})
    changes = provenance.code_changes(record.get("code"), code)
    changes += provenance.environment_changes(record, provenance.environment())
    changes += own_code.changed(record, first.path)
    if (record.get("code") or {}).get("commit") is None:
        changes.append("no commit was recorded, so the code cannot be compared")
    for event in record["resumed"]:
        changes += [f"the run was continued after {event['epoch']} epochs; then {c}" for c in event["changes"]]
    environment = {**provenance.environment(), "working_directory": record["working_directory"]}
    begun: dict[str, Any] = {
        **unbegun(),
        "id": identity.new_id(),
        "started": now(),
        "command": provenance.command_line(),
        "git": git,
        "code": code,
    }
    begun["replay_of"] = {"path": str(first.path.absolute()), "id": record.get("id")}
    again.path.mkdir(parents=True)
    if diff:
        write_atomically(again.git_diff, diff.encode(errors="surrogateescape"))
    again.write_run({**record, **environment, **begun})
    return changes


def side_by_side(first: RunDir, again: RunDir) -> int:
    """Prints both runs side by side; returns 0 where they are equal in every bit."""
    records = [run_dir.read_run() for run_dir in (first, again)]
    rows = [[name, *(str(record.get(name)) for record in records)] for name in ("best_epoch", "best_value")]
    for which, values in records[0]["test"].items():
        rows += [
            [f"test/{which}/{name}", str(value), str(records[1]["test"].get(which, {}).get(name))]
            for name, value in values.items()
        ]
    say(*table(["", str(first.path), str(again.path)], rows).splitlines())
    found = list(differences(first, again))
    if not found:
        say(f"{again.path}: equal in every bit of its weights and metrics to {first.path}")
        return 0
    row = next((line for line in found if line.startswith(("metrics.jsonl", "steps.jsonl"))), None)
    tensor = next((line for line in found if ".pt" in line.split("[")[0]), None)
    say(f"{again.path}: differs in {len(found)} places")
    say(*(f"first {what} to part: {line}" for what, line in (("row", row), ("tensor", tensor)) if line is not None))
    return 1
