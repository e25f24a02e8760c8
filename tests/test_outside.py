"""Adding to the project from outside: YAML in a user's folder, Python in a user's module, nothing edited here."""

import json

import pytest

import runner

MODULE = '''
import torch
from torch.utils.data import Dataset

class Stripes(Dataset):
    """Horizontal or vertical stripes under noise."""
    def __init__(self, size, noise=0.1):
        self.size, self.noise = size, noise
        self.targets = [i % 2 for i in range(size)]
    def __len__(self):
        return self.size
    def __getitem__(self, i):
        stripe = torch.tensor([0.0, 1.0]).repeat(4)
        image = stripe.expand(8, 8) if i % 2 else stripe.unsqueeze(1).expand(8, 8)
        return (image + self.noise * torch.randn(8, 8)).unsqueeze(0), i % 2

class Tiny(torch.nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(width, num_classes))
    def forward(self, x):
        return self.layers(x)

def margin(output, target, gap=1.0):
    return torch.nn.functional.multi_margin_loss(output, target, margin=gap)

def collate(samples, scale):
    data, targets = zip(*samples)
    return torch.stack(data) * scale, torch.tensor(targets)

def halve(count):
    return 0.5 ** count
'''
FILES = {
    "dataset/stripes.yaml": """
input_shape: [1, 8, 8]
num_classes: 2
val_size: 0.25
test_size: 0.25
train: {_target_: mine.Stripes, size: 80, noise: 0.2}
""",
    "model/tiny.yaml": "{_target_: mine.Tiny, width: 64, num_classes: '${dataset.num_classes}'}",
    "loss/margin.yaml": "{_target_: mine.margin, gap: 2.0}",
    "scheduler/step.yaml": "{_target_: mine.theirs, _partial_: true, interval: epoch}",
    "experiment/stripes.yaml": """
# @package _global_
defaults:
  - override /dataset: stripes
  - override /model: tiny
  - override /loss: margin
  - override /optimizer: adam
optimizer:
  lr: 0.1
dataloader:
  collate_fn: {_target_: mine.collate, scale: 2.0}
  num_workers: 1
trainer:
  epochs: 3
  monitor: val/loss
""",
}


@pytest.fixture
def project(cli):
    (cli.cwd / "mine.py").write_text(
        MODULE + "\ndef theirs(optimizer):\n    return torch.optim.lr_scheduler.LambdaLR(optimizer, halve)\n"
    )
    for name, text in FILES.items():
        path = cli.cwd / "myconf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return cli


def test_a_dataset_model_loss_and_experiment_of_the_users_own_work(project):
    done = project("--config-dir", "myconf", "experiment=stripes", "device.threads=1", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    record = json.loads((project.cwd / "run" / "run.json").read_text())
    assert record["examples"] == {"train": 45, "val": 15, "test": 20}
    assert record["test"]["best"]["accuracy"] == 1.0
    assert record["config"]["loss"] == {"_target_": "mine.margin", "gap": 2.0}
    again = project("evaluate", "run")
    assert again.stdout.splitlines()[0] == f"test/loss: {record['test']['best']['loss']!r}"


@pytest.mark.slow
def test_a_users_file_of_the_same_name_wins_and_the_log_says_so(project):
    done = project("--config-dir", "myconf", "experiment=stripes", "device.threads=1", "hydra.run.dir=run")
    assert "myconf/scheduler/step.yaml is used in place of the packaged file" in done.stdout
    rows = [json.loads(line) for line in (project.cwd / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [0.1, 0.05, 0.025]
    shown = project("--config-dir", "myconf", "--help")
    assert "stripes" in shown.stdout and "margin" in shown.stdout
    composed = project("--config-dir", "myconf", "--cfg", "job", "-p", "scheduler")
    assert "mine.theirs" in composed.stdout


def test_the_users_folder_works_from_python_too(project, monkeypatch):
    monkeypatch.syspath_prepend(str(project.cwd))
    record = runner.run(["experiment=stripes"], run_dir="run", config_dir="myconf")
    assert record["state"] == "done"


def test_a_torchmetrics_metric_by_target_just_works(tmp_path):
    pytest.importorskip("torchmetrics", reason="the optional extra [metrics]")
    words = ["+metrics.f1={_target_: torchmetrics.classification.MulticlassF1Score, num_classes: 10}"]
    runner.run([*words, "trainer.dry_run=true"], run_dir=tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert "val/f1" in row and "train/f1" in row


def test_lr_lambda_takes_a_function_of_the_users_own(project, monkeypatch):
    monkeypatch.syspath_prepend(str(project.cwd))
    words = ["scheduler=lambda", "scheduler.lr_lambda={_target_: mine.halve}", "trainer.epochs=2"]
    runner.run(words, run_dir="run")
    rows = [json.loads(line) for line in (project.cwd / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [1.0, 0.5]
