"""How long the loop waits for a checkpoint, beside a bare torch.save with fsync: `python -m benchmarks.saving`.

The state is resnet18's (45 MB of weights) with an optimizer that has taken one step. Rounds alternate; the table
holds medians and their ratio.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

ROUNDS = 9


def timed(function: Any) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    import torch

    from runner.models import resnet18
    from runner.seeding import rng_state
    from runner.storage.checkpoint import Checkpoints

    torch.manual_seed(0)
    for name, make in (
        ("SGD with momentum", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("plain SGD", lambda p: torch.optim.SGD(p, lr=0.1)),
    ):
        model = resnet18()
        optimizer = make(model.parameters())
        model(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
        state = {
            "format_version": 1,
            "epoch": 1,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "rng": rng_state(torch.device("cpu")),
        }
        with tempfile.TemporaryDirectory(dir=".") as folder:
            checkpoints = Checkpoints()
            checkpoints.open(Path(folder, "checkpoints"))
            bare_path = Path(folder, "bare.pt")

            def bare(path: Path = bare_path, state: dict[str, Any] = state) -> None:
                with open(path, "wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())

            def ours(checkpoints: Checkpoints = checkpoints, state: dict[str, Any] = state) -> None:
                checkpoints.write(state, is_evaluated=True, is_best=True)

            times: dict[str, list[float]] = {"bare": [], "ours": []}
            for _ in range(ROUNDS):
                times["bare"].append(timed(bare))
                times["ours"].append(timed(ours))
            size = bare_path.stat().st_size / 1e6
        bare_median, ours_median = statistics.median(times["bare"]), statistics.median(times["ours"])
        print(
            f"resnet18, {name}: {size:.0f} MB; bare torch.save + fsync {bare_median * 1e3:.0f} ms, ours (last.pt,"
            f" last-1.pt and best.pt, with SHA-256) {ours_median * 1e3:.0f} ms: ratio {ours_median / bare_median:.2f}"
        )


if __name__ == "__main__":
    main()
