"""A fault campaign: random runs, killed with SIGKILL at random moments and between system calls, resumed until done.

    python -m benchmarks.kill9 --runs 200

For each run a random model, optimizer, scheduler, loss, task, placement or number of workers, precision, ... is drawn;
it is trained once without a fault, and once with one to four faults: SIGKILL at a random time, for the process or its
whole group, or right before a random system call of a write (os.replace, os.fsync, os.link, os.unlink, os.open), which
only this campaign's child patches; or SIGTERM. A resumed run may have another number of workers. Every tensor and value
of the final checkpoints and every row of the metrics must then be equal.

The children are forked from a process that has imported torch, so that 200 runs take minutes and not hours.
"""

import argparse
import collections
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.errors import Interrupted

CALLS = ("replace", "fsync", "link", "unlink", "open", "ftruncate")
MODELS = {
    "mlp": ["model=mlp", "model.hidden=[24]", "model.dropout=0.3"],
    "mlp with batch norm": ["model=mlp", "model.hidden=[24]", "model.batch_norm=true"],
    "net": ["model=net"],
}
OPTIMIZERS = ("sgd", "adam", "adamw", "adadelta", "adagrad", "rmsprop", "nadam")
SCHEDULERS = (
    *("constant", "step", "multistep", "exponential", "cosine", "plateau", "lambda", "onecycle"),
    *("cosine_restarts", "polynomial", "warmup_cosine"),
)
LOSSES = {
    "nll": [],
    "weighted": ["loss.weight=[1,10,0.1,2]"],
    "with a state": ["~loss", "+loss={_target_: benchmarks.own_loss.Centred}", "trust=[benchmarks]"],
}
STEPS = {
    "fp32": [],
    "bf16": ["precision=bf16"],
    "accumulate and clip": ["trainer.accumulate=4", "trainer.grad_clip=0.5"],
    "channels_last": ["trainer.channels_last=true"],
}
RECIPES = {  # of parameters
    "all alike": [],
    "groups": [
        *("optimizer.no_decay=true", "optimizer.weight_decay=0.01"),
        "optimizer.groups=[{match: '*.bias', lr_scale: 2}]",
    ],
    "frozen": ["freeze=['*.bias']"],
    "thawed": [
        *("freeze=['*.weight']", "unfreeze_at={*.weight: 3}"),
        "optimizer.groups=[{match: '*.weight', lr_scale: 0.5}]",
    ],
}
AVERAGES = {
    "none": [],
    "ema": ["averaging=ema", "averaging.decay=0.9"],
    "ema beside": ["averaging=ema", "averaging.evaluate=beside", "averaging.every=2", "averaging.start=2"],
    "swa": ["averaging=swa", "averaging.start=0.5"],
}
STOPS = {
    "at its length": [],
    "without patience": ["stopping.patience=1", "stopping.min_delta=0.01"],
    "good enough": ["stopping.threshold=0.35"],
    "lost": ["stopping.divergence=0.3", "stopping.divergence_after=2"],
}
FAKE = ["dataset=fake", "dataset.train_size=120", "dataset.val_size=24", "dataset.eval_size=24"]
FAKE += ["dataset.input_shape=[1,8,8]", "dataset.num_classes=4"]
ALONE = ["metrics=none", "trainer.monitor=val/loss"]
BARE = ["dataset.test_size=0", *(f"~dataset.{key}" for key in ("train.mean", "train.std", "mean", "std"))]
BARE += ["dataset.num_classes=4", "trust=[benchmarks]"]
PAIRS = [*BARE, "dataset.train._target_=benchmarks.own_task.Pairs", "dataset.val_size=20", "loss=none", *ALONE]
PAIRS += [f"dataloader.{key}={{_target_: benchmarks.own_task.collate}}" for key in ("collate_fn", "eval_collate_fn")]
TASKS = {  # each with its data; those of images (N, C, H, W) and classes may be augmented
    "supervised": FAKE,
    "mixup": [*FAKE, "task=mixup", "task.mixup=1.0", "task.cutmix=1.0"],
    "reconstruction": [*FAKE, "task=reconstruction", "loss=squared_error", "model=autoencoder", *ALONE],
    "next token": [
        *("dataset=text", "dataset.context=8", "model=gpt", "model.width=8", "model.dropout=0.1", "task=next_token"),
        *("trainer.limit_batches=15", "loss=cross_entropy", "metrics=perplexity", "trainer.monitor=val/perplexity"),
    ],
    "nested batches": [*PAIRS, "task._target_=benchmarks.own_task.Contrastive"],
    "a stream": [
        *(*BARE, "dataset.train._target_=benchmarks.own_task.Numbers", "dataset.val_size=0", "metrics=none"),
        *("trainer.monitor=train/loss", "trainer.limit_batches=15", "dataloader.shuffle=false"),
    ],
}
AUGMENTATIONS = {
    "none": "[]",
    "own": "[{_target_: runner.augment.RandomCrop, padding: 2}, {_target_: runner.augment.RandomErasing}]",
    "torchvision": "[{_target_: torchvision.transforms.RandomErasing}]",
}


