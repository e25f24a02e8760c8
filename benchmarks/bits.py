"""Are the bits still those of another commit? Trains 55 small configs on that code and on today's, and compares.

    python -m benchmarks.bits [COMMIT] [--only WORD] [--keep FOLDER]

COMMIT (HEAD, if none is given) is taken from git into a temporary folder; the other side is the working tree as it is.
Each config is a list of overrides, trained with one thread in a process of its own. Compared are every tensor and value
of last.pt and best.pt (weights, the optimizer's state, all the rest), the rows of metrics.jsonl and steps.jsonl, and
run.json, without times, paths and ids. A key that only today's run.json has is said and is no difference; everything
else is one, also a config that a side refuses, and the exit code is then 1. About 80 seconds on 2 cores.
"""

import argparse
import hashlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).absolute().parents[1]
SHORT = ["trainer.epochs=3", "trainer.limit_batches=12", "device.threads=1", "trainer.log_every=5"]
MLP = ["model=mlp", "model.hidden=[24]"]
BATCH_NORM = [*MLP, "model.batch_norm=true", "model.dropout=0.3"]
FAKE = ["dataset=fake", "dataset.train_size=120", "dataset.val_size=24", "dataset.eval_size=24"]
FAKE += ["dataset.input_shape=[1,8,8]", "dataset.num_classes=4", "dataloader.batch_size=8"]
TEXT = ["dataset=text", "dataset.context=8", "model=gpt", "model.width=8", "model.dropout=0.1", "task=next_token"]
TEXT += ["loss=cross_entropy", "metrics=perplexity", "trainer.monitor=val/perplexity"]
BARE = ["dataset.test_size=0", *(f"~dataset.{key}" for key in ("train.mean", "train.std", "mean", "std"))]
BARE += ["dataset.num_classes=4", "trust=[benchmarks]", "metrics=none", "dataloader.batch_size=8"]
STREAM = [*BARE, *MLP, "dataset.train._target_=benchmarks.own_task.Numbers", "dataset.val_size=0", "loss=cross_entropy"]
STREAM += ["trainer.monitor=train/loss", "dataloader.shuffle=false"]
PAIRS = [*BARE, *MLP, "dataset.train._target_=benchmarks.own_task.Pairs", "dataset.val_size=20", "loss=none"]
PAIRS += ["trainer.monitor=val/loss", "task._target_=benchmarks.own_task.Contrastive"]
PAIRS += [f"dataloader.{key}={{_target_: benchmarks.own_task.collate}}" for key in ("collate_fn", "eval_collate_fn")]
CROP = "dataset.augment=[{_target_: runner.augment.RandomCrop, padding: 2}, {_target_: runner.augment.RandomErasing}]"
WORKERS = "dataloader.num_workers=2"

