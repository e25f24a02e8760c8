"""A campaign of wrong configs, made by rule over the whole config tree: each must get one line, and nothing trains.

    python -m benchmarks.wrong_configs --count 420

An answer is right if the exit code is 2, stderr holds one line, that line names the key and the value, and the process
took less than a second of its own (CPU) once everything was imported. Nothing is imported anew for a case: each of two
processes imports torch and the runner once, and forks for each case, so it takes minutes and not hours; the last
--real cases go through a new `python -m runner`, and their seconds are those of the whole command.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).parents[1] / "conf"
GROUPS = ("device", "precision", "dataset", "dataloader", "model", "optimizer", "scheduler", "loss", "metrics")
SWEEPS = ("hydra", "sweep", "derived")  # not of a single run
LIMIT = 30.0  # seconds until a case counts as hanging
OWN_TIME = 1.0

# Where a value below zero, or infinity, is no mistake.
MAY_BE_NEGATIVE = ("seed", "eta_min", "power", "gamma", "factor", "min_lr", "mean", "threshold", "lr_lambda")


@dataclass
class Case:
    """A wrong config: its words, its own YAML files, and what the answer has to name."""

    kind: str
    words: list[str]
    named: list[str]
    files: dict[str, str] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def faults(self) -> list[str]:
        """What is wrong with the answer."""
        found, lines = [], [line for line in self.answer["stderr"].splitlines() if line.strip()]
        if self.answer["code"] != 2:
            found.append(str(self.answer["code"]) if isinstance(self.answer["code"], str) else "another exit code")
        if len(lines) != 1:
            found.append(f"{len(lines)} lines")
        if missing := [word for word in self.named if word not in self.answer["stderr"]]:
            found.append(f"does not name {missing[0]}")
        if self.answer["seconds"] > OWN_TIME and not self.answer.get("is_real"):
            found.append("slow")
        return found


def typo(rng: random.Random, name: str) -> str:
    """The name with two letters swapped, one left out, or one doubled; never a name that stays what it was."""
    while True:
        at = rng.randrange(len(name) - 1)
        made = rng.choice(
            [
                name[:at] + name[at + 1] + name[at] + name[at + 2 :],
                name[:at] + name[at + 1 :],
                name[:at] + name[at] + name[at:],
            ]
        )
        if made != name and made.strip("_"):
            return made


def leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every value; a list is one value, an interpolation is what it stands as."""
    for name, value in node.items():
        path = f"{key}.{name}" if key else name
        if isinstance(value, dict) and value:
            yield from leaves(value, path)
        else:
            yield path, value


def choices() -> dict[str, list[str]]:
    found = {g: sorted(p.stem for p in (CONF / g).glob("*.yaml")) for g in (*GROUPS, "checkpoint", "experiment")}
    found["dataset"] = [name for name in found["dataset"] if name in ("digits", "fake")]  # the rest would be downloaded
    found["device"], found["precision"] = ["auto", "cpu"], ["fp32", "bf16"]
    return found


def settings() -> Iterator[tuple[list[str], str, Any]]:
    """Every key of conf/: the words that choose its file, the key, and its value there."""
    for group, names in choices().items():
        for name in names if group != "experiment" else ():
            chosen = [] if name == "default" else [f"{group}={name}"]
            for key, value in leaves(yaml.safe_load((CONF / group / f"{name}.yaml").read_text()), group):
                yield chosen, key, value
    root = yaml.safe_load((CONF / "config.yaml").read_text())
    for key, value in leaves({k: v for k, v in root.items() if k not in ("defaults", *SWEEPS)}):
        yield [], key, value


def by_key(rng: random.Random) -> Iterator[Case]:
    """Rules that ask only what kind a key's value is."""
    for chosen, key, value in settings():
        above, _, last = key.rpartition(".")
        if last.startswith("_"):
            yield Case("unknown target", [*chosen, f"{key}=nowhere.Thing"], [key, "nowhere"])
            continue
        wrong = typo(rng, last)
        yield Case("mistyped key", [*chosen, f"{above + '.' if above else ''}{wrong}=1"], [wrong])
        extra = f"{above + '.' if above else ''}{last}_x"
        yield Case("key that nothing takes", [*chosen, f"+{extra}=1"], [extra.rpartition(".")[0], f"{last}_x"])
        if isinstance(value, str) and "${" in value:
            continue
        yield from of_kind(chosen, key, value)


