"""Sweeps side by side, in turn: our launcher, Hydra's basic one, joblib's. `python -m benchmarks.sweep`

joblib's needs the package hydra-joblib-launcher; without it that column is left out. Wall times of the whole command,
start included; ratios to Hydra's basic launcher count, the machine is shared.
"""

import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time

CASES = {
    "8 digits runs": ["seed=1,2,3,4,5,6,7,8", "device.threads=1"],
    "20 dry runs of fake data": [
        *("dataset=fake", "trainer.dry_run=true", "device.threads=1"),
        "seed=" + ",".join(str(seed) for seed in range(20)),
    ],
}


def wall(launcher: str, words: list[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        extra = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
        command = [sys.executable, "-m", "runner", "-m", *words, f"hydra/launcher={launcher}", *extra, "quiet=true"]
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - began


def main() -> None:
    launchers = ["local", "basic"]
    if importlib.util.find_spec("hydra_plugins.hydra_joblib_launcher"):
        launchers.append("joblib")
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    print("| sweep | " + " | ".join(f"{launcher}, s (ratio)" for launcher in launchers) + " |")
    print("| --- |" + " ---: |" * len(launchers))
    for name, words in CASES.items():
        times: dict[str, list[float]] = {launcher: [] for launcher in launchers}
        for _ in range(rounds):
            for launcher in launchers:
                times[launcher].append(wall(launcher, words))
        medians = {launcher: statistics.median(values) for launcher, values in times.items()}
        cells = [f"{medians[x]:.1f} ({medians[x] / medians['basic']:.2f})" for x in launchers]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