OPTIMIZERS = ("adadelta", "adagrad", "adam", "adamw", "nadam", "rmsprop", "sgd")
SCHEDULERS = ("constant", "cosine", "cosine_restarts", "exponential", "lambda", "multistep", "onecycle")
SCHEDULERS += ("polynomial", "step", "warmup_cosine")
CONFIGS: dict[str, list[str]] = {
    "the default, a whole epoch": ["trainer.epochs=1", "trainer.limit_batches=null"],
    **{f"optimizer={name}": [f"optimizer={name}", *BATCH_NORM] for name in OPTIMIZERS},
    **{f"scheduler={name}": [f"scheduler={name}", *MLP] for name in SCHEDULERS},
    "onecycle with momentum": ["scheduler=onecycle", "optimizer=sgd", *MLP],
    "multistep, by batches": ["scheduler=multistep", "scheduler.interval=batch", "scheduler.milestones=[9,20]", *MLP],
    "plateau on val/loss": ["scheduler=plateau", "scheduler.monitor=val/loss", "scheduler.patience=0", *MLP],
    "plateau on train/loss": ["scheduler=plateau", "scheduler.monitor=train/loss", "scheduler.patience=0", *MLP],
    "plateau by steps": [
        *("scheduler=plateau", "scheduler.patience=0", "scheduler.threshold=0.5", "trainer.evaluate_every=5 steps"),
        *MLP,
    ],
    "a length in steps": ["trainer.steps=30", "trainer.evaluate_every=7", "scheduler=cosine", *MLP],
    "evaluated each 5 steps": ["trainer.evaluate_every=5 steps", *MLP],
    "evaluated each 2 epochs": ["trainer.epochs=5", "trainer.evaluate_every=2", "checkpoint.every=1", *MLP],
    "ema": ["averaging=ema", "averaging.decay=0.9", *BATCH_NORM],
    "ema beside": ["averaging=ema", "averaging.evaluate=beside", "averaging.every=2", "averaging.start=2", *MLP],
    "swa, with batch norm": ["averaging=swa", "averaging.start=0.5", *BATCH_NORM],
    "groups": [
        *("optimizer=adamw", "optimizer.no_decay=true", "optimizer.weight_decay=0.01"),
        *("optimizer.groups=[{match: 'fc1*', lr_scale: 0.1}, {match: 'conv*', weight_decay: 0}]",),
    ],
    "frozen": ["freeze=[conv1, '*.bias']"],
    "frozen, then not": ["freeze=['*.weight']", "unfreeze_at={*.weight: 2}", *BATCH_NORM],
    "accumulate and clip": ["trainer.accumulate=4", "trainer.grad_clip=0.5"],
    "clip each value": ["trainer.grad_clip=0.01", "trainer.grad_clip_by=value", *MLP],
    "bf16": ["precision=bf16"],
    "channels_last, deterministic": ["trainer.channels_last=true", "deterministic=true"],
    "overfit": ["trainer.overfit_batches=2", *MLP],
    "stopped early": ["stopping.patience=1", "stopping.min_delta=0.5", "trainer.epochs=6", *MLP],
    "focal, top5": ["loss=focal", "metrics=top5", "trainer.monitor=val/top5", *MLP],
    "label smoothing": ["loss=label_smoothing", *MLP],
    "weighted loss": ["loss.weight=[1,10,0.1,2,1,1,1,1,1,1]", *MLP],
    "regression": ["experiment=diabetes", "trainer.epochs=3"],
    "mixup and cutmix": ["task=mixup", "task.mixup=1.0", "task.cutmix=1.0", "loss=cross_entropy", *MLP],
    "distillation": ["task=distillation", "task.teacher=teacher", "loss=cross_entropy", *MLP],
    "from its weights": ["init_from=teacher", *MLP],
    "reconstruction": [
        *("task=reconstruction", "loss=squared_error", "model=autoencoder", "metrics=none"),
        *("trainer.monitor=val/loss",),
    ],
    "text": TEXT,
    "a stream": STREAM,
    "nested batches, a task with a state": PAIRS,
    "augmentation in memory": [CROP],
    "augmentation, 0 workers": [CROP, "dataloader.num_workers=0", *FAKE, *MLP],
    "augmentation, 2 workers": [CROP, WORKERS, *FAKE, *MLP],
    "2 persistent workers": [WORKERS, "dataloader.persistent_workers=true", "trainer.evaluate_every=4 steps", *MLP],
    "torchvision's transforms": ["dataset.augment=[{_target_: torchvision.transforms.RandomErasing}]", *MLP],
}
CONFIGS = {"teacher": MLP, **CONFIGS}  # the first, since others start from it

UNSTABLE = {"id", "started", "ended", "command", "seconds", "examples_per_second", "git", "code", "working_directory"}
UNSTABLE |= {"config_yaml", "config_digest", "host", "time", "run_id", "dir", "path", "file", "signature"}


def flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Each tensor and plain value below this one: its key, and its digest or how it is written."""
    import torch

    if isinstance(value, torch.Tensor):
        plain = value.detach().contiguous().cpu()
        digest = hashlib.sha256(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        yield key, f"{plain.dtype} {tuple(plain.shape)} {digest.hexdigest()[:16]}"
    elif isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            if name not in UNSTABLE:
                yield from flat(part, f"{key}.{name}" if key else str(name))
        if not value:
            yield key, f"empty {type(value).__name__}"
    else:
        yield key, repr(value)


def facts(run: Path) -> dict[str, str]:
    """What a finished run left, without what differs between any two: a digest or a value a key."""
    import torch

    found = dict[str, Any]()
    for name in ("last", "best"):
        found[f"{name}.pt"] = torch.load(run / "checkpoints" / f"{name}.pt", map_location="cpu", weights_only=True)
        found[f"{name}.pt"].pop("config", None)  # as in run.json, as a text
    for name in ("metrics", "steps"):
        found[f"{name}.jsonl"] = [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
    found["run.json"] = json.loads((run / "run.json").read_text())
    return dict(flat(found))


def train(words: list[str], name: str) -> dict[str, Any]:
    """The facts of one run, trained in a forked process of its own; or {"refused": the last line that it printed}."""
    log = Path(f"{name}.out")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT)
            os.dup2(out, 1), os.dup2(out, 2)
            sys.argv = ["runner", *SHORT, *words, f"hydra.run.dir={name}"]
            runpy.run_module("runner", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException as error:
            print(repr(error))
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    lines = ["", *filter(None, log.read_text(errors="replace").split("\n"))]
    return facts(Path(name)) if code == 0 else {"refused": f"exit {code}: {lines[-1]}"}


def side(root: Path, names: list[str]) -> None:
    """Trains the configs in the working directory with the code below root; a line of JSON each, on stdout."""
    others = (path for path in sys.path[1:] if not Path(path, "runner/__init__.py").exists())
    sys.path = [str(root / "src"), str(root), *others]
    import hydra  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    import runner

    assert Path(runner.__file__).is_relative_to(root), f"{runner.__file__} is not of {root}"
    torch.set_num_threads(1)
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # imports torch._dynamo, before the forks
    for name in names:
        print(json.dumps(train(CONFIGS[name], "".join(c if c.isalnum() else "_" for c in name))), flush=True)


def results(root: Path, folder: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    folder.mkdir(parents=True)
    path = os.pathsep.join([str(root / "src"), str(root)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(Path(__file__).absolute()), "--side", str(root), "--only", json.dumps(names)]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(f"the side of {root} ended with exit code {process.returncode}")


PARTS = ("last weights", "best weights", "optimizer", "state", "rows", "record")


def part_of(key: str) -> str:
    file, _, rest = key.partition(".pt." if ".pt." in key else ".")
    if file in ("last", "best"):
        what = rest.partition(".")[0]
        return {"model_state_dict": f"{file} weights", "optimizer_state_dict": "optimizer"}.get(what, "state")
    return "record" if file == "run" else "rows"


def compared(before: dict[str, str], today: dict[str, str]) -> tuple[dict[str, list[str]], list[str]]:
    """For each part what differs, as "key: before -> today"; and the keys that only today's run.json has."""
    differ: dict[str, list[str]] = {part: [] for part in PARTS}
    new = sorted(key for key in today.keys() - before.keys() if part_of(key) == "record")
    for key in sorted((before.keys() | today.keys()) - set(new)):
        one, other = before.get(key, "nothing"), today.get(key, "nothing")
        if one != other:
            differ[part_of(key)].append(f"{key}: {one} -> {other}")
    return differ, new


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bits", description=__doc__.split("\n\n")[0])
    parser.add_argument("commit", nargs="?", default="HEAD", help="the code to compare with (default: HEAD)")
    parser.add_argument("--only", metavar="WORD", help="only the configs whose name contains WORD")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep both sides' runs there")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments.side, json.loads(arguments.only))
        return 0
    names = [name for name in CONFIGS if (arguments.only or "") in name or name == "teacher"]
    with tempfile.TemporaryDirectory(prefix="bits-") as place:
        folder, code = (arguments.keep or Path(place)).absolute(), Path(place, "code")
        code.mkdir()
        commit = subprocess.check_output(["git", "-C", ROOT, "rev-parse", f"{arguments.commit}^{{commit}}"], text=True)
        archive = subprocess.check_output(["git", "-C", ROOT, "archive", commit.strip()])
        subprocess.run(["tar", "-x", "-C", code], input=archive, check=True)
        print(f"{len(names)} configs, {commit[:12]} against the working tree", flush=True)
        width = max(map(len, names))
        print("  ".join([" " * width, *(part.ljust(12) for part in PARTS)]), flush=True)
        is_equal, added = True, set[str]()
        with ThreadPoolExecutor(2) as pool:
            sides = [results(code.resolve(), folder / "before", names), results(ROOT, folder / "today", names)]
            for name in names:
                before, today = pool.map(next, sides)
                refused = {"COMMIT": before.get("refused"), "today": today.get("refused")}
                if any(refused.values()):
                    is_equal = False
                    said = [f"refused by {where}: {line}" for where, line in refused.items() if line]
                    print("  ".join([name.ljust(width), *said]), flush=True)
                    continue
                differ, new = compared(before, today)
                added |= set(new)
                cells = [f"{len(lines)} differ" if lines else "equal" for lines in differ.values()]
                print("  ".join([name.ljust(width), *(cell.ljust(12) for cell in cells)]), flush=True)
                for lines in filter(None, differ.values()):
                    is_equal = False
                    print(*(f"    {line[:200]}" for line in lines[:3]), sep="\n", flush=True)
            for one in sides:
                assert next(one, None) is None
    if added:
        print(f"only in today's run.json: {', '.join(sorted(added))}")
    print("equal" if is_equal else "DIFFERENT")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