def draw(rng: random.Random) -> dict[str, Any]:
    """One random run: its words, and what they are."""
    choice = {
        "model": rng.choice(list(MODELS)),
        "optimizer": rng.choice(OPTIMIZERS),
        "scheduler": rng.choice(SCHEDULERS),
        "workers": rng.choice([None, None, None, 0, 1, 3]),
        "augment": rng.choice(list(AUGMENTATIONS)),
        "step": rng.choice([name for name in STEPS if name != "channels_last"]),
        "saves": rng.choice(
            ["each epoch", "each epoch", "every 3 batches", "every epoch kept", "best only", "last only"]
        ),
        "loss": rng.choice(list(LOSSES)),
        "task": rng.choice(["supervised", *TASKS]),
        "parameters": rng.choice(list(RECIPES)),
        "stops": rng.choice(list(STOPS)),
        "average": rng.choice(list(AVERAGES)),
    }
    task = choice["task"]
    if task != "supervised":
        choice |= {"loss": "the task's", "parameters": "all alike"}
    if task in ("next token", "a stream", "nested batches"):
        choice["augment"] = "none"
    if task == "a stream":
        choice["workers"] = None
        choice["average"] = choice["average"].replace("swa", "ema")  # with batch norms it would need the data again
    own = {"mixup": ["loss=cross_entropy"], "a stream": ["loss=cross_entropy"]}
    augment = [] if task == "next token" else [f"dataset.augment={AUGMENTATIONS[choice['augment']]}"]
    saves = {
        "each epoch": [],
        "every 3 batches": ["checkpoint.every_batches=3"],
        "every epoch kept": ["checkpoint.every=1", "checkpoint.keep=3"],
        "best only": ["checkpoint.save=best"],
        "last only": ["checkpoint.save=last"],
    }[choice["saves"]]
    words = [
        *([] if task in ("reconstruction", "next token") else MODELS[choice["model"]]),
        *TASKS[task],
        *("dataloader.batch_size=8", "device.threads=1"),
        *(f"optimizer={choice['optimizer']}", f"scheduler={choice['scheduler']}", f"seed={rng.randrange(1000)}"),
        *(f"dataloader.num_workers={'null' if choice['workers'] is None else choice['workers']}",),
        *augment,
        *("trainer.epochs=4", "trainer.log_every=5", "quiet=true", "deterministic=false"),
        *saves,
        *STEPS[choice["step"]],
        *RECIPES[choice["parameters"]],
        *STOPS[choice["stops"]],
        *AVERAGES[choice["average"]],
        *LOSSES.get(choice["loss"], own.get(task, [])),
    ]
    return {"choice": choice, "words": words}