def of_kind(chosen: list[str], key: str, value: Any) -> Iterator[Case]:
    """Values of another kind, and values out of range."""
    last = key.rpartition(".")[2]

    def case(kind: str, text: str, shown: str | None = None) -> Case:
        return Case(kind, [*chosen, f"{key}={text}"], [key, text if shown is None else shown])

    if isinstance(value, bool):
        yield from (case("wrong kind", text) for text in ("5", "maybe", "[true]"))
        yield case("null", "null")
    elif isinstance(value, (int, float)):
        yield from (case("wrong kind", text) for text in ("abc", "true"))
        yield case("wrong kind", "[1]")
        yield from (case("not finite", text) for text in ("nan", "inf"))
        yield case("null", "null")
        if last not in MAY_BE_NEGATIVE:
            yield case("negative", "-3")
    elif isinstance(value, list) and value and isinstance(value[0], (int, float)):
        yield case("wrong kind", "abc")
        yield case("wrong kind", "5")
        yield case("wrong kind in a list", f"[{','.join(['abc'] * len(value))}]", "abc")
        yield case("not finite", f"[{','.join(['nan'] * len(value))}]", "nan")
        if last not in ("milestones", "hidden", "widths"):
            yield case("wrong length", f"[{','.join(map(str, [*value, *value[-1:]]))}]", "")
        if last not in MAY_BE_NEGATIVE:
            yield case("negative", f"[{','.join(['-3'] * len(value))}]", "-3")
    elif isinstance(value, list):
        yield case("wrong kind", "5")
    elif isinstance(value, str):
        yield case("empty text", "", "")
        yield case("wrong kind", "true")
        if last not in ("lr_lambda", "root"):
            yield case("unknown word", "frobnicate")


NULLS = {  # keys that are null in conf/, and what they do not take
    "model_weights": ("absent.pt", "5", "/dev/zero", "''"),
    "init_from": ("absent", "5", "/dev/null", "''"),
    "name": ("5", "[a]", "''"),
    "notes": ("5", "true"),
    "trainer.mode": ("best", "5", "true", "''"),
    "trainer.overfit_batches": ("0", "-1", "1.5", "true", "nan", "abc"),
    "trainer.limit_batches": ("0", "-1", "1.5", "true", "nan", "abc"),
    "trainer.grad_clip": ("0", "-1", "nan", "inf", "true", "abc"),
    "trainer.compile": ("fastest", "5", "''"),
    "checkpoint.every": ("0", "-1", "1.5", "true", "nan", "abc"),
    "checkpoint.every_batches": ("0", "-1", "1.5", "true", "nan", "abc"),
    "checkpoint.every_minutes": ("-1", "nan", "inf", "true", "abc", "[1]"),
    "dataloader.memory_limit": ("-1", "nan", "inf", "true", "abc"),
    "dataloader.num_workers": ("-1", "1.5", "true", "abc", "100000"),
    "dataloader.pin_memory": ("5", "abc"),
    "dataloader.persistent_workers": ("5", "abc"),
    "dataloader.prefetch_factor": ("0", "-1", "abc"),
    "dataloader.collate_fn": ("mine.collate", "5", "true"),
    "device.threads": ("0", "-1", "1.5", "true", "nan", "100000", "abc"),
    "loss.weight": ("[1,2]", "abc", "[-1,1,1,1,1,1,1,1,1,1]", "[nan,1,1,1,1,1,1,1,1,1]", "5", "[]"),
}
ALIASES = {  # what people write for what is here
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "wd": "optimizer.weight_decay",
    "bs": "dataloader.batch_size",
    "batch": "dataloader.batch_size",
    "epochs": "trainer.epochs",
    "max_epochs": "trainer.epochs",
    "num_epochs": "trainer.epochs",
    "n_epochs": "trainer.epochs",
    "workers": "dataloader.num_workers",
    "gradient_clip_val": "trainer.grad_clip",
    "accumulate_grad_batches": "trainer.accumulate",
    "random_seed": "seed",
    "data": "dataset",
    "optim": "optimizer",
    "trainer.max_epochs": "epochs",
    "optimizer.learning_rate": "lr",
    "dataloader.bs": "batch_size",
    "scheduler=StepLR": "step",
    "scheduler=CosineAnnealingLR": "cosine",
    "scheduler=ReduceLROnPlateau": "plateau",
    "optimizer=Adam": "adam",
    "loss=CrossEntropyLoss": "cross_entropy",
    "loss=ce": "cross_entropy",
    "dataset=MNIST": "mnist",
    "device=gpu": "cuda",
    "precision=float16": "fp16",
}


