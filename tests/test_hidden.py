"""What modules keep outside their state_dict(): it is saved, or said; and a probe puts it back."""

import logging
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

import runner
from runner.storage.checkpoint import Checkpoints, load
from runner.tasks import Supervised
from runner.train import hidden
from runner.train.weights import load_weights, weights_of
from test_trainer import Interrupted, StopAfter, assert_equal_states, make, rows_of


class Hiding(nn.Module):
    """A model with a running mean, a growing memory and a late cache in buffers that state_dict() leaves out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(36, 4)
        self.register_buffer("mean", torch.zeros(36), persistent=False)
        self.register_buffer("memory", torch.zeros(0, 4), persistent=False)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
            self.memory = torch.cat([self.memory, self.layer(x[:1]).detach()])
            self.cache = x.detach().mean(0) if self.cache is None else self.cache * 0.9
        output = self.layer(x - self.mean)
        return output if self.cache is None else output + self.memory.mean(0) + self.cache.mean()


@pytest.mark.parametrize("looks", [2, 5, 7, 13, 16])
def test_buffers_that_the_state_dict_leaves_out_are_in_the_checkpoint(tmp_path, looks):
    whole = make(tmp_path / "whole", model=Hiding())
    expected = rows_of(whole)
    whole.fit()
    stopped = make(tmp_path / "stopped", model=Hiding(), stop=StopAfter(looks))
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed = make(tmp_path / "stopped", model=Hiding())
    after = rows_of(resumed)
    resumed.state.load_state_dict(load(tmp_path / "stopped" / "checkpoints" / "last.pt"))
    resumed.fit()
    assert after == expected[len(expected) - len(after) :]
    states = [load(tmp_path / run / "checkpoints" / "last.pt") for run in ("whole", "stopped")]
    assert_equal_states(*states)
    assert sorted(states[0]["unsaved_buffers"]) == ["model.cache", "model.mean", "model.memory"]
    assert states[0]["unsaved_buffers"]["model.memory"].shape == (18, 4)


@pytest.mark.parametrize("saved", [True, False])
def test_they_are_part_of_the_best(tmp_path, saved):
    trainer = make(tmp_path if saved else None, model=Hiding(), lr=0.02)
    seen = []
    trainer.listeners.epoch.append(lambda end: seen.append(end.metrics["val/loss"]))
    trainer.fit()
    last = {k: v.clone() for k, v in hidden.buffers(trainer.task).items()}
    trainer.state.progress = trainer.progress.__class__(**{**vars(trainer.progress), "epoch": 99})
    results = trainer.test(trainer.eval_loaders["val"])
    assert results["best"]["loss"] == seen[trainer.progress.best_epoch - 1]
    assert_equal_states(last, hidden.buffers(trainer.task))


def test_buffers_of_any_kind_are_put_back():
    def task(value):
        model = nn.Linear(2, 2)
        model.register_buffer("wide", value.expand(3), persistent=False)  # cannot be written in place
        model.register_buffer("odd", torch.tensor([torch.nan, 1.0]), persistent=False)
        return Supervised(model, None)

    one, two = task(torch.ones(1)), task(torch.zeros(1))
    with hidden.untouched(one):
        pass
    for saved in (hidden.buffers(one), hidden.buffers(one)):
        load_weights(two, {**weights_of(two), "unsaved_buffers": saved})
        assert two.model.wide.tolist() == [1, 1, 1] and list(two.model.state_dict()) == ["weight", "bias"]
    one.model.not_a_buffer = torch.tensor([torch.nan])
    assert hidden.changed(hidden.attributes(one), one) == []


def test_a_run_with_such_buffers_opens_with_them(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "test_hidden", sys.modules[__name__])
    words = ["~model", "+model={_target_: test_hidden.Hiding}", "dataset=fake", "dataset.input_shape=[1,6,6]"]
    words += ["dataset.num_classes=4", "device.threads=1", "quiet=true", "trainer.epochs=1", "dataset.train_size=100"]
    runner.run(words, run_dir=tmp_path / "run")
    model = runner.load_model(tmp_path / "run")
    assert len(model.memory) == 5 and model.cache is not None and bool(model.mean.any())


def test_a_model_without_such_buffers_has_the_keys_of_before():
    trainer = make(epochs=1)
    trainer.fit()
    assert "unsaved_buffers" not in trainer.state.state_dict()
    assert not {key for key in trainer.state.state_dict() if key.startswith("best_")} - {"best_model_state_dict"}


class Plain(nn.Module):
    """A layer with a plain attribute of a kind, which training changes, or not."""

    def __init__(self, kind="number", is_changing=True):
        super().__init__()
        self.layer, self.is_changing, self.kind = nn.Linear(36, 4), is_changing, kind
        self.it = {
            "number": 0,
            "tensor": torch.zeros(3),
            "list": [1, torch.zeros(2)],
            "dict": {"a": 0.5},
            "array": np.zeros(2),
            "deque": deque([1.0], maxlen=3),
            "generator": torch.Generator().manual_seed(3),
            "none": None,
        }[kind]

    def forward(self, x):
        if self.training and self.is_changing:
            match self.kind:
                case "number":
                    self.it += 1
                case "tensor" | "array":
                    self.it += 1
                case "list":
                    self.it[1] += 1
                case "dict":
                    self.it["a"] += 1
                case "deque":
                    self.it.append(2.0)
                case "generator":
                    torch.rand(1, generator=self.it)
                case "none":
                    self.it = x.detach()
        return self.layer(x.flatten(1))


KINDS = ("number", "tensor", "list", "dict", "array", "deque", "generator", "none")


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_attribute_that_training_changes_is_said_once(tmp_path, kind, caplog):
    trainer = make(tmp_path, model=nn.Sequential(Plain(kind)))
    trainer.fit()
    lines = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(lines) == 1
    assert "model.0.it changes in training" in lines[0] and "self.register_buffer('it'" in lines[0]


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_does_not_change_is_not(tmp_path, kind, caplog):
    make(tmp_path, model=Plain(kind, is_changing=False)).fit()
    make(None, model=Plain(kind), checkpoints=Checkpoints(save="none")).fit()  # nothing is saved: nothing to resume
    assert not caplog.records


class Caching(nn.Module):
    """What later batches do not depend on: it is worked out once, by shape, or moved to another format."""

    def __init__(self):
        super().__init__()
        self.layer, self.mask, self.by_shape, self.anchors = nn.Linear(36, 4), None, {}, [torch.arange(3.0)]

    def forward(self, x):
        self.mask = torch.ones(36) if self.mask is None else self.mask
        self.by_shape.setdefault(x.shape[-1], torch.zeros(x.shape[-1]))
        self.anchors = [anchor.to(torch.bfloat16) for anchor in self.anchors]
        return self.layer(x.flatten(1) * self.mask)


def test_a_cache_is_not_said(tmp_path, caplog):
    make(tmp_path, model=Caching()).fit()
    assert not caplog.records


class Keeping(Plain):
    """It keeps its number in the checkpoints itself."""

    def get_extra_state(self):
        return self.it

    def set_extra_state(self, state):
        self.it = state


def test_what_a_module_keeps_in_its_extra_state_is_not_said(tmp_path, caplog):
    make(tmp_path, model=Keeping()).fit()
    assert not caplog.records


class Many(nn.Module):
    """Torch's own layers that keep something of their own."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.weighed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.out = nn.Sequential(nn.Dropout(0.1), nn.Linear(8, 4))

    def forward(self, x):
        x, _ = self.lstm(x.flatten(1).view(-1, 6, 6))
        x, _ = self.attention(x, x, x)
        return self.out(self.weighed(self.spectral(self.norm(x.mean(1)))))


