"""`runner verify RUN_DIR`: trains a run again, killed at random batches or into a new folder; compares every bit."""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.cli import trust
from runner.config import admission
from runner.errors import InputError
from runner.job import own_code
from runner.job.record import unbegun
from runner.job.saved import check_targets_of
from runner.storage import identity, provenance
from runner.storage.files import write_atomically
from runner.storage.records import is_pruned
from runner.storage.rows import timeless
from runner.storage.run_dir import RunDir, now
from runner.terminal.printable import say
from runner.terminal.progress import bar
from runner.terminal.tables import table
from runner.terminal.words import plural
from runner.values import flatten

LOOK_SECONDS = 1.0  # between two looks at how far a training is
# What a checkpoint says of its run; the rows are compared as they stand in metrics.jsonl.
NOT_RESULTS = ("config", "config_digest", "run_id", "rows")
RESULTS = ("epochs_done", "stopped", "best_epoch", "best_value", "test")

CHILD = """
import os, signal, sys
from pathlib import Path
from runner.config import admission
from runner.errors import InputError
from runner.job import listening
from runner.job.changes import ACCEPT
from runner.job.resuming import resume
listening.is_unheard = True
admission.grant([name for name in sys.argv[3].split(",") if name], sys.argv[4] == "1")
path, step = Path(sys.argv[1]), int(sys.argv[2])
def kill(progress, num_batches):
    if progress.step == step:
        os.kill(os.getpid(), signal.SIGKILL)
try:
    resume(path, ["quiet=true", f"{ACCEPT}=true"], on_batch=kill)
except InputError as error:
    print(error)
    sys.exit(2)
"""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner verify",
        description="Trains a finished run again from its saved config in a temporary folder, kills it (SIGKILL) at"
        " random batches and resumes it, and compares weights and metrics with the run's, bit for bit. With --output it"
        " is trained without a kill, stays in that folder, and both runs are shown side by side. Exit code 0: equal; 1:"
        " not.",
    )
    made.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that holds a finished run")
    made.add_argument("--kills", type=int, metavar="N", help="how often (default: 2; 0: only trains again)")
    made.add_argument("-o", "--output", type=Path, metavar="DIR", help="a new folder, where the second run stays")
    made.add_argument("--seed", type=int, default=None, help="of the random batches (default: another each time)")
    trust.add_flags(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    trust.grant(arguments)
    run_dir, kills = RunDir(arguments.run_dir), 2 if arguments.kills is None else arguments.kills
    run_dir.refuse_links()
    record = run_dir.read_run(is_to_be_opened=True)
    if kills < 0:
        raise InputError(f"--kills {kills}: must not be negative")
    if record["state"] != "done":
        raise InputError(f"{run_dir.path}: is {record['state']}; only a finished run can be verified")
    check_length(run_dir.path, record)
    if arguments.output is not None:
        check_output(run_dir.path, arguments)
    check_targets_of(run_dir, record)
    if arguments.output is not None:
        return verify_into(run_dir, record, RunDir(arguments.output))
    changes = provenance.environment_changes(record, provenance.environment())
    for change in changes + own_code.changed(record, run_dir.path):
        say(f"note: {change}: other bits are to be expected")
    with tempfile.TemporaryDirectory(prefix="runner-verify-") as folder:
        again = RunDir(Path(folder, "run"))
        train_again(record, again, kills, random.Random(arguments.seed))
        keys = tuple(f"{key}:" for key in record.get("data") or {})
        for change in [c for event in again.read_run()["resumed"] for c in event["changes"] if c.startswith(keys)]:
            say(f"note: {change}: other bits are to be expected")
        with bar("comparing"):
            difference = next(differences(run_dir, again), None)
    if difference is not None:
        say(f"{run_dir.path}: differs: {difference}")
        return 1
    say(f"{run_dir.path}: equal in every bit of its weights and metrics, after {plural(kills, 'kill')}")
    return 0


def check_output(run: Path, arguments: argparse.Namespace) -> None:
    """Refuses a folder that is in use, and flags that do nothing with one."""
    output = arguments.output
    for flag, value in (("--kills", arguments.kills), ("--seed", arguments.seed)):
        if value:
            raise InputError(f"{flag} {value}: what stays in --output {output} is trained without a kill")
    if os.path.lexists(output):
        raise InputError(f"--output {output}: is there already; give a folder that is not")
    if output.absolute().is_relative_to(run.absolute()):
        raise InputError(f"--output {output}: lies in the run's own folder; give another")


def verify_into(first: RunDir, record: dict[str, Any], again: RunDir) -> int:
    """Trains the run again into a new folder, which stays, and shows both side by side."""
    from runner.job.changes import ACCEPT
    from runner.job.resuming import resume

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


def train_again(record: dict[str, Any], again: RunDir, kills: int, rng: random.Random) -> None:
    """Trains the record's config in `again`, in processes that die at `kills` different steps."""
    again.path.mkdir(parents=True)
    again.write_run({**record, **unbegun()})
    total = steps_of(record)
    if not isinstance(total, int) or not 0 <= total < 2**53:
        raise InputError(f"derived.run_length.batch={total}: this run does not say how many batches it had")
    steps = [*sorted(rng.sample(range(1, total + 1), min(kills, total))), 0]
    packages, everything = admission.granted()
    for step in steps:
        words = [sys.executable, "-c", CHILD, str(again.path), str(step), ",".join(packages), str(int(everything))]
        code, told = run_child(words, again, total)
        if code == 2:
            raise InputError(told.strip().splitlines()[-1])
        if (step and code != -signal.SIGKILL) or (not step and code != 0):
            raise InputError(f"{again.path}: training again ended with {code}; {told.strip()}")
        if step:
            say(f"killed at step {step} of {total}", flush=True)


def check_length(path: Path, record: dict[str, Any]) -> None:
    """Refuses a run that a clock or its search ended: another training of it is longer or shorter.

    Raises:
        InputError: it is one.
    """
    if is_pruned(record):
        raise InputError(f"{path}: was {record['stopped']}: trained again by itself it would not be")
    if str(record.get("stopped")).startswith("max_minutes"):
        raise InputError(
            f"{path}: was stopped by the clock ({record['stopped']}): trained again it would be longer or shorter, and"
            " there is nothing to compare"
        )


def steps_of(record: dict[str, Any]) -> Any:
    """The steps that a finished run took."""
    flat = flatten(record["config"])
    if record.get("stopped") is not None:
        return record["steps_done"]
    return flat.get("derived.run_length.batch")


def run_child(words: list[str], again: RunDir, total: int) -> tuple[int, str]:
    """Runs a process that trains in `again`, under a bar of its steps; returns its exit code and what it printed."""
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child,
        bar("training again", total, last_step(again)) as done,
    ):
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    told, _ = child.communicate(timeout=LOOK_SECONDS)
                    return child.returncode, told
                done.done = last_step(again)
        except BaseException:
            child.kill()
            raise


