"""A fault campaign on sweeps: the parent, a worker or all are killed with SIGKILL, and the sweep goes on until done.

    python -m benchmarks.kill_sweep --rounds 30

Each round is a sweep of 12 jobs. One to three times, at a random moment, SIGKILL goes to the parent, to one worker, or
to all; the same command is given again until it ends with exit code 0. Then every job must have exactly one record,
weights equal in every bit to those of 12 single runs with the same thread count, and no process of a killed parent
may be alive a second after its death.
"""

import argparse
import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOBS = [(seed, scheduler) for seed in range(6) for scheduler in ("step", "onecycle")]
COMMON = [
    *("dataset=fake", "dataset.train_size=200", "dataset.eval_size=40", "dataset.input_shape=[1,8,8]", "model=mlp"),
    *("dataloader.batch_size=4", "trainer.epochs=24", "device.threads=1", "optimizer=sgd", "quiet=true"),
]
SWEEP = ["-m", *COMMON, "seed=0,1,2,3,4,5", "scheduler=step,onecycle", "sweep.name=campaign"]


def processes(group: str) -> dict[int, str]:
    """The processes that carry the round's mark in their environment, except zombies, with what they run."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if group.encode() in (entry / "environ").read_bytes():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def attempt(folder: Path, mark: str, kill: str | None, after: float, tally: collections.Counter[str]) -> int:
    """One start of the sweep, with a kill; returns its exit code."""
    environment = {**os.environ, "KILL_SWEEP": mark}
    with open(folder / "out", "a") as out:
        parent = subprocess.Popen(
            [sys.executable, "-m", "runner", *SWEEP], cwd=folder, stdout=out, stderr=out, env=environment
        )
    if kill is None:
        return parent.wait()
    try:
        return parent.wait(after)
    except subprocess.TimeoutExpired:
        pass
    running = [
        int((d / "run.lock").read_text().split()[-1])
        for d in (folder / "outputs/sweeps/campaign").glob("*,*")
        if (d / "run.lock").exists()
    ]
    alive = processes(mark)
    workers = [pid for pid in running if pid in alive and pid != parent.pid]
    if kill == "worker":
        if workers:
            tally["killed a worker"] += 1
            os.kill(random.choice(workers), signal.SIGKILL)
        return parent.wait()
    tally[f"killed {kill}"] += 1
    for pid in [parent.pid] if kill == "the parent" else alive:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    code = parent.wait()
    time.sleep(1)
    tally["orphans after a second"] += len(processes(mark))
    deadline = time.monotonic() + 29  # a server that is just starting sees it when it has imported what it needs
    while (orphans := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    tally["orphans after 30 seconds"] += len(orphans)
    for pid, words in orphans.items():
        print(f"alive 30 seconds after {kill} was killed: {pid} {words[:150]}", flush=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.kill_sweep", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    from runner.cli.verify import differences
    from runner.storage.run_dir import RunDir

    base, began = Path(tempfile.mkdtemp(prefix="kill-sweep-")), time.monotonic()
    tally: collections.Counter[str] = collections.Counter(
        {"orphans after a second": 0, "orphans after 30 seconds": 0, "different": 0}
    )
    singles = {}
    for seed, scheduler in JOBS:
        singles[seed, scheduler] = base / f"single-{seed}-{scheduler}"
        words = [*COMMON, f"seed={seed}", f"scheduler={scheduler}", f"hydra.run.dir={singles[seed, scheduler]}"]
        subprocess.run([sys.executable, "-m", "runner", *words], cwd=base, check=True, stdout=subprocess.DEVNULL)
    for number in range(arguments.rounds):
        rng, folder, mark = (
            random.Random(f"{arguments.seed}/{number}"),
            base / f"round-{number}",
            f"{base.name}-{number}",
        )
        folder.mkdir()
        for _ in range(rng.randrange(1, 4)):
            kill = rng.choice(["the parent", "worker", "all"])
            tally["starts"] += 1
            if attempt(folder, mark, kill, rng.uniform(3.0, 10.0), tally) == 0:
                break
        code = attempt(folder, mark, None, 0, tally)
        tally["starts"] += 1
        again = time.monotonic()
        before = {p: p.stat().st_mtime_ns for p in folder.glob("outputs/sweeps/campaign/*/run.json")}
        assert attempt(folder, mark, None, 0, tally) == 0
        assert before == {p: p.stat().st_mtime_ns for p in before}, "a finished job was run again"
        tally["seconds of a start with nothing to do"] += round(time.monotonic() - again)
        found = []
        for (seed, scheduler), single in singles.items():
            job = folder / "outputs/sweeps/campaign" / f"scheduler={scheduler},seed={seed}"
            found += list(differences(RunDir(single), RunDir(job)))
        is_good = code == 0 and not found and len(before) == len(JOBS)
        tally["equal" if is_good else "different"] += 1
        if not is_good:
            print(f"round {number}: exit {code}, {len(before)} records, {found[:3]}, see {folder}/out")
        print(f"{number + 1} of {arguments.rounds}: {tally['equal']} equal", flush=True)
    lines = [f"{arguments.rounds} rounds of 12 jobs, seed {arguments.seed}, {time.monotonic() - began:.0f} s", ""]
    lines += ["| what | count |", "| --- | ---: |", *[f"| {key} | {tally[key]} |" for key in sorted(tally)]]
    print("\n".join(lines))
    if arguments.report:
        arguments.report.write_text("\n".join(lines) + "\n")
    if tally["different"] or tally["orphans after 30 seconds"]:
        return 1
    shutil.rmtree(base)
    return 0


if __name__ == "__main__":
    sys.exit(main())