def by_group(rng: random.Random) -> Iterator[Case]:
    """Groups and choices: mistyped, missing, null."""
    for group, names in choices().items():
        for name in names:
            if len(name) > 2 and (wrong := typo(rng, name)) not in names:
                yield Case("mistyped choice", [f"{group}={wrong}"], [f"{group}={wrong}", name])
        yield Case("mistyped choice", [f"{group}=frobnicate"], [f"{group}=frobnicate", "choices"])
        if group == "experiment":
            continue
        yield Case("mistyped group", [f"{typo(rng, group)}={names[0]}"], [group])
        yield Case("missing part", [f"~{group}"], [group])
        yield Case("missing part", [f"{group}=null"], [group])
        yield Case("missing part", [f"{group}=[]"], [group])
        if group in ("model", "optimizer", "scheduler", "loss"):
            yield Case("missing part", [f"~{group}._target_"], [f"{group}._target_"])
        if group in ("optimizer", "scheduler"):
            yield Case("missing part", [f"~{group}._partial_"], [f"{group}._partial_"])
            yield Case("missing part", [f"{group}._partial_=false"], [f"{group}._partial_"])
    yield from (Case("missing part", [f"~trainer.{key}"], [f"trainer.{key}"]) for key in ("epochs", "monitor", "mode"))
    for key, values in NULLS.items():
        first = ["model_weights", "init_from"]
        for value in values:
            shown = value if key in first else value.strip("'[]").split(",")[0]
            yield Case("a null's value", [f"{key}={value}"], [key, shown.strip("'")])
    for alias, meant in ALIASES.items():
        yield Case(
            "another library's name", [alias if "=" in alias else f"{alias}=1"], [alias, f"did you mean {meant}"]
        )


