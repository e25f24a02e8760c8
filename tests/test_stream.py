"""Iterable datasets: with a state they are resumed exactly, also inside an epoch; without one they are refused."""

import random
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset, default_collate

import runner
from conftest import killed_after
from runner.__main__ import dispatch
from runner.batches.parts import Stream
from runner.batches.stream import StreamLoader
from runner.config.compose import compose
from runner.errors import InputError
from runner.job.build import build
from runner.job.resuming import resume
from runner.sweep.combine import task_config
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


class Late(IterableDataset):
    """As Hugging Face's: a state is taken when an iteration begins, and until then state_dict() gives the one before.

    Args:
        buffer: samples that are shuffled together, which the state does not hold.
        reshuffles: each pass has an order of its own, by a count of passes that the state does not hold.
    """

    def __init__(self, size=100, buffer=1, reshuffles=False):
        self.size, self.buffer, self.reshuffles, self.passes = size, buffer, reshuffles, 0
        self.start = self.now = {"at": 0}

    def __iter__(self):
        self.now, waiting, order = dict(self.start), [], random.Random(self.passes if self.reshuffles else 0)
        shift = order.randrange(self.size) if self.reshuffles else 0
        while self.now["at"] < self.size:
            waiting.append((self.now["at"] + shift) % self.size)
            self.now["at"] += 1
            if len(waiting) >= self.buffer:
                yield self.sample(waiting.pop(order.randrange(len(waiting))))
        for number in waiting:
            yield self.sample(number)
        self.passes += 1

    def sample(self, number):
        return torch.full((1, 8, 8), float(number)), number % 10

    def state_dict(self):
        return dict(self.now)

    def load_state_dict(self, state):
        self.start = state


class Restarting(Late):
    """Gives itself as its iterator, which begins at the front when it is asked for."""

    def __iter__(self):
        self.now = {"at": 0}
        return self

    def __next__(self):
        if self.now["at"] == self.size:
            raise StopIteration
        self.now["at"] += 1
        return self.sample(self.now["at"] - 1)

    def load_state_dict(self, state):
        self.now = dict(state)


