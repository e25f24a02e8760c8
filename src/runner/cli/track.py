"""`runner track PATH... --to mlflow`: tells runs to a tracker afterwards, by the rows that they left."""

import argparse
from pathlib import Path
from typing import Any

from runner.cli.label import runs_at
from runner.errors import InputError
from runner.storage import records
from runner.storage.labels import history, labelled
from runner.storage.run_dir import RunDir
from runner.terminal.printable import say
from runner.terminal.progress import with_bar


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner track",
        description="Tells runs to a tracker afterwards: their config, rows and result, from their folders alone. What"
        " it has already is not told twice.",
    )
    made.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run's folder, or a folder of runs")
    made.add_argument("--to", required=True, metavar="CHOICE", help="a choice of the group tracking")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as tracking.mlflow.experiment=x")
    made.add_argument("--config-dir", metavar="DIR", help="YAML files of your own")
    return made


def main(arguments: argparse.Namespace) -> int:
    from runner.config.compose import compose

    _, cfg = compose([f"tracking={arguments.to}", *arguments.set], arguments.config_dir)
    if not cfg.tracking:
        raise InputError(f"--to {arguments.to}: tells nobody")
    runs = [pair for path in arguments.paths for pair in runs_at(path)]
    failed = 0
    for run_dir, record in with_bar(runs, "telling runs"):
        state = records.state_of(run_dir, record)
        if state in ("running", "planned"):
            say(f"{run_dir.path}: left out, it is {state}; with tracking={arguments.to} a run tells itself")
        else:
            failed += not tell(cfg, run_dir, {**record, "state": state}, arguments.to)
    return 1 if failed else 0


def tell(cfg: Any, run_dir: RunDir, record: dict[str, Any], to: str) -> bool:
    """Tells one run, as if it took place now; returns whether it was heard to its end."""
    import torch
    from omegaconf import OmegaConf

    from runner.job.listening import facts_of, make_listeners

    listening = make_listeners(OmegaConf.create({"tracking": cfg.tracking}), torch.device("cpu"))
    names = set(listening.listeners)
    told = {**record, **labelled(record, history(run_dir.path))}
    facts = facts_of(told, run_dir)
    listening.tell("begin", facts)
    for row in facts["step_rows"]:
        listening.tell("step", row)
    for row in facts["epoch_rows"]:
        listening.tell("epoch", row)
    listening.tell("saving")
    listening.tell("end", told)
    lost = names - set(listening.listeners)
    say(f"{run_dir.path}: {'not told to its end' if lost else f'told to {to}'}")
    return not lost
