"""The fault campaign of benchmarks/kill9.py, a short one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_12_random_runs_killed_at_random_end_in_the_same_bits():
    words = [sys.executable, "-m", "benchmarks.kill9", "--runs", "12", "--seed", "7"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| equal | 12 |" in done.stdout