class InBlocks(Late):
    """Shuffles each block of 512 anew, exactly inside the first one: the generator of the later ones is in no state."""

    def __iter__(self):
        self.now, order = dict(self.start), random.Random(3)
        for block in range(self.now["at"] // 512, -(-self.size // 512)):
            numbers = order.sample(range(block * 512, block * 512 + 512), 512)
            for number in numbers[self.now["at"] % 512 :]:
                self.now["at"] += 1
                yield self.sample(number)


class Relative(Late):
    """Counts from where this iteration began: a first stop is exact, a second one is not."""

    def __iter__(self):
        for number in range(self.start["at"], self.size):
            self.now = {"at": number + 1 - self.start["at"]}
            yield self.sample(number)


class NotBegun(Late):
    """Has no state before its first sample."""

    def state_dict(self):
        if self.now["at"] == 0:
            raise RuntimeError("nothing was read")
        return super().state_dict()


class Buffered(Late):
    """A shuffle buffer that is in the state, with its generator."""

    def __iter__(self):
        order, start = random.Random(0), self.start
        self.now = {"waiting": [], "order": order.getstate(), **start}
        order.setstate(self.now["order"])
        while self.now["at"] < self.size or self.now["waiting"]:
            waiting = self.now["waiting"] = [*self.now["waiting"]]
            while self.now["at"] < self.size and len(waiting) < 16:
                waiting.append(self.now["at"])
                self.now["at"] += 1
            number = waiting.pop(order.randrange(len(waiting)))
            self.now["order"] = order.getstate()
            yield self.sample(number)


class Sized(Late):
    """Tells how many it gives."""

    def __len__(self):
        return self.size


def numbers():
    yield from range(10)


class Unsaved(IterableDataset):
    """torch's own, with a length and no state."""

    def __len__(self):
        return 10

    def __iter__(self):
        return iter(range(10))


class OnlyIterable:
    """Neither torch's, nor by index, though it has the name of the method."""

    def __init__(self, size=30):
        self.late = Sized(size)
        self.state_dict, self.load_state_dict = self.late.state_dict, self.late.load_state_dict

    def __len__(self):
        return self.late.size

    def __iter__(self):
        return iter(self.late)

    def __getitem__(self, index):
        raise NotImplementedError


class Endless(Late):
    def __iter__(self):
        while True:
            yield from super().__iter__()
            self.start = {"at": 0}


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


@pytest.mark.parametrize("dataset", [Counted, ByIterator, lambda: Late(40), lambda: Restarting(40), Sized])
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


def trained_on(*given, epochs=1):
    loader = build(task_config(compose([*given], None)[1]), is_new=True).trainer.train_loader
    return [[int(image[0, 0, 0]) for data, _ in loader.batches(epoch) for image in data] for epoch in range(epochs)]


@pytest.mark.parametrize("name", ["Late", "Restarting", "OnlyIterable"])
def test_the_first_pass_begins_at_the_first_example_and_so_does_each_later_one(name):
    given = [*words(name, size=28), "trainer.limit_batches=7"]
    assert trained_on(*given, epochs=3) == [list(range(28))] * 3


def test_a_job_whose_parts_were_looked_at_with_another_begins_at_the_first_example_too():
    given = [task_config(compose([*words("Late"), f"seed={seed}"], None)[1]) for seed in (1, 2)]
    parts = build(given[0], is_new=True).parts
    first = build(given[1], is_new=True, parts=parts).trainer.train_loader
    assert next(first.batches())[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    again = build(given[1], is_new=True, parts=parts).trainer.train_loader
    assert next(again.batches())[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["Sized", "OnlyIterable"])
def test_an_epoch_of_a_stream_with_a_length_is_a_pass_with_a_short_last_batch(name):
    given = [*words(name, size=30), "trainer.limit_batches=null"]
    assert trained_on(*given, epochs=2) == [list(range(30))] * 2
    record = runner.run(given, run_dir="run")
    assert record["config"]["derived"]["batches_per_epoch"] == 8
    assert trained_on(*given, "dataloader.drop_last=true") == [list(range(28))]
    assert trained_on(*given, "trainer.limit_batches=2", epochs=2) == [list(range(8)), list(range(8, 16))]


def target(name, size=None):
    return f"{{_target_: {__name__}.{name}{'' if size is None else f', size: {size}'}}}"


@pytest.mark.parametrize("name", ["Late", "Restarting", "Sized", "ByIterator"])
@pytest.mark.parametrize("eval_batch_size", [4, 7, 1000])
def test_a_finite_stream_is_evaluated_to_its_end_each_example_once(name, eval_batch_size, capsys):
    """Whatever the batches: the limit of training is its own, and the examples are those that `evaluate` sees."""
    size = 40 if name == "ByIterator" else 27
    given = [*words("Late"), "trainer.limit_batches=2", "dataloader.shuffle=false", "trainer.monitor=val/loss"]
    given += [f"+dataset.val={target(name, None if name == 'ByIterator' else size)}", "trainer.epochs=2"]
    last = runner.run([*given, f"dataloader.eval_batch_size={eval_batch_size}"], run_dir="run")["last"]
    assert float(last["val/accuracy"] * size).is_integer()
    dispatch(["evaluate", "run", "--split", "val", "--which", "last", "--confusion"])
    said = capsys.readouterr().out
    assert f"val/loss: {last['val/loss']!r}\n" in said
    assert f"val/accuracy: {last['val/accuracy']!r}\n" in said
    assert (
        sum(
            int(line.rsplit(" ", 1)[1][:-1])
            for line in said.splitlines()
            if line.endswith(")") and " of " in line and line[:9].strip().isdigit()
        )
        == size
    )


def test_a_stream_of_examples_is_evaluated_as_the_same_examples_by_index():
    given = ["trainer.monitor=val/loss", "dataloader.eval_batch_size=4", "+dataset.val=" + target("Late", 7)]
    stream = runner.run([*words("Late"), *given, "trainer.limit_batches=3"], run_dir="stream")
    given[-1] = "+dataset.val=" + target("ByIndex", 7)
    by_index = runner.run([*words("Late"), *given, "trainer.limit_batches=3"], run_dir="by_index")
    assert stream["last"] == by_index["last"]


def test_evaluation_has_a_limit_of_its_own():
    given = [*words("Late"), "trainer.monitor=val/loss", "dataloader.eval_batch_size=4", "trainer.limit_batches=2"]
    for name, batches, size in (("Endless", 3, 12), ("Late", 3, 12), ("ByIndex", 4, 16)):
        limit = [f"+dataset.val={target(name)}", f"trainer.limit_eval_batches={batches}"]
        made = build(task_config(compose([*given, *limit], None)[1]), is_new=True).trainer
        assert [int(data[0, 0, 0, 0]) for data, _ in made.eval_loaders["val"].batches()] == [*range(0, size, 4)]
        assert len(made.train_loader) == 2


class ByIndex(Dataset):
    def __init__(self, size=100):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return Late().sample(index)

    def __iter__(self):
        return (self[index] for index in range(self.size))


@pytest.mark.parametrize("name", ["Counted", "Late", "Sized", "Buffered"])
@pytest.mark.parametrize(
    "stop", [pytest.param(stop, marks=pytest.mark.slow if stop != 7 else ()) for stop in (3, 7, 10, 20)]
)
def test_a_killed_run_on_a_stream_goes_on_exactly(stop, name, monkeypatch):
    given = [*words(name, size=50), "checkpoint.every_batches=2", "+dataset.val=${dataset.train}"]
    record = runner.run(given, run_dir="whole")
    assert record["examples"] == {"train": None, "val": None}
    killed_after(stop, monkeypatch, lambda: runner.run(given, run_dir="killed"))
    resume(Path("killed"), [])
    assert_equal(final("whole"), final("killed"))


NOT_LEADING = "does not lead to the samples that follow it"
BAD = [
    (words("Late", size=100, buffer=16), NOT_LEADING),
    (words("Late", size=3000, buffer=1000), NOT_LEADING),
    (words("Late", size=30, buffer=100), NOT_LEADING),
    (words("Late", size=300, reshuffles=True), NOT_LEADING),
    (words("Relative", size=100), NOT_LEADING),
    (words("NotBegun"), "dataset.train: NotBegun, .* gives RuntimeError: nothing was read"),
    (words("InBlocks", size=5120), NOT_LEADING),
    ([*words(), f"+dataset.val={{_target_: {__name__}.Late, buffer: 16}}"], f"dataset.val: .*{NOT_LEADING}"),
    ([*words(), f"+dataset.val={{_target_: {__name__}.Endless}}"], "trainer.limit_eval_batches=null: Endless"),
    (words("numbers"), "dataset.train: generator is iterable and has no state_dict"),
    (words("Unsaved"), "dataset.train: Unsaved is iterable and has no state_dict"),
    ([*words(), "trainer.limit_eval_batches=0"], "trainer.limit_eval_batches=0"),
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
