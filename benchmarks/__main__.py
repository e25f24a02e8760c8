"""The measurements of docs/performance.md, side by side and in turn: `python -m benchmarks [--rounds N] [PART ...]`.

Medians and their ratios are written into docs/performance.md, between its two marks. On made-up images in MNIST's own
files; Lightning's part needs the extra [benchmarks]. About half an hour on 2 cores.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import loop
from benchmarks.measure import DENSE, Done, command, in_turn, machine, median, write_mnist

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
Rows = list[list[str]]


def table(title: str, head: list[str], rows: Rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return f"### {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def run(folder: Path, root: Path, words: list[str]) -> tuple[Done, dict]:
    """One run of ours, and its run.json, with "rate", the training examples a second of its last epoch."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place, "run")
        data = [f"dataset.root={root}", "dataset.download=false"] if any("mnist" in word for word in words) else []
        done = command(["-m", "runner", *words, *data, f"hydra.run.dir={path}"])
        record = json.loads((path / "run.json").read_text())
        record["rate"] = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["examples_per_second"]
    return done, record


def overhead(folder: Path, root: Path, rounds: int) -> str:
    rows = []
    plain = [*DENSE, "optimizer.fused=false"]
    cases = [
        ("`net`, batch 64, 200 batches", loop.NET, 3),
        ("dense network, batch 128", plain, 7),
        ("dense network, fused Adam", DENSE, 7),
    ]
    for tracker in ("tensorboard", "mlflow"):
        if importlib.util.find_spec(tracker) is None:
            print(f"without the package {tracker}: left out", flush=True)
        else:
            words = [*plain, f"tracking={tracker}"]
            words += [f"tracking.mlflow.tracking_uri=sqlite:///{folder.absolute()}/mlflow.db"] * (tracker == "mlflow")
            cases.append((f"dense network, batch 128, `tracking={tracker}`", words, 7))
    for name, words, factor in cases:
        data = [f"dataset.root={root}", "dataset.download=false"]
        by_hand, ours, fastest = loop.ratio([*words, *data], rounds * factor)
        rows.append(
            [
                name,
                f"{by_hand:.2f} s",
                f"{ours:.2f} s",
                f"**{ours / by_hand:.3f}**",
                f"{fastest:.3f}",
                str(rounds * factor),
            ]
        )
    head = [
        "one epoch, training and evaluation",
        "loop by hand",
        "Trainer, everything on",
        "ratio of medians",
        "of the fastest",
        "rounds",
    ]
    return table("The loop's overhead (one process, the same data path)", head, rows)


def official(folder: Path, root: Path, rounds: int) -> str:
    example = ["experiment=mnist_example", "trainer.epochs=1"]
    plain = "trainer.channels_last=false"
    cases: dict[str, Callable[[], Done]] = {
        "the official example's work": lambda: command(["-m", "benchmarks.official", str(root)]),
        "ours, `mnist_example`": lambda: run(folder, root, example)[0],
        "ours, `precision=bf16`": lambda: run(folder, root, [*example, "precision=bf16"])[0],
        f"ours, `{plain}`": lambda: run(folder, root, [*example, plain])[0],
        "ours, `dataloader.placement=workers`": lambda: run(folder, root, [*example, "dataloader.placement=workers"])[
            0
        ],
        "ours, `dataloader.num_workers=1`": lambda: run(folder, root, [*example, "dataloader.num_workers=1"])[0],
    }
    results = in_turn(rounds, cases)
    base = median(done.seconds for done in results["the official example's work"])
    rows = []
    for name, dones in results.items():
        seconds = median(done.seconds for done in dones)
        memory = median(done.megabytes for done in dones)
        rows.append([name, f"{seconds:.1f} s", f"**{seconds / base:.2f}**", f"{memory:.0f} MB"])
    head = ["one epoch of 938 batches with test and start", "wall", "ratio", "peak memory"]
    return table(f"The official MNIST example ({rounds} rounds)", head, rows)


def template(folder: Path, root: Path, rounds: int) -> str:
    if importlib.util.find_spec("lightning") is None:
        return "### The template's job\n\nNot measured: `lightning` is not installed.\n"
    results: dict[str, list[tuple[Done, float]]] = {}
    batches = len(range(0, 55_000, 128))

    def by_lightning() -> tuple[Done, float]:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            here = os.getcwd()
            path = os.environ.get("PYTHONPATH", "")
            os.environ["PYTHONPATH"] = f"{Path(__file__).parents[1]}:{path}"
            os.chdir(place)  # Lightning leaves its logs where it runs
            try:
                done = command(["-m", "benchmarks.lightning_job", str(root)])
            finally:
                os.chdir(here)
                os.environ["PYTHONPATH"] = path
        found = re.search(r"training ([\d.]+) s", done.output)
        assert found is not None
        return done, batches / float(found[1])

    def by_us(*words: str) -> tuple[Done, float]:
        done, record = run(folder, root, [*DENSE, *words])
        return done, record["rate"] / 128

    cases = {
        "Lightning, its defaults": by_lightning,
        "ours": by_us,
        "ours, `optimizer.fused=false`": lambda: by_us("optimizer.fused=false"),
        "ours, `precision=bf16`": lambda: by_us("precision=bf16"),
        "ours, `dataloader.placement=workers`": lambda: by_us("dataloader.placement=workers"),
    }
    results = in_turn(rounds, cases)
    base = [median(f(r) for r in results["Lightning, its defaults"]) for f in FACTS]
    rows = []
    for name, found in results.items():
        rate, seconds, memory = (median(f(r) for r in found) for f in FACTS)
        ratios = f"**{rate / base[0]:.1f}** / **{seconds / base[1]:.2f}** / **{memory / base[2]:.2f}**"
        rows.append([name, f"{rate:.0f}", f"{seconds:.1f} s", f"{memory:.0f} MB", ratios])
    head = [
        "one epoch of 430 batches, validation, test, start",
        "batches/s",
        "wall",
        "peak memory",
        "ratios of the three",
    ]
    return table(f"The field's most used template's MNIST job ({rounds} rounds)", head, rows)