def test_torchs_own_layers_say_nothing(tmp_path, caplog):
    trainer = make(tmp_path, model=Many())
    trainer.fit()
    assert not caplog.records
    assert trainer.progress.epoch == 3


class Counting(nn.Module):
    """A loss that counts in a plain attribute."""

    count = 0

    def forward(self, output, target):
        self.count = self.count + 1
        return nn.functional.cross_entropy(output, target)


def test_that_of_a_loss_is_said_as_the_losss(tmp_path, caplog):
    make(tmp_path, loss=Counting()).fit()
    assert "loss.count changes in training" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_body_changes_is_put_back(kind):
    task = Supervised(Plain(kind), Counting())
    before, was = hidden.attributes(task), task.model.it
    with torch.no_grad(), hidden.untouched(task):
        task.train()
        task.criterion.eval()
        task((torch.ones(2, 1, 6, 6), torch.arange(2)))
        assert hidden.changed(dict(before), task) or kind == "none"
    assert not hidden.changed(before, task) and task.criterion.training
    assert task.model.it is was


def test_buffers_that_a_body_changes_are_put_back():
    task = Supervised(Hiding(), Counting())
    with torch.no_grad(), hidden.untouched(task):
        task((torch.ones(2, 1, 6, 6), torch.arange(2)))
        assert task.model.cache is not None
    assert task.model.cache is None and len(task.model.memory) == 0 and not task.model.mean.any()
    assert "count" not in vars(task.criterion)


def test_a_buffer_of_a_module_that_is_gone_is_left_out_and_the_next_is_put_back():
    module = nn.Linear(2, 2)
    module.register_buffer("mean", torch.zeros(1), persistent=False)
    hidden.load_buffers(module, {"gone.mean": torch.ones(1), "mean": torch.ones(1)})
    assert module.mean.tolist() == [1]


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), True),
        (np.array([1]), np.array([1.0]), False),
        ([1], 2, False),
        (np.array([1]), [1], False),
        ([1], np.array([1]), False),
        (2, [1], False),
        ({"a": [1]}, {"a": [1]}, True),
        (float("nan"), float("nan"), True),
    ],
)
def test_two_copies_are_the_same_or_not(one, two, same):
    assert hidden.is_same(one, two) is same
