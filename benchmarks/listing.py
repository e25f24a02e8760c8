"""How long `ls` takes over many runs of mixed configs, as a ratio to reading their JSON files alone.

`python -m benchmarks.listing [--runs N] [--rounds N]`. The records are those of real compositions, with values of their
own for learning rate, seed and figures, sealed as a run seals its record. In turn, each in a process of its own, in
processor seconds: other work on the machine changes wall time by a factor that differs from one to the next.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from omegaconf import OmegaConf

from benchmarks.measure import machine, median
from runner.config.compose import compose
from runner.storage.record_schema import with_checksum
from runner.storage.run_dir import RunDir
from runner.sweep.combine import task_config

MODELS, SCHEDULERS = ("net", "mlp", "strided"), ("step", "cosine", "warmup_cosine", "plateau", "onecycle")
MORE = (["optimizer=adam"], ["optimizer=sgd", "optimizer.momentum=0.9"], ["optimizer=adamw", "loss=label_smoothing"])
READ = """
import json, os, sys, time
began = time.process_time()
count = 0
for path, folders, files in os.walk(sys.argv[1]):
    if "run.json" in files:
        with open(os.path.join(path, "run.json"), "rb") as file:
            json.loads(file.read())
        count += 1
print(count, time.process_time() - began)
"""
LIST = """
import contextlib, gc, io, sys, time
gc.disable()  # as runner.__main__ does
from pathlib import Path
from runner.cli import ls
began = time.process_time()
with contextlib.redirect_stdout(io.StringIO()) as shown:
    ls.main(ls.parser().parse_args(sys.argv[1:]))
lines = shown.getvalue().splitlines()
print(len(lines), time.process_time() - began, max(map(len, lines)))
"""


def make_runs(folder: Path, first: dict, count: int) -> None:
    """Runs in a folder, as alike a real one as it takes to list them.

    Args:
        first: the record of a real run.
    """
    rng, kinds = random.Random(0), []
    for model in MODELS:
        for number, scheduler in enumerate(SCHEDULERS):
            words = [f"model={model}", f"scheduler={scheduler}", *MORE[number % len(MORE)]]
            _, cfg = compose(words)
            choices = {str(k): v for k, v in cfg.hydra.runtime.choices.items() if not str(k).startswith("hydra/")}
            task = task_config(cfg)
            config = OmegaConf.to_container(task, resolve=True)
            config["derived"] = first["config"]["derived"]
            kinds.append((words, choices, config, OmegaConf.to_container(task)))
    for number in range(count):
        words, choices, config, source = kinds[number % len(kinds)]
        lr, seed, value = round(10 ** rng.uniform(-3, 0), 4), rng.randrange(5), round(rng.uniform(0.8, 0.99), 4)
        overrides = [*words, f"optimizer.lr={lr}", f"seed={seed}"]
        command = [*first["command"][:3], *overrides]
        own = {"seed": seed, "optimizer": {**config["optimizer"], "lr": lr}}
        record = {
            **first,
            "choices": choices,
            "overrides": overrides,
            "command": command,
            "seed": seed,
            "best_value": value,
        }
        record |= {"config": {**config, **own}, "config_source": {**source, **own}}
        place = folder / f"2026-11-{number % 28 + 1:02}" / f"{number:04}"
        place.mkdir(parents=True)
        (place / "run.json").write_bytes(sealed(record))


def sealed(record: dict) -> bytes:
    body = json.dumps(record, indent=2).encode() + b"\n"
    return with_checksum(body)


def measured(code: str, *words: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def seconds(*words: str) -> float:
    """Of the processor, by a whole command."""
    before = os.times()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.listing", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        import runner

        runner.run(["trainer.dry_run=true", "quiet=true"], run_dir=Path(place, "first"))
        first = RunDir(Path(place, "first")).read_run()
        runs = Path(place, "runs")
        make_runs(runs, first, arguments.runs)
        read, listed, whole, alone = [], [], [], []
        for _ in range(arguments.rounds):
            read.append(measured(READ, str(runs))[1])
            rows, took, width = measured(LIST, str(runs))
            listed.append(took)
            alone.append(seconds("-c", READ, str(runs)))
            whole.append(seconds("-m", "runner", "ls", str(runs)))
    print(
        f"{arguments.runs} runs, {rows:.0f} lines of {width:.0f} columns at most; medians of {arguments.rounds} rounds"
    )
    ratios = [one / other for one, other in zip(listed, read, strict=True)]
    print(
        f"in the process: reading the JSON {median(read):.3f} s, ls {median(listed):.3f} s, ratio {median(ratios):.2f}"
    )
    ratios = [one / other for one, other in zip(whole, alone, strict=True)]
    print(f"whole commands: {median(alone):.3f} s, {median(whole):.3f} s, ratio {median(ratios):.2f}")
    print(machine())


if __name__ == "__main__":
    main()