FACTS: list[Callable[[tuple[Done, float]], float]] = [lambda r: r[1], lambda r: r[0].seconds, lambda r: r[0].megabytes]


def start_up(folder: Path, root: Path, rounds: int) -> str:
    first = "import torch; torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)"
    outside: list[float] = []

    def default() -> float:
        done, record = run(folder, root, [])
        outside.append(done.seconds - record["seconds"])
        return done.seconds

    cases: dict[str, Callable[[], float]] = {
        "`python -m runner --help`": lambda: command(["-m", "runner", "--help"]).seconds,
        "`python -m runner ls` of one run": lambda: command(["-m", "runner", "ls", str(made)]).seconds,
        "a wrong choice": lambda: wrong("scheduler=foo"),
        "a wrong key": lambda: wrong("optimizer.learning_rate=1"),
        "`import torch`": lambda: command(["-c", "import torch"]).seconds,
        "`import torch` and the first optimizer": lambda: command(["-c", first]).seconds,
        "`import torch, torchvision`": lambda: command(["-c", "import torch, torchvision"]).seconds,
        "`python -m runner`, whole": default,
    }
    if importlib.util.find_spec("lightning"):
        cases["`import lightning`"] = lambda: command(["-c", "import lightning"]).seconds

    def wrong(word: str) -> float:
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "runner", word], capture_output=True)
        assert done.returncode == 2, done
        return time.perf_counter() - began

    with tempfile.TemporaryDirectory(dir=folder) as made:
        command(["-m", "runner", "trainer.dry_run=true", f"hydra.run.dir={made}/run"])
        results = in_turn(rounds, cases)
    rows = [[name, f"{median(values):.2f} s"] for name, values in results.items()]
    over = median(outside) - median(results["`import torch` and the first optimizer"])
    rows.append(["`python -m runner`, outside its epochs", f"{median(outside):.2f} s"])
    rows.append(["... less `import torch` and the first optimizer", f"**{over:.2f} s**"])
    return table(f"Start-up ({rounds} rounds, each in a new process)", ["what", "median"], rows)


def growth(folder: Path, root: Path, rounds: int) -> str:
    rows = []
    dense = [word for word in DENSE if not word.startswith(("dataset.val_size", "dataloader.batch_size"))]
    for count in (1_000, 10_000, 60_000):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            data = write_mnist(Path(place), count, 1_000)
            for batch in (64, 512) if count == 60_000 else (64,):
                words = [*dense, "dataset.val_size=100", f"dataloader.batch_size={batch}"]
                cases = {
                    where: lambda where=where, words=words, data=data: run(
                        folder, data, [*words, f"dataloader.placement={where}"]
                    )
                    for where in ("memory", "workers")
                }
                results = in_turn(rounds, cases)
                for where, found in results.items():
                    rate = median(record["rate"] for _, record in found)
                    memory = median(done.megabytes for done, _ in found)
                    rows.append([f"{count:,}", str(batch), where, f"{rate:,.0f}", f"{memory:.0f} MB"])
    head = ["training images", "batch", "placement", "images/s", "peak memory"]
    return table(f"Growth with the data and the batch: the dense network ({rounds} rounds)", head, rows)


PARTS = {"overhead": overhead, "official": official, "template": template, "start": start_up, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; none: all of them")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if wrong := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"PART={wrong[0]}: unknown; choices: {', '.join(PARTS)}")
    page = PAGE.read_text()
    with tempfile.TemporaryDirectory(dir=".") as place:
        folder = Path(place).absolute()
        root = write_mnist(folder / "data")
        for part in arguments.parts or PARTS:
            print(part, flush=True)
            text = f"{PARTS[part](folder, root, arguments.rounds)}\n{machine()}.\n"
            begin, end = f"<!-- {part} -->\n", f"<!-- end of {part} -->"
            page = page[: page.index(begin) + len(begin)] + text + page[page.index(end) :]
            PAGE.write_text(page)
            print(text, flush=True)


if __name__ == "__main__":
    main()
