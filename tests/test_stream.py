"""Iterable datasets: with a state they are resumed exactly, also inside an epoch; without one they are refused."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset, default_collate

import runner
from conftest import killed_after
from runner.batches.parts import Stream
from runner.batches.stream import StreamLoader
from runner.errors import InputError
from runner.job.resuming import resume
from test_tasks import assert_equal, final


class Counted(IterableDataset):
    """Samples 0, 1, 2, ... with noise of the global generator and of one of its own."""

    def __init__(self, size=50, keeps="dataset"):
        self.size, self.at = size, 0
        self.generator = torch.Generator().manual_seed(3)
        if keeps == "nothing":
            self.state_dict = self.load_state_dict = None
        if keeps == "too-little":
            self.state_dict = lambda: {"at": self.at}
            self.load_state_dict = lambda state: setattr(self, "at", state["at"])
        if keeps == "an-object":
            self.state_dict = lambda: {"at": self.at, "generator": self.generator}

    def __iter__(self):
        while self.at < self.size:
            self.at += 1
            own = torch.rand((), generator=self.generator)
            image = torch.full((1, 8, 8), float(self.at)) + torch.rand(1, 8, 8)
            yield image, int(own * 10)
        self.at = 0

    def state_dict(self):
        return {"at": self.at, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.at = state["at"]
        self.generator.set_state(state["generator"])


class ByIterator(IterableDataset):
    """Keeps its place in the iterator that it gives, as torchdata takes it too."""

    def __iter__(self):
        return Place()


class Place:
    at = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.at == 40:
            raise StopIteration
        self.at += 1
        return torch.full((1, 8, 8), float(self.at)), self.at % 10

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


class Empty(Counted):
    def __iter__(self):
        return iter(())


def words(name="Counted", **keys):
    target = [f"+dataset.train.{key}={value}" for key, value in keys.items()]
    without = [f"~dataset.{key}" for key in ("train.mean", "train.std", "mean", "std")]
    return [
        *(
            *without,
            f"dataset.train._target_={__name__}.{name}",
            *target,
            "dataset.val_size=0",
            "dataset.test_size=0",
            "model=mlp",
        ),
        *("model.hidden=[4]", "dataloader.shuffle=false", "trainer.limit_batches=7", "dataloader.batch_size=4"),
        *("trainer.epochs=3", "device=cpu", "quiet=true", "trainer.monitor=train/loss"),
    ]


def taken(loader, epoch=0, start=0):
    return [batch[0].flatten().tolist() for batch in loader.batches(epoch, start)]


@pytest.mark.parametrize("dataset", [Counted, ByIterator])
def test_from_every_place_the_same_batches_follow(dataset):
    whole = StreamLoader(Stream(dataset()), 4, 5, seed=1)
    batches = [taken(whole, epoch) for epoch in range(6)]  # more than the stream has: it begins again
    assert len({len(epoch) for epoch in batches}) == 1
    for stop in range(1, 6 * 5):
        one, two = (StreamLoader(Stream(dataset()), 4, 5, seed=1) for _ in range(2))
        seen = 0
        for epoch in range(6):
            for _ in one.batches(epoch):
                seen += 1
                if seen == stop:
                    break
            if seen == stop:
                break
        two.load_state_dict(one.state_dict())
        assert taken(two, epoch, stop - 5 * epoch) == batches[epoch][stop - 5 * epoch :]


def test_looking_at_examples_moves_nothing_and_what_the_model_draws_neither():
    one, two = (StreamLoader(Stream(Counted()), 4, 5, seed=1) for _ in range(2))
    one.examples(3)
    first = []
    for batch in one.batches():
        torch.rand(100)
        first.append(batch[0].flatten().tolist())
    before = torch.get_rng_state()
    assert first == taken(two)
    assert torch.equal(before, torch.get_rng_state())


def test_an_evaluated_stream_begins_anew_each_time():
    loader = StreamLoader(Stream(Counted()), 4, 5, seed=1, is_restarted=True)
    assert taken(loader) == taken(loader)


@pytest.mark.parametrize("stop", [3, 7, 10, 20])
def test_a_killed_run_on_a_stream_goes_on_exactly(stop, monkeypatch):
    given = [*words(), "checkpoint.every_batches=2", "+dataset.val=${dataset.train}"]
    record = runner.run(given, run_dir="whole")
    assert record["examples"] == {"train": None, "val": None}
    killed_after(stop, monkeypatch, lambda: runner.run(given, run_dir="killed"))
    resume(Path("killed"), [])
    assert_equal(final("whole"), final("killed"))


BAD = [
    (words(keeps="nothing"), "dataset.train: Counted is iterable and has no state_dict"),
    (words(keeps="too-little"), "state_dict.. of Counted does not lead to the samples that follow it"),
    (words(keeps="an-object"), "the state_dict.. of Counted holds a Generator"),
    (words("Empty"), "dataset: Empty gives no sample"),
    ([*words(), "trainer.limit_batches=null"], "trainer.limit_batches=null: .*Counted is iterable and has no length"),
    ([*words(), "dataloader.shuffle=true"], "dataloader.shuffle=true: .*Counted is iterable"),
    ([*words(), "dataloader.num_workers=2"], "dataloader.num_workers=2: .*read in the run's own process"),
    ([*words(), "dataloader.placement=memory"], "dataloader.placement=memory: .*is iterable"),
    ([*words(), "dataset.val_size=0.1"], "dataset.val_size=0.1: nothing can be held out of an iterable"),
    ([*words(), "dataset.test_size=5"], "dataset.test_size=5: nothing can be held out of an iterable"),
    ([*words(), "dataset.num_classes=null"], "dataset.num_classes=null"),
    ([*words(), "dataset.augment=[{_target_: runner.augment.RandomHorizontalFlip}]"], "dataset.augment"),
]


@pytest.mark.parametrize(("given", "expected"), BAD, ids=[" ".join(given[-1:])[:40] for given, _ in BAD])
def test_a_stream_that_could_not_be_resumed_is_refused(given, expected):
    with pytest.raises(InputError, match=expected):
        runner.run(given, run_dir="run")
    assert not Path("run/run.json").exists()


def test_batches_are_what_the_collate_function_makes():
    loader = StreamLoader(Stream(Counted()), 3, 2, collate_fn=lambda samples: default_collate(samples)[0])
    assert next(loader.batches()).shape == (3, 1, 8, 8)