def combinations() -> Iterator[Case]:
    """Settings that are right alone and wrong together."""
    for words, named in (
        ("dataloader.placement=memory dataloader.num_workers=2", "placement=memory"),
        ("dataloader.memory_limit=1 dataloader.num_workers=1", "memory_limit=1"),
        ("dataloader.prefetch_factor=2", "prefetch_factor=2"),
        ("dataloader.persistent_workers=true", "persistent_workers"),
        ("checkpoint.save=none checkpoint.every=2", "checkpoint.every=2"),
        ("trainer.grad_clip_by=value", "trainer.grad_clip_by=value"),
        ("trainer.accumulate=3", "trainer.accumulate=3"),
        ("trainer.accumulate=16", "trainer.accumulate=16"),
        ("model=mlp trainer.channels_last=true", "trainer.channels_last"),
        ("dataloader.drop_last=true dataloader.batch_size=5000", "dataloader.batch_size=5000"),
        ("model=strided", "input_shape"),
        ("model=mlp model.batch_norm=true dataloader.batch_size=1", "dataloader.batch_size=1"),
        ("model=mlp model.batch_norm=true dataloader.batch_size=1006", "dataloader.batch_size=1006"),
        ("model=mlp model.batch_norm=true dataset=fake dataloader.batch_size=17", "dataloader.batch_size=17"),
        ("dataset.num_classes=5", "dataset.num_classes=5"),
        ("model.num_classes=5", "model.num_classes"),
        ("model.input_shape=[1,4,4]", "input_shape"),
        ("model.input_shape=[3,8,8]", "model"),
        ("dataset.input_shape=[1,9,9]", "dataset.input_shape"),
        ("dataset.val_size=5000", "dataset.val_size=5000"),
        ("dataset.val_size=1.5", "dataset.val_size=1.5"),
        ("dataset.test_size=1437", "dataset.test_size"),
        ("trainer.monitor=lr", "trainer.monitor=lr"),
        ("trainer.monitor=test/accuracy", "trainer.monitor=test/accuracy"),
        ("trainer.monitor=val/loss trainer.mode=max", "trainer.mode=max"),
        ("trainer.mode=min", "trainer.mode=min"),
        ("scheduler=plateau scheduler.monitor=lr", "scheduler.monitor=lr"),
        ("scheduler=plateau scheduler.interval=batch", "scheduler.interval=batch"),
        ("scheduler=cosine scheduler.interval=week", "scheduler.interval=week"),
        ("~metrics.accuracy", "trainer.monitor"),
        ("model=mlp model.hidden=[0]", "model.hidden=[0]"),
        ("model=mlp model.hidden=[32,0]", "model.hidden=[32, 0]"),
        ("model=mlp model.dropout=2", "model.dropout=2"),
        ("optimizer=sgd +optimizer.foreach=true", "optimizer"),
        ("optimizer=sgd optimizer.nesterov=true optimizer.momentum=0", "optimizer"),
        ("optimizer=adam optimizer.betas=[0.9]", "optimizer.betas"),
        ("optimizer=adam optimizer.betas=[0.9,1.5]", "optimizer"),
        ("optimizer=nadam optimizer.betas=[0.9]", "optimizer.betas"),
        ("dataset.std=[-1]", "dataset.std"),
        ("dataset.std=[0]", "dataset.std"),
        ("dataset.mean=[0.1,0.2,0.3]", "dataset.mean"),
        ("dataset.mean=[]", "dataset.mean"),
        ("precision=fp16", "fp16"),
        ("device=cuda", "device"),
        ("optimizer.lr=${optimiser.lr}", "optimiser"),
        ("trainer.epochs=${trainer.epoch}", "trainer.epoch"),
        ("hydra.run.dir=", "hydra.run.dir"),
        ("hydra.run.dir=null", "hydra.run.dir"),
        ("hydra.run.dir=''", "hydra.run.dir"),
        ("optimizer.lr=interval(0.1,1)", "optimizer.lr"),
        ("optimizer.lr=0.1,0.2", "optimizer.lr"),
        ("sweep.retries=-1", "sweep.retries"),
        ("-m seed=1,2 sweep.name=", "sweep.name"),
        ("-m seed=1,2 sweep.name=1", "sweep.name=1"),
        ("-m seed=1,2 sweep.retries=-1", "sweep.retries=-1"),
        ("-m seed=1,2 sweep.name=a/b", "sweep.name=a/b"),
        ("-m seed=1,2 sweep.name=.", "sweep.name=."),
        ("-m optimizer.lr=interval(0.1,1)", "optimizer.lr"),
        ("-m seed=1,2 trainer.epochs=0", "trainer.epochs=0"),
        ("-m seed=1,2 hydra/launcher=loca", "hydra/launcher=loca"),
        ("-m seed=1,2 hydra.launcher.jobs=0", "hydra.launcher.jobs=0"),
        ("dataset=image_folder", "dataset.root"),
        ("dataset=image_folder dataset.root=absent", "dataset.root=absent"),
        ("dataset=mnist dataset.root=absent dataset.download=false", "dataset.root=absent"),
    ):
        yield Case("wrong combination", words.split(" "), [named])


