"""Bad input, through the real command: one line that names key, value and choices, exit 2, nothing left behind."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from conftest import Cli
from runner.__main__ import main

LAMBDA = "scheduler=lambda"
NO_CUDA = not torch.cuda.is_available()

# (the command's words, what the line must hold)
CASES: list[tuple[list[str], list[str]]] = [
    (["scheduler=foo"], ["scheduler=foo", "no such choice", "cosine", "warmup_cosine"]),
    (["foo=bar"], ["foo=bar", "no key 'foo'", "optimizer", "trainer"]),
    (["optimizer/foo=bar"], ["optimizer/foo"]),
    (["scheduler.stepsize=1"], ["scheduler.stepsize=1", "did you mean step_size"]),
    (["optimizer.lr=abc"], ["optimizer.lr=abc", "must be a number"]),
    (["seed=abc"], ["seed=abc", "must be a whole number"]),
    (["seed=1.5"], ["seed=1.5", "must be a whole number"]),
    (["optimizer.lr=null"], ["optimizer.lr=null", "must be a number"]),
    (["deterministic=5"], ["deterministic=5", "true or false"]),
    (["trainer.monitor=5"], ["trainer.monitor=5", "must be text"]),
    (["tags=one"], ["tags=one", "must be a list"]),
    (["optimizer.lr=${foo}"], ["optimizer.lr", "foo"]),
    (["optimizer.lr=[1"], ["optimizer.lr=[1"]),
    (["derived.eval_split=x"], ["derived.eval_split=x"]),
    (["hydra.job.nam=x"], ["hydra.job.nam"]),
    (["hydra.verbose=[1,"], ["hydra.verbose"]),
    (["+optimizer.foo=1"], ["optimizer.foo", "torch.optim.Adadelta", "rho"]),
    (["+foo=1"], ["foo", "nothing takes this key", "optimizer"]),
    (["+trainer.foo=1"], ["trainer.foo", "epochs"]),
    (["+dataset.foo=1"], ["dataset.foo", "val_size"]),
    (["+dataloader.foo=1"], ["dataloader.foo", "batch_size"]),
    (["+checkpoint.foo=1"], ["checkpoint.foo", "keep"]),
    (["+device.foo=1"], ["device.foo", "threads"]),
    (["device.type=tpu"], ["device.type=tpu", "cuda"]),
    (["device.threads=0"], ["device.threads=0", "at least 1"]),
    (["dataset=mnist", "dataset.root=absent", "dataset.download=false"], ["dataset.root=absent", "MNIST/raw"]),
    (["dataset=cifar10", "dataset.root=absent", "dataset.download=false"], ["cifar-10-batches-py"]),
    (["dataset=image_folder"], ["dataset.root", "must be given"]),
    (["dataset=image_folder", "dataset.root=absent"], ["dataset.root=absent", "does not exist"]),
    (["trainer.monitor=val/foo"], ["trainer.monitor=val/foo", "not logged", "val/accuracy"]),
    (["scheduler=plateau", "scheduler.monitor=val/foo"], ["scheduler.monitor=val/foo", "val/loss"]),
    (["scheduler=plateau", "scheduler.interval=batch"], ["scheduler.interval=batch"]),
    (["scheduler.interval=week"], ["scheduler.interval=week", "epoch, batch"]),
    (["trainer.mode=best"], ["trainer.mode=best", "min, max"]),
    (["trainer.epochs=0"], ["trainer.epochs=0", "at least 1"]),
    (["trainer.limit_batches=0"], ["trainer.limit_batches=0"]),
    (["trainer.log_every=-1"], ["trainer.log_every=-1"]),
    (["dataloader.batch_size=-1"], ["dataloader.batch_size=-1", "at least 1"]),
    (["dataloader.eval_batch_size=0"], ["dataloader.eval_batch_size=0"]),
    (["dataloader.num_workers=-1"], ["dataloader.num_workers=-1"]),
    (["dataloader.num_workers=abc"], ["dataloader.num_workers=abc", "whole number"]),
    (["dataloader.placement=gpu"], ["dataloader.placement=gpu", "auto, memory, workers"]),
    (["dataloader.placement=memory", "dataloader.num_workers=2"], ["placement=memory", "num_workers=2"]),
    (
        ["dataloader.placement=memory", "dataloader.memory_limit=0.0001"],
        ["placement=memory", "MiB of a limit of 0.1 MiB"],
    ),
    (["dataloader.memory_limit=-1"], ["dataloader.memory_limit=-1"]),
    (
        ["dataloader.collate_fn._target_=x.y"],
        ["dataloader.collate_fn holds no keys", "'dataloader.collate_fn={_target_"],
    ),
    (["wörd=1"], ["wörd=1", "letters from a to z", "KEY=VALUE"]),
    (["=1"], ["=1: has no key", "KEY=VALUE"]),
    (["dataloader.persistent_workers=true"], ["dataloader.persistent_workers=True", "num_workers"]),
    (["precision=fp8"], ["precision=fp8", "bf16"]),
    (["precision.type=fp8"], ["precision.type=fp8", "fp32, tf32, bf16, fp16"]),
    (["trainer.compile=fastest"], ["trainer.compile=fastest", "max-autotune"]),
    (["trainer.grad_clip=-1"], ["trainer.grad_clip=-1", "above 0"]),
    (["trainer.grad_clip=1", "trainer.grad_clip_by=sum"], ["trainer.grad_clip_by=sum", "norm, value"]),
    (["optimizer=sgd", "+optimizer.foreach=true"], ["optimizer", "SGD", "fused", "foreach"]),
    (["trainer.accumulate=0"], ["trainer.accumulate=0", "at least 1"]),
    (["trainer.accumulate=16"], ["trainer.accumulate=16", "at least two examples", "1, 2, 4, 8"]),
    (["trainer.grad_clip_by=value"], ["trainer.grad_clip_by=value", "grad_clip"]),
    (["dataloader.memory_limit=1", "dataloader.num_workers=1"], ["dataloader.memory_limit=1", "num_workers=1"]),
    (["trainer.accumulate=3"], ["trainer.accumulate=3", "batch_size=16", "1, 2, 4, 8"]),
    (["trainer.channels_last=true", "model=mlp"], ["trainer.channels_last=true", "no convolution"]),
    (["dataloader.drop_last=true", "dataloader.batch_size=5000"], ["dataloader.batch_size=5000", "drop_last"]),
    ([LAMBDA, 'scheduler.lr_lambda="0.95 ** ("'], ["0.95 ** (", "does not parse"]),
    ([LAMBDA, 'scheduler.lr_lambda="bar + 1"'], ["bar", "variables: epoch, step"]),
    ([LAMBDA, "scheduler.lr_lambda=max(1,epoch)"], ["lr_lambda", "quotes", "0.95 ** epoch"]),
    ([LAMBDA, 'scheduler.lr_lambda=["1","2"]'], ["2 entries for 1 param groups"]),
    (["dataset.val_size=5000"], ["dataset.val_size=5000", "1438"]),
    (["dataset.val_size=-0.5"], ["dataset.val_size=-0.5"]),
    (["optimizer.lr=-1"], ["optimizer", "-1"]),
    (["model._target_=nope.Nope"], ["model._target_=nope.Nope", "nope"]),
    (["model._target_=torch.nn.Nope"], ["torch.nn.Nope"]),
    (["model.input_shape=[1,4,4]"], ["input_shape=[1, 4, 4]", "6x6"]),
    (["model=resnet18", "model.weights=FOO"], ["weights=FOO", "IMAGENET1K_V1"]),
    (["loss=label_smoothing", "loss.label_smoothing=2.0"], ["loss.label_smoothing=2.0"]),
    (["metrics.accuracy.top_k=0"], ["metrics.accuracy.top_k=0"]),
    (["trainer.monitor=val/loss", "trainer.mode=max"], ["trainer.mode=max", "val/loss is better low"]),
    (["trainer.mode=min"], ["trainer.mode=min", "val/accuracy is better high"]),
    (["-m", "seed=1,2", "trainer.mode=min"], ["job 0", "trainer.mode=min", "val/accuracy is better high"]),
    (
        ["scheduler=plateau", "scheduler.monitor=val/loss", "scheduler.mode=max"],
        ["scheduler.mode=max", "val/loss is better low"],
    ),
    (
        ["+metrics.it={_target_: torchmetrics.SumMetric}", "trainer.monitor=val/it"],
        ["trainer.monitor=val/it", "set trainer.mode=min or trainer.mode=max"],
    ),
    (
        ["loss._target_=torch.nn.CrossEntropyLoss", "+loss.reduction=sum"],
        ["loss.reduction=sum", "choices: mean"],
    ),
    (
        ["~loss", "+loss={_target_: torch.nn.functional.cross_entropy, reduction: none}"],
        ["loss.reduction=none", "choices: mean"],
    ),
    (["~loss", "+loss={_target_: builtins.dict}"], ["loss._target_=builtins.dict", "may not stand in loss"]),
    (["checkpoint.save=some"], ["checkpoint.save=some", "all, best, last, none"]),
    (["checkpoint.every=0"], ["checkpoint.every=0"]),
    (["model_weights=absent.pt"], ["absent.pt", "cannot be read"]),
    (["model_weights=foreign.pt"], ["foreign.pt"]),
    (["--config-dir", "absent"], ["absent"]),
    (["--cfg", "foo"], ["--cfg", "foo", "job"]),
    (["--frobnicate"], ["--frobnicate"]),
    (["frobnicate"], ["frobnicate", "evaluate"]),
    (["evaluate"], ["RUN_DIR"]),
    (["evaluate", "absent"], ["absent", "no run"]),
    (["evaluate", "broken"], ["run.json"]),
    (["hydra.run.dir=/proc/nowhere/run"], ["/proc/nowhere/run", "cannot be written"]),
    (["hydra.run.dir=foreign.pt/run"], ["foreign.pt/run", "cannot be written"]),
    (
        ["optimizer._target_=torch.optim.LBFGS", "~optimizer.rho", "~optimizer.eps", "~optimizer.weight_decay"],
        ["LBFGS", "closure"],
    ),
    (["~loss"], ["loss", "missing"]),
    (["model=null"], ["model=null", "group", "choices: autoencoder, gpt, mlp"]),
    (["~scheduler._target_"], ["scheduler._target_", "must be given"]),
    (["model_weights=5"], ["model_weights=5", "must be text"]),
    (["device.threads=abc"], ["device.threads=abc"]),
    (["dataloader.pin_memory=no"], ["dataloader.pin_memory=no"]),
    (["checkpoint.save=none", "checkpoint.every=2"], ["checkpoint.every=2", "checkpoint.save=none"]),
    (["trainer.epochs=2", "trainer.epochs=1.5"], ["trainer.epochs=1.5"]),
    (["lr=0.1"], ["lr=0.1", "did you mean optimizer.lr"]),
    (["optimzer.lr=0.1"], ["did you mean optimizer?"]),
    (["dataset.num_classes=5"], ["dataset.num_classes=5", "go up to 9"]),
    (["loss.weight=[1,2]"], ["loss", "NLL"]),
    (["model.input_shape=[1,12,12]"], ["model", "runner.models.Net", "[2, 1, 8, 8]"]),
    (["-m", "--cfg", "job"], ["--cfg"]),
    (["--quiet", "trainer.epochs=0", "--config-dir", "broken", "scheduler=bad"], ["scheduler"]),
    (["-m", "seed=1,abc"], ["seed=abc"]),
    (["-m", "scheduler=step,foo"], ["foo"]),
    (["hydra.mode=MULTIRUN"], ["-m"]),
    (["sweep.name=one"], ["sweep.name=one", "-m"]),
]
if NO_CUDA:
    CASES += [
        (["precision=fp16"], ["precision=fp16", "fp32, bf16"]),
        (["precision=tf32"], ["precision=tf32", "CUDA"]),
        (["device=cuda"], ["device=cuda", "device=cpu"]),
        (["device=cuda", "device.index=-1"], ["device.index=-1"]),
    ]
else:
    CASES.append((["device=cuda", "device.index=99"], ["device.index=99", "0 to"]))


def prepare(folder):
    (folder / "foreign.pt").write_bytes(b"somebody else's file")
    (folder / "broken" / "scheduler").mkdir(parents=True)
    (folder / "broken" / "run.json").write_text("{")
    (folder / "broken" / "scheduler" / "bad.yaml").write_text("a: [1")


def check(case, code, out, err, folder):
    _, parts = case
    assert code == 2, out + err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    for part in parts:
        assert part in lines[0]
    known = {"foreign.pt", "run.json", "bad.yaml"}
    assert {p.name for p in folder.rglob("*") if p.is_file()} == known, "a half-made run is left"
    assert [p for p in folder.rglob("run.json")] == [folder / "broken" / "run.json"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case[0]))
def test_bad_input_gets_one_line_and_exit_2(case, tmp_path, monkeypatch, capsys):
    prepare(tmp_path)
    monkeypatch.setattr(sys, "argv", ["runner", *case[0]])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    check(case, ended.value.code, shown.out, shown.err, tmp_path)


SOME = range(0, len(CASES), 5)


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Every fifth command, two at a time, each in a folder of its own."""
    base = tmp_path_factory.mktemp("bad")

    def answer(number):
        folder = base / str(number)
        folder.mkdir()
        prepare(folder)
        return Cli(folder)(*CASES[number][0], OMP_NUM_THREADS="1"), folder

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(SOME, pool.map(answer, SOME), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("number", SOME, ids=lambda n: " ".join(CASES[n][0]))
def test_bad_input_through_the_real_command(answers, number):
    done, folder = answers[number]
    check(CASES[number], done.returncode, done.stdout, done.stderr, folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_folder_without_permission_is_named(cli):
    (cli.cwd / "locked").mkdir(mode=0o500)
    done = cli("hydra.run.dir=locked/run")
    assert done.returncode == 2 and "locked/run: cannot be written" in done.stderr


@pytest.mark.slow
def test_compile_without_a_compiler_is_refused_before_anything_is_made(cli):
    done = cli("trainer.compile=true", CXX="absent-compiler")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "trainer.compile=true" in done.stderr and "absent-compiler" in done.stderr
    assert not list(cli.cwd.rglob("run.json"))


@pytest.mark.slow
def test_no_network_while_downloading_names_the_folder(cli):
    done = cli(
        "dataset=mnist",
        "dataset.root=data",
        "trainer.dry_run=true",
        http_proxy="http://127.0.0.1:9",
        https_proxy="http://127.0.0.1:9",
    )
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert "dataset.root=data" in line and "MNIST/raw" in line and "could not be downloaded" in line
