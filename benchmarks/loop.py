"""The Trainer's epoch beside a loop written by hand, in one process: `python -m benchmarks.loop`.

Both take the same batches from memory, train one epoch and evaluate. The Trainer also keeps metrics, draws a progress
bar, checks that everything is finite, and leaves a checkpoint and its rows behind.
"""

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measure import DENSE, in_turn, median, write_mnist

NET = ["experiment=mnist_example", "trainer.epochs=1", "trainer.limit_batches=200"]


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Standard output as a terminal, which is read by nobody: so that the progress bar is drawn."""
    ours, theirs = os.openpty()

    def drain() -> None:
        with contextlib.suppress(OSError):
            while os.read(ours, 65536):
                pass

    threading.Thread(target=drain, daemon=True).start()
    with open(theirs, "w") as screen, contextlib.redirect_stdout(screen):
        yield


def hand_epoch(built: Any) -> None:
    """What a person would write."""
    import torch

    trainer = built.trainer
    model, criterion, optimizer = trainer.task.model, trainer.task.criterion, trainer.optimizer
    channels_last = trainer.config.step.channels_last
    model.train()
    total = torch.zeros(())
    for data, target in trainer.train_loader.batches(0):
        if channels_last:
            data = data.to(memory_format=torch.channels_last)
        optimizer.zero_grad()
        loss = criterion(model(data), target)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(target)
    model.eval()
    with torch.no_grad():
        for data, target in next(iter(trainer.eval_loaders.values())).batches(0):
            if channels_last:
                data = data.to(memory_format=torch.channels_last)
            output = model(data)
            total += criterion(output, target) + (output.argmax(1) == target).sum()
    float(total)


def timed(words: list[str], folder: Path, by_hand: bool) -> float:
    """Seconds of one epoch, without the time to build."""
    from runner.job.launch import launch
    from runner.job.logs import open_logs
    from runner.job.record import outcome
    from runner.job.run import prepare
    from runner.processes import StopRequest

    def task(cfg: Any, run_dir: Any, notes: list[str]) -> float:
        with open_logs(run_dir.log, False) as screen:
            built, record, listening = prepare(cfg, run_dir, screen, StopRequest(), None)
            if not by_hand:
                listening.begin(record, run_dir, built.trainer.progress, is_resumed=False)
            began = time.perf_counter()
            if by_hand:
                hand_epoch(built)
            else:
                with listening.until(record), outcome(run_dir, record, built):
                    run_dir.write_run(record)
                    built.trainer.fit()
            return time.perf_counter() - began

    with tempfile.TemporaryDirectory(dir=folder) as place, terminal():
        return launch([*words, "device=cpu"], task, run_dir=str(Path(place, "run")))


def ratio(words: list[str], rounds: int) -> tuple[float, float, float]:
    """Median seconds of one epoch by hand and by the Trainer, and the ratio of the fastest rounds, which a machine that
    others use disturbs less.
    """
    with tempfile.TemporaryDirectory(dir=".") as folder:
        cases = {name: (lambda by_hand=name == "by hand": timed(words, Path(folder), by_hand)) for name in NAMES}
        times = in_turn(rounds, cases)
    return median(times["by hand"]), median(times["Trainer"]), min(times["Trainer"]) / min(times["by hand"])


NAMES = ("by hand", "Trainer")


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = [f"dataset.root={write_mnist(Path(folder))}", "dataset.download=false"]
        for name, words, rounds in (("net, batch 64, 200 batches", NET, 9), ("dense network, batch 128", DENSE, 9)):
            by_hand, ours, fastest = ratio([*words, *root], rounds)
            figures = f"by hand {by_hand:.2f} s, Trainer {ours:.2f} s, ratio {ours / by_hand:.3f}"
            print(f"{name}: {figures}, of the fastest {fastest:.3f}", file=sys.stderr)


if __name__ == "__main__":
    main()