MODULE = """
import torch
from torch.utils.data import Dataset

class Model(torch.nn.Module):
    def __init__(self, input_shape=(1, 8, 8), num_classes: int = 10, width: int = 8):
        super().__init__()
        self.layer = torch.nn.Linear(64, num_classes)
    def forward(self, x):
        return self.layer(x.flatten(1))

class Pair(Model):
    def forward(self, x):
        return self.layer(x.flatten(1)), x

class Broken(Model):
    def __init__(self, input_shape=(1, 8, 8), num_classes: int = 10):
        raise KeyError("nothing")

class Labels(Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, index):
        return torch.zeros(1, 8, 8), torch.ones(10)

class Lacking:
    def __init__(self, needed):
        pass
    def __call__(self, x):
        return x
"""
SIZES = "input_shape: ${dataset.input_shape}\nnum_classes: ${dataset.num_classes}\n"
DATA = "input_shape: [1, 8, 8]\nnum_classes: 10\ntest_size: 0.2\nval_size: 0.2\n"
DIGITS = DATA + "train:\n  _target_: runner.data.Digits\n"
YAMLS: list[tuple[str, str, list[str]]] = [  # group, text, what is named
    ("model", f"_target_: mine.Modle\n{SIZES}", ["model._target_=mine.Modle", "Model"]),
    ("model", f"_target_: mien.Model\n{SIZES}", ["model._target_=mien.Model"]),
    ("model", f"_target_: mine\n{SIZES}", ["model._target_=mine"]),
    ("model", f"target: mine.Model\n{SIZES}", ["model._target_"]),
    ("model", "", ["model"]),
    ("model", "5\n", ["model"]),
    ("model", "- 1\n- 2\n", ["model"]),
    ("model", "_target_: [1\n", ["own.yaml"]),
    ("model", "_target_: mine.Model\n\twidth: 3\n", ["own.yaml"]),
    ("model", "_target_: mine.Model\nwidth: 3\nwidth: 4\n", ["width"]),
    ("model", f"_target_: mine.Model\n{SIZES}widht: 3\n", ["model.widht", "width"]),
    ("model", f"_target_: mine.Model\n{SIZES}width: wide\n", ["model.width=wide"]),
    ("model", f"_target_: mine.Model\n{SIZES}width: 1.5\n", ["model.width=1.5"]),
    ("model", f"_target_: mine.Model\n{SIZES}width: .nan\n", ["model.width=nan"]),
    ("model", f"_target_: mine.Model\n{SIZES}width: ???\n", ["model.width"]),
    ("model", f"_target_: mine.Model\n{SIZES}width: ${{model.widht}}\n", ["model.width", "model.widht"]),
    ("model", "_target_: mine.Model\nnum_classes: ${dataset.classes}\n", ["model.num_classes", "dataset.classes"]),
    ("model", "_target_: mine.Model\nnum_classes: ${nope:1}\n", ["model.num_classes", "nope"]),
    ("model", f"_target_: mine.Pair\n{SIZES}", ["model", "tuple"]),
    ("model", f"_target_: mine.Broken\n{SIZES}", ["model", "mine.Broken"]),
    ("model", f"_target_: mine.Lacking\n{SIZES}".replace(SIZES, ""), ["model", "needed"]),
    ("model", "_target_: torch.nn.Linear\nin_features: 64\n", ["model", "out_features"]),
    ("model", "_target_: builtins.dict\n", ["model", "dict"]),
    ("optimizer", "_target_: torch.optim.SGD\nlr: 0.1\n", ["optimizer._partial_"]),
    ("optimizer", "_target_: torch.optim.SGD\n_partial_: true\nlr: '0.1'\n", ["optimizer.lr=0.1"]),
    ("optimizer", "_target_: torch.optim.SGD\n_partial_: true\nlr: fast\n", ["optimizer.lr=fast"]),
    ("optimizer", "_target_: torch.optim.SGD\n_partial_: true\nlr: true\n", ["optimizer.lr=true"]),
    ("optimizer", "_target_: torch.optim.SGD\n_partial_: true\nlr: -1\n", ["optimizer.lr=-1"]),
    ("optimizer", "_target_: torch.optim.SGD\n_partial_: true\nlr: .inf\n", ["optimizer.lr=inf"]),
    ("optimizer", "_target_: torch.optim.Adam\n_partial_: true\nbetas: 0.9\n", ["optimizer.betas=0.9"]),
    ("optimizer", "_target_: torch.optim.Adam\n_partial_: true\nbetas: [0.9]\n", ["optimizer.betas=[0.9]"]),
    ("optimizer", "_target_: torch.optim.Adam\n_partial_: true\namsgrad: 1\n", ["optimizer.amsgrad=1"]),
    (
        "optimizer",
        "_target_: torch.optim.Adam\n_partial_: true\nlr: ${optimiser.lr}\n",
        ["optimizer.lr", "optimiser.lr"],
    ),
    ("optimizer", "_target_: mine.Model\n_partial_: true\n", ["optimizer"]),
    ("scheduler", "_target_: torch.optim.lr_scheduler.StepLR\nstep_size: 1\n", ["scheduler._partial_"]),
    ("scheduler", "_target_: torch.optim.lr_scheduler.StepLR\n_partial_: true\nstep_size: 1.5\n", ["step_size=1.5"]),
    ("scheduler", "_target_: torch.optim.lr_scheduler.StepLR\n_partial_: true\n", ["scheduler", "step_size"]),
    ("scheduler", "_target_: mine.Model\n_partial_: true\n", ["scheduler"]),
    ("loss", "_target_: torch.nn.CrossEntropyLoss\nlabel_smoothing: much\n", ["loss.label_smoothing=much"]),
    ("loss", "_target_: torch.nn.CrossEntropyLoss\nreduction: sum\n", ["loss.reduction=sum"]),
    ("loss", "_target_: torch.nn.CrossEntropyLoss\nlabel_smoothing: 2\n", ["loss", "label_smoothing"]),
    ("loss", "_target_: mine.Model\n", ["loss"]),
    ("metrics", "accuracy: 5\n", ["metrics.accuracy"]),
    ("metrics", "accuracy:\n  _target_: mine.Model\n", ["metrics.accuracy"]),
    ("metrics", "accuracy:\n  _target_: runner.metrics.Accuracy\n  top_k: 1.5\n", ["metrics.accuracy.top_k=1.5"]),
    ("metrics", "loss:\n  _target_: runner.metrics.Accuracy\n", ["metrics.loss"]),
    ("dataset", DATA + "train:\n  _target_: mine.Labels\n", ["metrics.accuracy"]),
    ("dataset", DATA + "train: 5\n", ["dataset.train"]),
    ("dataset", DATA, ["dataset.train"]),
    ("dataset", DIGITS + "  mean: [0.3]\n  std: [-1.0]\n", ["dataset.train.std=[-1.0]"]),
    ("dataset", DIGITS + "augment: 5\n", ["dataset.augment"]),
    ("dataset", DIGITS + "augment:\n  - _target_: runner.augment.RandomCrop\n    padding: a\n", ["padding=a"]),
    ("dataset", DIGITS + "valsize: 0.2\n", ["dataset.valsize", "val_size"]),
    ("dataset", DIGITS.replace("0.2", "-0.2"), ["dataset", "-0.2"]),
    ("dataset", DIGITS.replace("num_classes: 10", "num_classes: ten"), ["dataset.num_classes=ten"]),
    ("dataset", DIGITS.replace("[1, 8, 8]", "8"), ["dataset.input_shape=8"]),
    ("dataset", DIGITS.replace("[1, 8, 8]", "[1, 8, -8]"), ["dataset.input_shape=[1, 8, -8]"]),
    (
        "dataset",
        DATA + "train:\n  _target_: torchvision.datasets.MNIST\n  root: .\n  transform:\n    _target_: mine.Lacking\n",
        ["dataset.train.transform", "needed"],
    ),
    ("dataloader", "batch_size: 0\n", ["dataloader.batch_size=0"]),
    ("dataloader", "batch_size: '16'\n", ["dataloader.batch_size=16"]),
    ("dataloader", "batch_size: true\n", ["dataloader.batch_size=true"]),
    ("dataloader", "shuffle: 1\n", ["dataloader.shuffle=1"]),
    ("dataloader", "batchsize: 16\n", ["dataloader.batchsize", "batch_size"]),
    ("dataloader", "collate_fn: mine.collate\n", ["dataloader.collate_fn=mine.collate"]),
    ("dataloader", "drop_last: yes please\n", ["dataloader.drop_last=yes please"]),
    ("checkpoint", "every: true\n", ["checkpoint.every=true"]),
    ("checkpoint", "every_minutes: .nan\n", ["checkpoint.every_minutes=nan"]),
    ("checkpoint", "keep: 0\n", ["checkpoint.keep=0"]),
    ("checkpoint", "keep: 1.5\n", ["checkpoint.keep=1.5"]),
    ("checkpoint", "save: some\n", ["checkpoint.save=some"]),
    ("checkpoint", "state_dict: 1\n", ["checkpoint.state_dict=1"]),
    ("device", "type: tpu\n", ["device.type=tpu"]),
    ("device", "type: cpu\nthreads: true\n", ["device.threads=true"]),
    ("device", "type: cpu\nthread: 1\n", ["device.thread", "threads"]),
    ("device", "threads: 1\n", ["device.type"]),
    ("precision", "type: fp8\n", ["precision.type=fp8"]),
    ("precision", "kind: fp32\n", ["precision.kind"]),
    ("experiment", "trainer:\n  epochs: 1\n", ["experiment", "# @package _global_"]),
    ("experiment", "# @package _global_\ndefaults:\n  - optimizer: sgd\n", ["override"]),
    ("experiment", "# @package _global_\ndefaults:\n  - /optimizer: sgd\n", ["override"]),
    ("experiment", "# @package _global_\ndefaults:\n  - override /optimizer: sdg\n", ["optimizer", "sdg"]),
    ("experiment", "# @package _global_\ndefaults:\n  - override /optimiser: sgd\n", ["optimiser"]),
    ("experiment", "# @package _global_\ntrainer:\n  epoch: 1\n", ["trainer.epoch", "epochs"]),
    ("experiment", "# @package _global_\ntrainer:\n  epochs: 0\n", ["trainer.epochs=0"]),
    ("experiment", "# @package _global_\ntrainer:\n  epochs: many\n", ["trainer.epochs=many"]),
    ("experiment", "# @package _global_\ntrainer:\n  log_every: .nan\n", ["trainer.log_every=nan"]),
    ("experiment", "# @package _global_\ntrainer: 5\n", ["trainer"]),
    ("experiment", "# @package _global_\nseed: one\n", ["seed=one"]),
    ("experiment", "# @package _global_\nseed: true\n", ["seed=true"]),
    ("experiment", "# @package _global_\ndeterministic: 1\n", ["deterministic=1"]),
    ("experiment", "# @package _global_\nstrict: 1\n", ["strict=1"]),
    ("experiment", "# @package _global_\ntags: one\n", ["tags=one"]),
    ("experiment", "# @package _global_\noptimizer: null\n", ["optimizer"]),
    ("experiment", "# @package _global_\nlearning_rate: 1\n", ["learning_rate", "optimizer.lr"]),
]