def last_step(run_dir: RunDir) -> float:
    rows = run_dir.steps.read()
    return float(rows[-1]["step"]) if rows else 0.0


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


def differences(one: RunDir, two: RunDir) -> Iterator[str]:
    """Everything in which two runs differ, by name: metrics, results, then every value of the final checkpoints."""
    from runner.storage import checkpoint
    from runner.storage.checkpoint import Damaged
    from runner.storage.plain import plain

    rows = [[timeless(row) for row in r.metrics.read()] for r in (one, two)]
    yield from compare(rows[0], rows[1], "metrics.jsonl")
    yield from compare(one.steps.read(), two.steps.read(), "steps.jsonl")
    records = [{key: r.read_run()[key] for key in RESULTS} for r in (one, two)]
    yield from compare(records[0], records[1], "run.json")
    names = sorted(path.name for path in one.checkpoints.glob("*.pt") if path.name in ("best.pt", "last.pt"))
    for name in names:
        try:
            states = [plain(checkpoint.load(r.checkpoints / name)) for r in (one, two)]
        except Damaged as error:
            yield str(error)
            continue
        for state in states:
            for key in NOT_RESULTS:
                state.pop(key, None)
        yield from compare(states[0], states[1], name)


def compare(one: Any, two: Any, name: str) -> Iterator[str]:
    import torch

    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        if one.dtype != two.dtype or one.shape != two.shape:
            yield f"{name}: {one.dtype} {list(one.shape)} and {two.dtype} {list(two.shape)}"
        elif not torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (one, two))):
            yield f"{name}: tensors of shape {list(one.shape)} differ"
    elif isinstance(one, dict) and isinstance(two, dict):
        for key in sorted({*one, *two}, key=str):
            if key not in one or key not in two:
                yield f"{name}[{key!r}]: only in the {'first' if key in one else 'second'}"
            else:
                yield from compare(one[key], two[key], f"{name}[{key!r}]")
    elif isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        if len(one) != len(two):
            yield f"{name}: {len(one)} and {len(two)} entries"
        for index, (a, b) in enumerate(zip(one, two)):  # noqa: B905
            yield from compare(a, b, f"{name}[{index}]")
    elif one != two and not (one != one and two != two):
        yield f"{name}: {one!r} and {two!r}"