def child(run: Path, words: list[str], kill_before: tuple[str, int] | None, changes: list[str]) -> None:
    """Starts or resumes the run; dies right before the n-th use of one system call, if asked to."""
    from runner.job.launch import launch
    from runner.job.resuming import resume
    from runner.job.run import train
    from runner.storage.rows import Rows

    real_append = Rows.append

    def append(self: Rows, row: Any, durable: bool = True) -> None:
        if self.path.name == "metrics.jsonl":  # so that the campaign sees which epochs are trained
            with open(run.with_suffix(".epochs"), "a") as file:
                file.write(f"{row['epoch']}\n")
        real_append(self, row, durable)

    Rows.append = append  # type: ignore[method-assign]
    if kill_before is not None:
        name, count = kill_before
        real, process = getattr(os, name), os.getpid()

        def patched(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count -= os.getpid() == process  # not in a loader's worker, which inherits the patch
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(os, name, patched)
    if (run / "run.json").exists():
        resume(run, changes)
    else:
        launch(words, train, run_dir=str(run))


def fork(
    run: Path,
    words: list[str],
    kill_before: tuple[str, int] | None,
    kill_after: float | None,
    by: str = "SIGKILL",
    changes: Sequence[str] = (),
) -> int:
    """Runs child() in a forked process, stops it after a while if asked to; returns its exit code or -signal.

    Args:
        by: SIGKILL, SIGTERM, or "group": SIGKILL for the child and its loader's workers.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            out = os.open(run.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1), os.dup2(out, 2)
            child(run, words, kill_before, list(changes))
            code = 0
        except Interrupted as stopped:
            code = 128 + stopped.signum
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        if by == "group":
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM if by == "SIGTERM" else signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def durable_epoch(run: Path) -> int:
    """The newest completed epoch in a checkpoint that reads well; counts unreadable ones as -1."""
    from runner.storage import checkpoint
    from runner.storage.checkpoint import Damaged

    newest = 0
    for path in (run / "checkpoints").glob("*.pt"):
        try:
            newest = max(newest, checkpoint.load(path)["epoch"])
        except Damaged:
            return -1
    return newest


def campaign(number: int, base: Path, rng: random.Random, tally: collections.Counter[str]) -> None:
    """One run: without a fault, then with kills until it is done, then compared."""
    from runner.cli.verify import differences
    from runner.storage.run_dir import RunDir

    drawn = draw(rng)
    whole, killed = base / f"{number}-whole", base / f"{number}-killed"
    began = time.monotonic()
    if fork(whole, drawn["words"], None, None) != 0:
        raise SystemExit(f"run {number} fails without a fault: {whole.with_suffix('.out').read_text()}")
    length = time.monotonic() - began
    kills, durable, epochs = rng.randrange(1, 5), 0, killed.with_suffix(".epochs")
    while True:
        epochs.write_text("")
        by_time = rng.random() < 0.4
        kill_after = rng.uniform(0.05, length) if kills and by_time else None
        kill_before = (rng.choice(CALLS), rng.randrange(1, 16)) if kills and not by_time else None
        by = rng.choice(["SIGKILL", "SIGTERM", "group"])
        takes_workers = "num_workers" in " ".join(drawn["words"]) and drawn["choice"]["workers"] is not None
        changes = [f"dataloader.num_workers={rng.choice([0, 1, 2])}"] if takes_workers and rng.random() < 0.5 else []
        code = fork(killed, drawn["words"], kill_before, kill_after, by, changes)
        tally["processes"] += 1
        trained = [int(line) for line in epochs.read_text().split()]
        tally["epochs trained"] += len(trained)
        tally["durable epochs repeated"] += sum(epoch <= durable for epoch in trained)
        if code == 0:
            break
        tally["resumed with another number of workers"] += bool(changes)
        if code not in (-signal.SIGKILL, 128 + signal.SIGTERM, -signal.SIGTERM):
            tally["other failures"] += 1
            print(f"run {number}: exit {code}: {killed.with_suffix('.out').read_text()[-2000:]}")
            return
        kills = max(0, kills - 1)
        at_random = "stopped by SIGTERM" if code != -signal.SIGKILL else f"killed at a random time ({by})"
        tally[at_random if by_time else f"killed before os.{kill_before[0]}"] += 1  # type: ignore[index]
        durable = durable_epoch(killed)
        tally["unreadable checkpoints"] += durable < 0
        tally["killed before run.json"] += not (killed / "run.json").exists()
    found = list(differences(RunDir(whole), RunDir(killed)))
    tally["equal" if not found else "different"] += 1
    tally[f"equal: {drawn['choice']['saves']}"] += not found
    tally[f"equal: loss {drawn['choice']['loss']}"] += not found
    tally[f"equal: task {drawn['choice']['task']}"] += not found
    tally[f"equal: parameters {drawn['choice']['parameters']}"] += not found
    tally[f"equal: average {drawn['choice']['average']}"] += not found
    tally[f"equal: stops {drawn['choice']['stops']}"] += not found
    if found:
        print(f"run {number} ({drawn['choice']}): {found[:3]}")
    else:
        for path in (whole, killed):
            shutil.rmtree(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.kill9", description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="write the table there, as Markdown")
    arguments = parser.parse_args()
    began = time.monotonic()
    import torch

    import runner.cli.verify
    import runner.job.launch
    import runner.job.resuming
    import runner.job.run
    import runner.job.saved  # noqa: F401

    torch.set_num_threads(1)
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # imports torch._dynamo, before the forks
    tally: collections.Counter[str] = collections.Counter()
    base = Path(tempfile.mkdtemp(prefix="kill9-"))
    os.chdir(base)
    for number in range(arguments.runs):
        campaign(number, base, random.Random(f"{arguments.seed}/{number}"), tally)
        if (number + 1) % 20 == 0:
            print(f"{number + 1} of {arguments.runs}: {tally['equal']} equal", flush=True)
    lines = [
        f"{arguments.runs} runs, seed {arguments.seed}, {time.monotonic() - began:.0f} s; {platform.machine()},"
        f" Python {platform.python_version()}, torch {torch.__version__}",
        "",
        "| what | count |",
        "| --- | ---: |",
    ]
    first = ("equal", "different", "unreadable checkpoints", "durable epochs repeated", "other failures", "processes")
    lines += [f"| {key} | {tally[key]} |" for key in first]
    lines += [f"| {key} | {tally[key]} |" for key in sorted(tally) if key not in first]
    print("\n".join(lines))
    if arguments.report:
        arguments.report.write_text("\n".join(lines) + "\n")
    bad = ("different", "unreadable checkpoints", "durable epochs repeated", "other failures")
    if not any(tally[key] for key in bad):
        shutil.rmtree(base)
        return 0
    print(f"what failed is in {base}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
