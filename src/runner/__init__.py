"""A config-driven experiment runner for PyTorch. From Python: run(), load_model() and runs()."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Module

__all__ = ["load_model", "run", "runs"]


def run(
    overrides: Sequence[str] = (), run_dir: str | Path | None = None, config_dir: str | Path | None = None
) -> dict[str, Any]:
    """Trains one run in this process, as `python -m runner *overrides` does, and returns what its run.json says.

    Args:
        overrides: as on the command line, e.g. ["scheduler=cosine", "optimizer.lr=0.5"].
        run_dir: the run's directory; None: a new one under outputs/.
        config_dir: a folder with YAML files of your own, which come before ours.

    Raises:
        runner.errors.InputError: a wrong override or an impossible config; nothing was trained.
        runner.errors.Diverged: the loss is not finite.
    """
    from runner.errors import InputError
    from runner.job.launch import launch
    from runner.job.run import train

    if isinstance(overrides, str):
        raise InputError(f"overrides={overrides!r}: must be a list of overrides, as [{overrides!r}]")
    return launch(overrides, train, _text(config_dir), _text(run_dir))  # type: ignore[no-any-return]


def load_model(run_dir: str | Path, which: str = "best", trust: Sequence[str] = ()) -> "Module":
    """The trained model of a run, in eval mode and on the CPU, from the run's directory alone.

    Args:
        which: "best", "last", or the path of a checkpoint file: the weights that its figures are of. "ema", "swa": the
            average of the last weights (see the averaging group); "raw": these themselves.
        trust: packages and modules that it may name, beside those that lie beside the caller, e.g. ["timm"].

    Raises:
        runner.errors.InputError: no run there, or no such checkpoint, or a damaged one.
    """
    from runner.config.admission import granting
    from runner.job.saved import open_model

    with granting(trust):
        return open_model(Path(run_dir), which)


def runs(folder: str | Path = "outputs") -> list[dict[str, Any]]:
    """Every run in a folder as a plain dict, ready for a DataFrame: path, state, config.*, best/*, test/best/*, ...

    Runs that cannot be read are left out and named on stderr.

    Raises:
        runner.errors.InputError: no such folder, or no run in it.
    """
    from runner.storage.records import runs as read_runs
    from runner.terminal import notices
    from runner.terminal.printable import say

    notices.take()  # of an earlier call that was refused
    found = read_runs(Path(folder))
    for line in notices.take():
        say(f"warning: {line}", file=sys.stderr)
    return list(found)


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
