"""`runner show RUN_DIR`: everything about one run."""

import argparse
import json
from pathlib import Path

from runner.printable import say
from runner.storage import records
from runner.storage.run_dir import RunDir
from runner.tables import cell, table

LATER = ("config", "config_source", "layers", "packages", "test", "resumed", "best", "last")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="runner show", description="Shows everything about one run.")
    made.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that holds a run")
    return made


def main(arguments: argparse.Namespace) -> int:
    run_dir = RunDir(arguments.run_dir)
    record = run_dir.read_run()
    record["state"] = records.state_of(run_dir, record)
    say(run_dir.path)
    for key, value in record.items():
        if key not in LATER:
            shown = (
                " ".join(value or [])
                if key == "command"
                else json.dumps(value)
                if isinstance(value, dict)
                else cell(value)
            )
            say(f"  {key:18} {shown}")
    for which, values in record["test"].items():
        say(f"  test ({which})".ljust(21) + ", ".join(f"{name} {value!r}" for name, value in values.items()))
    for event in record.get("resumed", []):
        say(f"  resumed            {event['at']} after epoch {event['epoch']}, batch {event['batch']}")
    say("", "config")
    for key, value in records.flatten(record["config"]).items():
        say(f"  {key:34} {json.dumps(value)}")
    say("", "packages")
    for key, value in record["packages"].items():
        say(f"  {key:18} {value}")
    rows = list(records.epochs(run_dir.path))
    if rows:
        say("", "epochs", *table(list(rows[0]), [list(row.values()) for row in rows]).splitlines())
    return 0