def own_files() -> Iterator[Case]:
    for group, text, named in YAMLS:
        words = ["--config-dir", "conf", f"{group}=own"]
        yield Case("own YAML file", words, named, {f"conf/{group}/own.yaml": text, "mine.py": MODULE})


def every_case(seed: int) -> list[Case]:
    rng = random.Random(seed)
    found = [*by_key(rng), *by_group(rng), *combinations(), *own_files()]
    return list({(tuple(case.words), *case.files.values()): case for case in found}.values())


def sample(cases: list[Case], count: int, seed: int) -> list[Case]:
    """So many of them, with every kind in turn, so that the many mistyped keys do not crowd out the rest."""
    rng = random.Random(seed)
    rng.shuffle(cases)
    kinds: dict[str, list[Case]] = collections.defaultdict(list)
    for case in cases:
        kinds[case.kind].append(case)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*kinds.values()))
    return [case for case in in_turn if case is not None][:count]


def write_files(case: Case, folder: Path) -> None:
    for name, text in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def serve() -> None:
    """A process that has imported everything, and forks for each case that it is told of on stdin."""
    import torch  # noqa: F401
    import torchvision  # noqa: F401
    from sklearn.datasets import load_digits  # noqa: F401

    import runner.job.build
    import runner.sweep.run  # noqa: F401
    from runner.__main__ import main
    from runner.cli import overrides  # noqa: F401

    for line in sys.stdin:
        words, folder = json.loads(line)
        began = time.monotonic()
        if (child := os.fork()) == 0:
            os.chdir(folder)
            os.setsid()
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.path[0] = folder
            sys.argv[1:] = words
            code = 1
            try:
                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        answer: int | str = "hangs"
        usage = None
        while usage is None and time.monotonic() - began < LIMIT:
            pid, status, used = os.wait4(child, os.WNOHANG)
            if pid:
                usage, answer = used, os.waitstatus_to_exitcode(status)
            elif has_trained(Path(folder)):
                answer = "accepted"
                break
            time.sleep(0.01)
        if usage is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            usage = os.wait4(child, 0)[2]
        answer = "accepted" if has_trained(Path(folder)) else answer
        print(json.dumps([answer, round(usage.ru_utime + usage.ru_stime, 3)]), flush=True)


