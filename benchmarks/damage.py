"""A damage campaign: every record of runs, sweeps and searches, damaged by rule, and every verb that reads it.

    python -m benchmarks.damage [--seed 0] [--every 1]

A run, a sweep and a search are made once. Each kind of damage is done to a copy, and each verb that reads it runs in a
child forked from this process, which has imported torch. Judged: a traceback; a hang (60 s); a silent difference (exit
0, another output than of the undamaged copy, and no word on stderr); a lost file.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIMIT = 60  # seconds for a verb
WORDS = [
    *("dataset=fake", "dataset.train_size=40", "dataset.val_size=10", "dataset.eval_size=10", "model=mlp"),
    *("model.hidden=[4]", "trainer.epochs=2", "quiet=true", "device.threads=1", "dataset.input_shape=[1,4,4]"),
    *("dataloader.placement=memory", "trainer.log_every=1"),
]
SWEEP = ["-m", *WORDS, "seed=1,2", "hydra.sweep.dir=sweep"]
SEARCH = ["-m", "hydra/sweeper=optuna", *WORDS, "optimizer.lr=interval(0.1,1.0)", "hydra.sweeper.n_trials=2"]
SEARCH += ["hydra.sweep.dir=search"]
JSON_VERBS = (["ls", "runs", "--json"], ["best", "runs"], ["show", "runs/one"], ["diff", "runs/one", "runs/two"])
OPENING = (["evaluate", "runs/one"], ["resume", "runs/one"], ["load", "runs/one"], ["resume", "runs/one", "name=x"])
ON = (["resume", "runs/one", "trainer.epochs=3"], ["prune", "runs", "--dry-run"])
VERIFY = (["verify", "runs/one", "--kills", "0"],)
SWEEP_VERBS = (SWEEP, ["resume", "sweep"], [*SWEEP, "sweep.dry_run=true"], ["ls", "sweep", "--json"])
SEARCH_VERBS = (SEARCH, ["resume", "search"])
SAID = "lost|damaged|skipped|made good|differs|note|cannot be read|repeated|set-aside"
Damage = tuple[str, str, Callable[[Path], None]]  # the file, what is done to it, the doing


def broken_files(rng: random.Random) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What can befall any file."""

    def content(new: Callable[[bytes], bytes]) -> Callable[[Path], None]:
        return lambda path: path.write_bytes(new(path.read_bytes())) and None

    def instead(make: Callable[[Path], Any]) -> Callable[[Path], None]:
        def do(path: Path) -> None:
            path.unlink()
            make(path)

        return do

    part, place = rng.uniform(0.2, 0.9), rng.random()
    yield "empty", lambda path: path.write_bytes(b"") and None
    yield "truncated", content(lambda old: old[: int(len(old) * part)])
    yield "one byte short", content(lambda old: old[:-40])
    yield "a flipped bit", content(lambda old: flipped(old, place))
    yield "not UTF-8", content(lambda old: old[: len(old) // 2] + b"\xff\xfe" + old[len(old) // 2 :])
    yield "zeros", content(lambda old: bytes(len(old)))
    yield "nested brackets", lambda path: path.write_bytes(b"[" * 100_000) and None
    yield "a number", lambda path: path.write_bytes(b"5\n") and None
    yield "a list", lambda path: path.write_bytes(b"[1, 2]\n") and None
    yield "an empty object", lambda path: path.write_bytes(b"{}\n") and None
    yield "a folder", instead(Path.mkdir)
    yield "a pipe", instead(os.mkfifo)
    yield "a device", instead(lambda path: path.symlink_to("/dev/zero"))
    yield "a loop of links", instead(lambda path: path.symlink_to(path.name))
    yield "gone", lambda path: path.unlink()


def flipped(content: bytes, place: float) -> bytes:
    digits = [m.start() for m in re.finditer(rb"[0-8]", content)] or [0]
    at = digits[int(place * len(digits))]
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] if content else content


VALUES: dict[str, Any] = {"null": None, "a text": "x", "a number": -1, "a list": [[]], "huge": 10**400}


def broken_keys(record: dict[str, Any]) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Each key of a JSON record missing, and of a wrong kind."""

    def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
        def do(path: Path) -> None:
            found = json.loads(path.read_text())
            change(found)
            path.write_text(json.dumps(found))

        return do

    for key in record:
        yield f"{key} missing", edit(lambda r, k=key: r.pop(k))
        for name, value in VALUES.items():
            if value != record[key] and not (isinstance(value, type(record[key])) and value != 10**400 and value != -1):
                yield f"{key}: {name}", edit(lambda r, k=key, v=value: r.update({k: v}))


def damages(home: Path, seed: int) -> Iterator[tuple[Damage, tuple[list[str], ...]]]:
    rng = random.Random(seed)
    run, job = Path("runs/one"), next(p.parent.relative_to(home) for p in sorted(home.glob("sweep/*/job.json")))
    files: list[tuple[Path, tuple[list[str], ...]]] = [
        (run / "run.json", (*JSON_VERBS, *OPENING, *ON)),
        (run / "metrics.jsonl", (["show", "runs/one"], *OPENING, *ON)),
        (run / "steps.jsonl", ON),
        (run / ".hydra/overrides.yaml", (*ON, ["resume", "runs/one", "optimizer.lr=0.3"])),
        (run / "run.lock", (*ON, ["ls", "runs", "--json"])),
        (run / "run.lease", (*ON, ["ls", "runs", "--json"])),
        (run / "runner.log", ON),
        (run / "checkpoints/best.pt", (*OPENING, *ON)),
        (run / "checkpoints/last.pt", (*OPENING, *ON)),
        (job / "job.json", SWEEP_VERBS),
        (job / "run.json", SWEEP_VERBS),
        (job / ".hydra/hydra.yaml", SWEEP_VERBS[:2]),
        (Path("sweep/sweep.json"), SWEEP_VERBS),
        (Path("search/study.journal"), SEARCH_VERBS),
        (Path("search/sweep.json"), SEARCH_VERBS),
    ]
    for file, verbs in files:
        for what, do in broken_files(rng):
            yield (str(file), what, do), verbs
    for file, verbs in ((run / "run.json", (*JSON_VERBS, *OPENING, *ON)), (job / "job.json", SWEEP_VERBS[2:3])):
        for what, do in broken_keys(json.loads((home / file).read_text())):
            yield (str(file), what, do), verbs
    for file in (run / "metrics.jsonl", run / "steps.jsonl"):
        for row in ("{}", "5", "[1,2]", "null", '{"epoch": "1", "step": "1"}', '{"epoch": 1e999}', '{"epoch": NaN}'):
            yield (str(file), f"a first row {row}", lambda p, r=row: lines(p, r)), (["show", "runs/one"], *ON, *VERIFY)
    for key in ("model_state_dict", "optimizer_state_dict", "progress", "lr", "rng", "config", "rows", "run_id"):
        for name in ("best", "last"):
            do = lambda p, k=key: resealed(p, k)  # noqa: E731
            yield (str(run / f"checkpoints/{name}.pt"), f"without {key}", do), (*OPENING, *ON)


def lines(path: Path, row: str) -> None:
    old = path.read_text().splitlines()
    path.write_text("\n".join([row, *old[1:]]) + "\n")


def resealed(path: Path, key: str) -> None:
    from runner.storage import checkpoint

    state = checkpoint.load(path)
    state.pop(key, None)
    checkpoint.save(path, state)


def verb(words: list[str], out: int, err: int) -> None:
    """Runs a verb as the command line does, in this (forked) process; does not return."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    code = 70
    try:
        from runner.__main__ import main

        if words[0] == "load":
            import runner
            from runner.terminal import notices

            try:
                model = runner.load_model(words[1])
                print(sum(float(p.double().sum()) for p in model.parameters()), flush=True)
                print(*notices.take(), file=sys.stderr)
                code = 0
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                code = 2
        else:
            sys.argv = ["runner", *words]
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run(words: list[str], place: Path) -> tuple[int | None, str, str]:
    """(exit code, None for a hang; stdout; stderr) of a verb in a child."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os.setsid()
            os.chdir(place)
            verb(words, out.fileno(), err.fileno())
        deadline, status = time.monotonic() + LIMIT, None
        while time.monotonic() < deadline and status is None:
            pid, found = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(found) if pid else None
            time.sleep(0.002)
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return status, texts[0], texts[1]


def figures(text: str, words: list[str]) -> str:
    """What of an output must be the same: without times, and for what trains only its summary's figures."""
    if words[0] == "prune":  # it lists files, not figures
        return ""
    if words[0] == "show":  # how often it says what is no figure
        text = "\n".join(line for line in text.splitlines() if "resumed" not in line)
    text = re.sub(r'"seconds": [\d.]+|\d+(?:\.\d+)? s\b|\d{4}-\d\d-\d\dT[\d:.+]+', "", text)
    return "\n".join(
        line for line in text.splitlines() if re.search(r"accuracy|loss|best|test|equal|differs|^-?\d", line)
    )


def judge(damage: Damage, words: list[str], home: Path, good: tuple[int | None, str, str]) -> str:
    """What came of a verb on a damaged copy."""
    place = home.with_name("damaged")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(home, place, symlinks=True)
    file = place / damage[0]
    if not file.exists():
        file.touch()
    damage[2](file)
    kept = {p for p in place.rglob("*.pt")} | {p for p in place.rglob("run.json")}
    code, out, err = run(words, place)
    if code is None:
        return "hang"
    if "Traceback (most recent call last)" in out + err or code not in (0, 1, 2):
        return "traceback"
    if [p for p in kept if not (p.exists() or p.is_symlink() or list(p.parent.glob(f"{p.name}.set-aside*")))]:
        return "data lost"
    if code == 0 and figures(out, words) != figures(good[1], words):
        said = err.strip() or re.search(
            r"lost|damaged|skipped|made good|differs|note|cannot be read|repeated|set-aside", out
        )
        return "said" if said else "silent difference"
    if code == 0:
        return "said" if err.strip() else "no effect"
    return "refused" if code == 2 else "failed"


def make(home: Path) -> None:
    import runner

    for name, seed in (("one", 1), ("two", 2)):
        runner.run([*WORDS, f"seed={seed}"], run_dir=home / "runs" / name)
    for words in (SWEEP, SEARCH):
        code, out, err = run(words, home)
        assert code == 0, out + err


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.damage", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="only every n-th kind of damage")
    parser.add_argument("--only", default="", help="only files whose path holds this")
    arguments = parser.parse_args()
    import optuna  # noqa: F401
    import torch

    import runner.cli.verify
    import runner.job.build
    import runner.job.resuming
    import runner.job.saved
    import runner.search.search  # noqa: F401

    torch.set_num_threads(1)
    began, kinds = time.monotonic(), 0
    counts: dict[str, collections.Counter[str]] = {}
    bad: list[str] = []
    with tempfile.TemporaryDirectory(prefix="runner-damage-") as folder:
        home = Path(folder).resolve() / "good"
        with contextlib.redirect_stdout(io.StringIO()):
            copy = home.with_name("damaged")  # made where the copies will lie: a search knows its folder
            make(copy)
            copy.rename(home)
        goods: dict[str, tuple[int | None, str, str]] = {}
        for number, (damage, verbs) in enumerate(damages(home, arguments.seed)):
            if number % arguments.every or arguments.only not in damage[0]:
                continue
            kinds += 1
            for words in verbs:
                key = " ".join(words)
                if key not in goods:
                    place = home.with_name("damaged")
                    shutil.rmtree(place, ignore_errors=True)
                    shutil.copytree(home, place)
                    goods[key] = run(words, place)
                found = judge(damage, words, home, goods[key])
                name = Path(damage[0]).name if "checkpoints" not in damage[0] else "a checkpoint"
                counts.setdefault(f"{damage[0].split('/')[0]}: {name}", collections.Counter())[found] += 1
                if found in ("traceback", "hang", "silent difference", "data lost"):
                    bad.append(f"{found}: {damage[0]}: {damage[1]}: {' '.join(words[:4])}")
                    print(bad[-1], flush=True)
    columns = ("no effect", "said", "refused", "failed", "traceback", "silent difference", "hang", "data lost")
    print(f"{kinds} kinds of damage, seed {arguments.seed}, {time.monotonic() - began:.0f} s\n")
    print(f"| record | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}")
    for record, found in counts.items():
        print(f"| {record} | {' | '.join(str(found[column]) for column in columns)} |")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
