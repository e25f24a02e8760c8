"""`runner check`: everything that can be said of a command, a run or a sweep before anything trains."""

import argparse
import json
from pathlib import Path
from typing import Any

from runner.cli import trust
from runner.errors import InputError
from runner.terminal.printable import say
from runner.terminal.progress import bar


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner check",
        description="Lists each target with the rule that admits it or the reason it is refused, each key with where"
        " its value comes from, what the data and the schedule would be, and what looks like a mistake. Trains nothing,"
        " and imports nothing that it would refuse. Exit code 2 where a run would be refused.",
    )
    made.add_argument(
        "words", nargs="*", default=[], metavar="WORDS", help="overrides as for a run; or RUN_DIR, or SWEEP_DIR"
    )
    made.add_argument("--config-dir", metavar="DIR", help="YAML files of your own")
    made.add_argument("--examples", action="store_true", help="read every example, and list those that cannot be read")
    made.add_argument("--json", action="store_true", help="as JSON")
    trust.add_flags(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    trust.grant(arguments)
    words = arguments.words
    if len(words) == 1 and "=" not in words[0]:
        if arguments.examples:
            raise InputError("--examples: is for overrides, not for a folder: its data is not opened")
        said = of_folder(Path(words[0]))
    else:
        said = of_command(words, arguments.config_dir, arguments.examples)
    say(*(json.dumps(said, indent=2, default=str).splitlines() if arguments.json else lines(said)))
    return 2 if "error" in said else 0


def of_command(words: list[str], config_dir: str | None, all_examples: bool = False) -> dict[str, Any]:
    from omegaconf import OmegaConf

    from runner.before.explain import explained, sources
    from runner.config import admission
    from runner.config.compose import compose
    from runner.sweep.combine import task_config
    from runner.values import flatten

    _, cfg = compose(words, config_dir)
    task = task_config(cfg)
    plain = OmegaConf.to_container(task, resolve=True)
    came = sources(cfg, words)
    keys = {key: {"value": value, "from": came.get(key, "")} for key, value in flatten(plain).items()}
    with admission.of_config(task), bar("making the run's parts"):
        return {"keys": keys, **explained(plain, task, all_examples)}


def of_folder(folder: Path) -> dict[str, Any]:
    """A run's or a sweep's config, judged as whoever opens it would; its parts are not made."""
    from runner.before.explain import RECORD, explained
    from runner.config import admission
    from runner.job.own_code import policy_of
    from runner.storage.inside import refuse_link
    from runner.storage.record_schema import SweepRecord, read_record
    from runner.storage.run_dir import RunDir
    from runner.sweep.multirun import check_words
    from runner.values import flatten

    if (folder / "sweep.json").exists():
        record = read_record(folder / "sweep.json", SweepRecord)
        said: dict[str, Any] = {"targets": []}
        try:
            check_words(folder / "sweep.json", record)
        except InputError as error:
            said["error"] = str(error)
        for path in sorted(folder.glob("*/run.json")):
            refuse_link(path.parent, "sweep")
            of_job = of_folder(path.parent)
            said["targets"] += [{**row, "place": f"{path.parent.name}: {row['place']}"} for row in of_job["targets"]]
            if "error" in of_job:
                said.setdefault("error", f"{path.parent}: {of_job['error']}")
        return said
    run_dir = RunDir(folder)
    run_dir.refuse_links()
    record = run_dir.read_run()
    keys = {key: {"value": value, "from": RECORD} for key, value in flatten(record["config"]).items()}
    with admission.admitting(policy_of(record, folder)):
        return {"keys": keys, **explained(record["config"], None)}


def lines(said: dict[str, Any]) -> list[str]:
    from runner.terminal.tables import table

    text = []
    rows = [["yes" if r["admitted"] else "NO", r["place"], r["target"], r["why"]] for r in said["targets"]]
    text += [*table(["may be made", "place", "target", "why"], rows).splitlines(), ""]
    if "keys" in said:
        rows = [[key, json.dumps(k["value"], default=str), k["from"]] for key, k in said["keys"].items()]
        text += [*table(["key", "value", "from"], rows).splitlines(), ""]
    for name, value in said.get("parts", {}).items():
        shown = "; ".join(value) or "none" if isinstance(value, list) and name == "likely mistakes" else value
        if isinstance(shown, dict):
            shown = ", ".join(f"{key} {number}" for key, number in shown.items())
        text.append(f"{name}: {shown}")
    text += said.get("unreadable", [])
    if "error" in said:
        text.append(f"error: {said['error']}")
    return text
