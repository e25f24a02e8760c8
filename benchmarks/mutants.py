"""Runs mutmut on a sample of its mutants, the same for the same seed, and counts what survived.

`python -m benchmarks.mutants --sample 100 --seed 0`, from the project's root; what is mutated, and by which tests it is
judged, stands in pyproject.toml. Answers are kept in mutants/, so that a run that was stopped goes on.
"""

import argparse
import json
import random
import subprocess
from collections import Counter
from pathlib import Path

# mutmut's exit codes of a worker; all others mean that a test noticed.
SURVIVED, UNTESTED = 0, 33


def answers() -> dict[str, int | None]:
    """What came of each mutant, by its name; None: it was not tried."""
    found: dict[str, int | None] = {}
    for path in sorted(Path("mutants").rglob("*.meta")):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=100, help="how many mutants (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once (default: 2)")
    options = parser.parse_args()
    if not answers():
        subprocess.run(
            ["mutmut", "run", "runner.storage.files.*"], check=False
        )  # makes them all, and sees which tests reach them
    names = sorted(answers())
    chosen = random.Random(options.seed).sample(names, min(options.sample, len(names)))
    subprocess.run(["mutmut", "run", "--max-children", str(options.jobs), *chosen], check=True)
    after = answers()
    kinds = Counter({SURVIVED: "survived", UNTESTED: "no test"}.get(after[name] or 0, "killed") for name in chosen)
    for name in sorted(name for name in chosen if after[name] in (SURVIVED, UNTESTED, None)):
        print(f"{name}: {'not tried' if after[name] is None else 'survived' if not after[name] else 'no test'}")
    print(f"{len(chosen)} of {len(names)} mutants, seed {options.seed}: {dict(kinds)}")


if __name__ == "__main__":
    main()
