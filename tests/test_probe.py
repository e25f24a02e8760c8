"""Two examples go through all parts before a run begins: what does not fit is said, and nothing is changed by it."""

import sys

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import runner
from runner.errors import InputError


class Pictures(Dataset):
    """Images with a target of any kind."""

    is_deterministic = True

    def __init__(self, kind):
        self.kind = kind

    def __len__(self):
        return 40

    def __getitem__(self, i):
        image = torch.full((1, 6, 6), i / 40)
        return image, {"mask": (image[0] > 0.5).long(), "number": image[0, 0], "class": i % 2}[self.kind]


SEEN: list[tuple[float, ...]] = []


class Moody(nn.Module):
    """A model that counts its calls, in a number, a tensor, a list, and buffers of both kinds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(36, 2)
        self.calls, self.kept, self.several = 0, torch.zeros(1), [0, torch.zeros(1)]
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x):
        self.calls += 1
        self.kept += 1
        self.several[0] += 1
        self.several[1] += 1
        self.count = self.count + 1
        self.cache = torch.ones(3) if self.cache is None else self.cache + 1
        self.late = self.calls
        now = (
            self.calls,
            float(self.kept),
            self.several[0],
            float(self.several[1]),
            float(self.count),
            len(self.cache),
        )
        SEEN.append((*now, float(self.cache[0])))
        return self.layer(x.flatten(1))


def line():
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 6))


class Throwing:
    higher_is_better = True

    def update(self, output, target):
        raise RuntimeError("only for pairs")

    def compute(self):
        return 0.0

    def reset(self): ...


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    monkeypatch.setitem(sys.modules, "test_probe", sys.modules[__name__])


def words(kind, model, loss):
    dataset = f"{{train: {{_target_: test_probe.Pictures, kind: {kind}}}, test: null, val_size: 8, test_size: 8}}"
    return [
        *("~dataset", f"+dataset={dataset}", "~model", f"+model={model}", "~loss", f"+loss={loss}"),
        *("trainer.epochs=1", "device.threads=1", "quiet=true"),
    ]


CONV = "{_target_: torch.nn.Conv2d, in_channels: 1, out_channels: 3, kernel_size: 1}"
CROSS_ENTROPY = "{_target_: torch.nn.CrossEntropyLoss}"
LINE = "{_target_: test_probe.line}"


@pytest.mark.parametrize(
    ("given", "shapes"),
    [
        (words("mask", CONV, CROSS_ENTROPY), ["[2, 3, 6, 6]", "[2, 6, 6] of int64"]),
        (words("number", LINE, "{_target_: torch.nn.MSELoss}"), ["[2, 6]", "[2, 6] of float32"]),
    ],
)
def test_the_default_accuracy_refuses_what_it_is_not_for_before_training(given, shapes, tmp_path):
    with pytest.raises(InputError, match="^metrics.accuracy: ") as told:
        runner.run(given, run_dir=tmp_path / "run")
    assert all(shape in str(told.value) for shape in shapes)
    assert not (tmp_path / "run" / "run.json").exists()
    record = runner.run([*given, "~metrics.accuracy", "trainer.monitor=val/loss"], run_dir=tmp_path / "run")
    assert record["state"] == "done" and list(record["test"]["best"]) == ["loss"]


def test_a_metric_that_refuses_an_example_is_named(tmp_path):
    given = words("class", LINE, CROSS_ENTROPY)
    with pytest.raises(InputError, match="^metrics.it: test_probe.Throwing: only for pairs"):
        runner.run([*given, "+metrics.it={_target_: test_probe.Throwing}"], run_dir=tmp_path / "run")


def test_nothing_of_the_probe_is_left_in_the_model(tmp_path):
    SEEN.clear()
    runner.run(words("class", "{_target_: test_probe.Moody}", CROSS_ENTROPY), run_dir=tmp_path / "run")
    first, second, third = ((n, float(n), n, float(n), float(n), 3, float(n)) for n in (1, 2, 3))
    # two looks before training, of two and of three batches (in train mode, in eval mode, several); then training
    assert SEEN[:7] == [first, second, first, second, third, first, second]


def test_a_loss_that_is_no_mean_over_examples_is_said_once(tmp_path, monkeypatch, caplog):
    def loss(output, target):
        return nn.functional.cross_entropy(output, target, torch.tensor([1.0, 10, 3, 4, 5, 6]))

    monkeypatch.setattr(sys.modules[__name__], "made_loss", loss, raising=False)
    given = words("class", LINE, "{_target_: test_probe.made_loss}")
    runner.run(given, run_dir=tmp_path / "run")
    assert caplog.text.count("does not follow from the loss of each") == 1
    caplog.clear()
    loss.size = lambda output, target: torch.tensor([1.0, 10, 3, 4, 5, 6])[target].sum()
    runner.run(given, run_dir=tmp_path / "said")
    assert "does not follow" not in caplog.text


@pytest.mark.parametrize("size", ["-1", "torch.ones(2)", "'three'"])
def test_a_size_that_is_no_size_is_refused(size, tmp_path, monkeypatch):
    def loss(output, target):
        return nn.functional.cross_entropy(output, target)

    loss.size = lambda output, target: eval(size)
    monkeypatch.setattr(sys.modules[__name__], "made_loss", loss, raising=False)
    with pytest.raises(InputError, match="loss: size.output, target. must give one number"):
        runner.run(words("class", LINE, "{_target_: test_probe.made_loss}"), run_dir=tmp_path / "run")
