"""`runner evaluate RUN_DIR`: the same numbers as the run's own, to the last digit."""

import argparse
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.cli import trust
from runner.errors import InputError
from runner.job.own_code import as_it_was_started
from runner.printable import printable, say
from runner.progress import Bar, bar

if TYPE_CHECKING:
    from torch import Tensor

    from runner.job.build import Built

WORST = 10  # how many of the worst mistakes are shown


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="runner evaluate",
        description="Evaluates a run's weights on its test or validation part: the same data, threads and numbers.",
    )
    made.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="a folder that holds a run")
    made.add_argument("--which", default="best", metavar="best|last|FILE", help="the weights (default: best)")
    made.add_argument("--split", default="test", choices=("test", "val"), help="the part (default: test)")
    made.add_argument(
        "--confusion", action="store_true", help="accuracy per class, the confusion matrix and the worst mistakes"
    )
    trust.add_flags(made)
    return made


def main(arguments: argparse.Namespace) -> int:
    trust.grant(arguments)
    from runner.job.saved import open_saved, rebuilt

    with bar("reading the checkpoint"):
        saved = open_saved(arguments.run_dir, arguments.which)
    with as_it_was_started(saved.record, saved.is_mine), closing(rebuilt(saved)) as built:
        evaluate(built, arguments)
    return 0


class Counted:
    """A loader whose batches a bar counts."""

    def __init__(self, loader: Any, done: Bar) -> None:
        self.loader, self.done = loader, done

    def __len__(self) -> int:
        return len(self.loader)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        for batch in self.loader.batches(epoch, start):
            yield batch
            self.done.add()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def evaluate(built: "Built", arguments: argparse.Namespace) -> None:
    trainer, parts = built.trainer, built.parts
    part = getattr(parts, arguments.split)
    if part is None:
        raise InputError(f"--split {arguments.split}: this run has no such part")
    loader = built.test_loader if arguments.split == "test" else trainer.eval_loader
    assert loader is not None
    with bar(f"evaluating {arguments.split}", len(loader)) as done:
        counted: Any = Counted(loader, done)
        values = trainer.evaluate_on(counted)
    for name, value in values.items():
        say(f"{arguments.split}/{name}: {value!r}")
    if arguments.confusion:
        show_confusion(built, loader, part)


def predictions(built: "Built", loader: Any) -> tuple["Tensor", "Tensor"]:
    """(scores (N, C), targets (N,)) of every example, in the order of the part."""
    import torch

    from runner.train.precision import as_fp32
    from runner.train.steps import to_device

    model, options = built.trainer.model.eval(), built.trainer.options
    scores, targets = [], []
    with torch.no_grad():
        for batch in loader.batches():
            data, target = to_device(batch, built.device.torch, options.channels_last)
            with options.precision.autocast():
                scores.append(as_fp32(model(data)).cpu())
            targets.append(target.cpu())
    return torch.cat(scores), torch.cat(targets)


def show_confusion(built: "Built", loader: Any, part: Any) -> None:
    """Prints accuracy per class, the confusion matrix (rows: target, columns: predicted) and the worst mistakes."""
    import torch

    scores, targets = predictions(built, loader)
    if scores.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
        raise InputError("--confusion: needs scores (N, C) and integer targets (N,)")
    predicted, count = scores.argmax(dim=1), scores.shape[1]
    matrix = torch.zeros(count, count, dtype=torch.int64)
    matrix.index_put_((targets, predicted), torch.tensor(1), accumulate=True)
    names = [printable(name) for name in getattr(part.dataset, "classes", range(count))]
    width = max(6, *(len(name) for name in names)) + 1
    say("", "accuracy per class")
    for row, name in enumerate(names):
        total = int(matrix[row].sum())
        share = f"{int(matrix[row, row]) / total:.4f}" if total else "-"
        say(f"{name:>{width}} {share:>8}  ({int(matrix[row, row])} of {total})")
    say("", "confusion matrix (rows: target, columns: predicted)")
    say(" " * width + "".join(f"{name:>{width}}" for name in names))
    for row, name in enumerate(names):
        say(f"{name:>{width}}" + "".join(f"{int(n):>{width}}" for n in matrix[row]))
    probabilities = scores.softmax(dim=1)
    of_target = probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
    wrong = (predicted != targets).nonzero().squeeze(1)
    worst = wrong[of_target[wrong].argsort()][:WORST]
    say("", f"worst mistakes ({len(worst)} of {len(wrong)})")
    for i in worst.tolist():
        target, guess = int(targets[i]), int(predicted[i])
        say(
            f"example {int(part.indices[i])}: target {names[target]} (p {float(of_target[i]):.4f}),"
            f" predicted {names[guess]} (p {float(probabilities[i, guess]):.4f})"
        )
