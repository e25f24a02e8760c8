"""What the Trainer costs beside a loop by hand, as a ratio in one process: far above its budget, something is wrong."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUDGET, MARGIN = 1.10, 0.30  # the dense network's budget; a shared machine's noise


@pytest.mark.slow
def test_the_loop_stays_within_its_budget(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import loop
    from benchmarks.measure import DENSE, write_mnist

    root = write_mnist(tmp_path / "data", 25_000, 2_000)
    words = [*DENSE, "optimizer.fused=false", f"dataset.root={root}", "dataset.download=false", "device.threads=1"]
    _, _, fastest = loop.ratio(words, rounds=9)
    print(f"ratio {fastest:.3f}", file=sys.stderr)
    assert fastest < BUDGET + MARGIN
