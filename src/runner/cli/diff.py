"""`runner diff A B`: two runs side by side, only what differs."""

import argparse
import json
from pathlib import Path
from typing import Any

from runner.storage.run_dir import RunDir
from runner.terminal.printable import say
from runner.terminal.tables import table
from runner.values import flatten

ENVIRONMENT = ("packages", "git", "device", "device_name", "threads", "deterministic", "host", "machine", "python")
METRICS = ("state", "epochs_done", "best_epoch", "best_value", "best", "last", "test", "parameters", "examples")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner diff", description="Shows two runs side by side: config, environment and metrics that differ."
    )
    made.add_argument("one", type=Path, metavar="A", help="a folder that holds a run")
    made.add_argument("two", type=Path, metavar="B", help="another")
    return made


def main(arguments: argparse.Namespace) -> int:
    one, two = (RunDir(path).read_run() for path in (arguments.one, arguments.two))
    shown = False
    for title, keys in (("config", ("config",)), ("environment", ENVIRONMENT), ("metrics", METRICS)):
        flat = [flatten({key: record.get(key) for key in keys}) for record in (one, two)]
        rows = differing(flat[0], flat[1])
        if rows:
            text = table([title, str(arguments.one), str(arguments.two)], rows)
            say(*([""] if shown else []), *text.splitlines())
            shown = True
    if not shown:
        say("no difference in config, environment or metrics")
    return 0


def differing(one: dict[str, Any], two: dict[str, Any]) -> list[list[str]]:
    keys = [key for key in {**one, **two} if not key.startswith("config.derived.")]
    return [
        [key.removeprefix("config."), text(one, key), text(two, key)] for key in keys if one.get(key) != two.get(key)
    ]


def text(values: dict[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "-"
