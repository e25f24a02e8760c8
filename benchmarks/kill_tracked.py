"""A fault campaign with trackers: a run that tells TensorBoard and MLflow is killed with SIGKILL and resumed.

    python -m benchmarks.kill_tracked --kills 20

In rounds of one to three kills at random moments of training, until so many have taken place. Then both trackers are
read back: each step of each name once, with the value of a run that was never killed; and the run's own tensors and
rows are those of a run without trackers. Needs the extras tensorboard and mlflow.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

WORDS = ["model=mlp", "model.hidden=[32]", "trainer.epochs=6", "trainer.log_every=2", "checkpoint.every_batches=5"]
WORDS += ["device.threads=1", "dataloader.batch_size=32"]
BOTH = "tracking=[tensorboard,mlflow]"
Points = dict[str, list[tuple[int, float]]]  # of a name: (step, value), as they were told


def command(*words: str) -> "subprocess.Popen[bytes]":
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open("out.txt", "ab") as out:
        return subprocess.Popen([sys.executable, "-m", "runner", *words], stdout=out, stderr=out, env=env)


def train(folder: str, words: list[str]) -> float:
    """Trains a run to its end; returns the seconds from its first row of steps on."""
    child = command(*words, f"hydra.run.dir={folder}")
    began = first_row(child, Path(folder))
    if child.wait() != 0:
        raise SystemExit(f"{folder} fails without a fault: {Path('out.txt').read_text()[-2000:]}")
    return time.monotonic() - began


def first_row(child: "subprocess.Popen[bytes]", folder: Path) -> float:
    """Waits until a start has told a row more than was there, or has ended."""
    rows = folder / "steps.jsonl"
    size = rows.stat().st_size if rows.exists() else 0
    while child.poll() is None and not (rows.exists() and rows.stat().st_size != size):
        time.sleep(0.005)
    return time.monotonic()


def killed(folder: str, kills: int, seconds: float, rng: random.Random) -> int:
    """Trains a run that is killed so often at random times, each followed by a resumption; returns the kills."""
    done, words = 0, [*WORDS, BOTH, f"hydra.run.dir={folder}"]
    while True:
        child = command(*words)
        if done < kills:
            first_row(child, Path(folder))
            try:
                child.wait(timeout=rng.uniform(0, 0.7 * seconds))
            except subprocess.TimeoutExpired:
                child.kill()
        code = child.wait()
        if code == 0:
            return done
        if code != -signal.SIGKILL:
            raise SystemExit(f"{folder}: exit {code}: {Path('out.txt').read_text()[-2000:]}")
        done += 1
        words = ["resume", folder]


def of_tensorboard(folder: str) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(Path(folder, "tensorboard")), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def of_mlflow(folder: str) -> Points:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "runner"]
    found = client.search_runs([experiment.experiment_id], f"tags.path = '{Path(folder).absolute()}'")
    if len(found) != 1 or found[0].info.status != "FINISHED":
        raise SystemExit(f"{folder}: {[one.info.status for one in found]} in MLflow")
    names = found[0].data.metrics
    run = found[0].info.run_id
    return {name: [(one.step, one.value) for one in client.get_metric_history(run, name)] for name in names}


def wrong(whole: Points, found: Points) -> Iterator[str]:
    """Where a tracker differs from the one of a run that was not killed; times are left out."""
    if set(whole) != set(found):
        yield f"names: {sorted(set(whole) ^ set(found))}"
    for name in set(whole) & set(found):
        steps = [step for step, _ in found[name]]
        if len(set(steps)) < len(steps):
            yield f"{name}: a step twice"
        if steps != [step for step, _ in whole[name]]:
            yield f"{name}: other steps"
        elif "second" not in name and found[name] != whole[name]:
            yield f"{name}: other values"


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.kill_tracked", description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from runner.cli.verify import differences
    from runner.storage.run_dir import RunDir

    rng, kills, rounds, equal = random.Random(arguments.seed), 0, 0, 0
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory() as base:
        os.chdir(base)
        train("plain", WORDS)
        seconds = train("whole", [*WORDS, BOTH])
        whole = of_tensorboard("whole"), of_mlflow("whole")
        count = sum(map(len, whole[0].values())), sum(map(len, whole[1].values()))
        while kills < arguments.kills:
            folder = f"killed-{rounds}"
            kills += killed(folder, min(rng.randrange(1, 4), arguments.kills - kills), seconds, rng)
            rounds += 1
            found = [f"TensorBoard: {one}" for one in wrong(whole[0], of_tensorboard(folder))]
            found += [f"MLflow: {one}" for one in wrong(whole[1], of_mlflow(folder))]
            found += [f"the run: {one}" for one in differences(RunDir(Path("plain")), RunDir(Path(folder)))]
            equal += not found
            print(f"{folder}: {kills} kills so far, {'; '.join(found) or 'equal'}", flush=True)
        os.chdir("/")
    print(f"{kills} kills in {rounds} runs; {equal} of {rounds} equal; points: {count[0]} and {count[1]}")
    return 0 if equal == rounds else 1


if __name__ == "__main__":
    raise SystemExit(main())