def has_trained(folder: Path) -> bool:
    """Whether a run has begun in the folder."""
    return any("run.json" in files for _, _, files in os.walk(folder))  # unlike rglob, bears folders that go


def ask(servers: "list[subprocess.Popen[str]]", lock: threading.Lock, case: Case) -> None:
    with lock:
        server = servers.pop()
    with tempfile.TemporaryDirectory() as folder:
        write_files(case, Path(folder))
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps([case.words, folder]) + "\n")
        server.stdin.flush()
        code, seconds = json.loads(server.stdout.readline())
        case.answer = {"code": code, "seconds": seconds, "stderr": Path(folder, "stderr").read_text(errors="replace")}
    with lock:
        servers.append(server)


def ask_the_command(case: Case) -> None:
    """The same through a new `python -m runner`; the seconds are all of it, imports too."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(case, Path(folder))
        began, code = time.monotonic(), "hangs"
        command = [sys.executable, "-m", "runner", *case.words]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=4 * LIMIT)
            code = "accepted" if has_trained(Path(folder)) else done.returncode  # type: ignore[assignment]
            case.answer = {"stderr": done.stderr}
        seconds = time.monotonic() - began
        case.answer = {"stderr": "", **case.answer, "code": code, "seconds": seconds, "is_real": True}


def campaign(count: int, real: int = 0, seed: int = 1, jobs: int = 2) -> list[Case]:
    """So many cases with their answers; the last `real` of them by the real command."""
    cases = sample(every_case(seed), count, seed)
    random.Random(seed + 1).shuffle(cases)
    command = [sys.executable, "-m", "benchmarks.wrong_configs", "--serve"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    servers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(jobs)
    ]
    lock = threading.Lock()
    try:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda case: ask(servers, lock, case), cases[: len(cases) - real]))
            list(pool.map(ask_the_command, cases[len(cases) - real :]))
    finally:
        for server in servers:
            server.kill()
            server.wait()
    return cases


def report(cases: list[Case]) -> str:
    """The table, a row a kind, and the rest: what was answered otherwise."""
    lines = ["| wrong in which way | cases | answered in one line that names it |", "| --- | ---: | ---: |"]
    for kind in sorted({case.kind for case in cases}):
        own = [case for case in cases if case.kind == kind]
        lines.append(f"| {kind} | {len(own)} | {sum(not case.faults for case in own)} |")
    good = sum(not case.faults for case in cases)
    lines.append(f"| all | {len(cases)} | {good} ({100 * good / len(cases):.1f} %) |")
    for case in (case for case in cases if case.faults):
        last = (case.answer["stderr"].strip().splitlines() or [""])[-1]
        lines.append(f"- `{' '.join(case.words)}`: {', '.join(case.faults)}: {last[:200]}")
        if case.kind == "own YAML file":
            lines.append(f"      {next(iter(case.files.values()))!r}")
    times = sorted(case.answer["seconds"] for case in cases if not case.answer.get("is_real"))
    if times:
        lines.append(f"own seconds: median {times[len(times) // 2]:.2f}, the longest {times[-1]:.2f}")
    if real := sorted(case.answer["seconds"] for case in cases if case.answer.get("is_real")):
        lines.append(f"the real command, seconds: median {real[len(real) // 2]:.1f}, the longest {real[-1]:.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=420)
    parser.add_argument("--real", type=int, default=10, help="so many of them by the real command")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", help="only this kind")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    began = time.monotonic()
    cases = campaign(arguments.count, arguments.real, arguments.seed)
    print(report(cases))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes, of {len(every_case(arguments.seed))} cases in all")


if __name__ == "__main__":
    main()
