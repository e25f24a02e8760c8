"""A dataset, transform or collate function that keeps a generator of its own is refused; other state is warned of."""

import functools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, default_collate

import runner
from runner.batches.own_state import generators_in, put_back, state_of
from runner.batches.settings import LoaderSettings
from runner.data import Digits
from runner.errors import InputError
from runner.job.resuming import resume

FAST = ["trainer.limit_batches=3", "trainer.epochs=2", "device.threads=1", "quiet=true"]
OF_THE_MODULE = np.random.default_rng(0)

MADE = {
    "torch": torch.Generator,
    "numpy": np.random.default_rng,
    "legacy": np.random.RandomState,
    "bits": lambda: np.random.Generator(np.random.PCG64(3)),
    "python": random.Random,
}
NAMES = {
    "torch": "torch.Generator",
    "numpy": "numpy.random.Generator",
    "legacy": "numpy.random.RandomState",
    "bits": "numpy.random.Generator",
    "python": "random.Random",
}


def drawn(generator):
    if isinstance(generator, torch.Generator):
        return float(torch.rand((), generator=generator))
    return generator.random() if hasattr(generator, "random") else generator.random_sample()


class Noisy(Dataset):
    """Digits under noise from a generator that it was made with."""

    def __init__(self, kind="numpy", where="itself"):
        self.digits, self.where = Digits(), where
        self.targets = self.digits.targets
        self.rng = MADE[kind]()

    def __len__(self):
        return len(self.targets)

    def noise(self, index):
        if self.where == "reseeded":
            self.rng = torch.Generator().manual_seed(index)  # a new one each time
            return drawn(self.rng)
        if self.where == "seeded in place":
            self.rng.manual_seed(index)
            return drawn(self.rng)
        if self.where == "unused":
            return float(torch.rand(())) + np.random.rand() + random.random()
        if self.where == "module":
            return OF_THE_MODULE.random()
        if self.where == "sometimes":
            return drawn(self.rng) > 2  # it moves, and no sample shows it
        return drawn(self.rng)

    def __getitem__(self, index):
        image, target = self.digits[index]
        return image + self.noise(index), target


class Jitter:
    def __init__(self):
        self.settings = {"rng": random.Random(0)}

    def __call__(self, image):
        return image + self.settings["rng"].random()


class Transformed(Digits):
    def __init__(self, mean=(0.0,), std=(1.0,)):
        super().__init__(mean, std)
        self.transform = [Jitter()]

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        return self.transform[0](image), target


class Counting(Digits):
    calls = 0

    def __init__(self, mean=(0.0,), std=(1.0,), is_seen=True):
        super().__init__(mean, std)
        self.calls, self.is_seen = 0, is_seen

    def __getitem__(self, index):
        self.calls += 1
        image, target = super().__getitem__(index)
        return image + (self.calls if self.is_seen else 0), target


def mixing():
    generator = torch.Generator()

    def mixed(samples):
        data, target = default_collate(samples)
        return data + torch.rand((), generator=generator), target

    return mixed


def train(name, **arguments):
    words = ["~dataset.train.mean", "~dataset.train.std", f"dataset.train._target_=test_own_state.{name}"]
    return [*words, *(f"+dataset.train.{key}={value}" for key, value in arguments.items())]


def refused(*words):
    with pytest.raises(InputError) as told:
        runner.run([*FAST, *words], run_dir="run")
    assert "global generators (torch.rand, np.random.rand, random.random)" in str(told.value)
    return str(told.value)


def warned(*words):
    runner.run([*FAST, *words], run_dir="run")
    return [line for line in Path("run/runner.log").read_text().splitlines() if "[WARNING]" in line]


@pytest.mark.parametrize("kind", MADE)
def test_a_dataset_with_a_generator_of_its_own_is_refused_by_its_attribute(kind):
    assert refused(*train("Noisy", kind=kind)).startswith(f"dataset.train.rng: samples draw from this {NAMES[kind]}")


def test_so_is_one_whose_samples_do_not_show_it():
    assert refused(*train("Noisy", where="sometimes")).startswith("dataset.train.rng: ")


def test_so_is_one_of_a_module():
    assert "test_own_state.OF_THE_MODULE" in refused(*train("Noisy", where="module"))


def test_so_is_one_of_a_transform():
    assert refused(*train("Transformed")).startswith(
        "dataset.train.transform.0.settings.rng: samples draw from this random."
    )


def test_so_is_one_that_a_collate_function_closes_over():
    told = refused("dataloader.collate_fn={_target_: test_own_state.mixing}")
    assert told.startswith("dataloader.collate_fn: samples draw from this torch.Generator")


@pytest.mark.parametrize("where", ["unused", "reseeded"])
def test_one_that_no_sample_draws_from_is_left_alone(where):
    assert warned(*train("Noisy", where=where)) == []


def test_one_that_is_seeded_for_each_sample_is_left_alone():
    assert warned(*train("Noisy", kind="torch", where="'seeded in place'")) == []


def test_a_dataset_that_changes_itself_is_warned_of_by_its_attribute():
    (line,) = warned(*train("Counting"))
    assert "dataset.train: the same example, seeded alike, is another one the second time (its calls changed)" in line


def test_a_counter_that_no_sample_shows_is_left_alone():
    assert warned(*train("Counting", is_seen="false")) == []


def test_a_run_that_goes_on_is_not_looked_at(monkeypatch):
    with monkeypatch.context() as blind:
        blind.setattr("runner.job.build.check_own_state", lambda loaders: None)
        runner.run([*FAST, *train("Noisy")], run_dir="run")
    assert resume(Path("run"), ["trainer.epochs=3"])["state"] == "done"


def paths(thing):
    return [path for path, _ in generators_in(thing, "x")]


def test_generators_are_found_wherever_they_are_held():
    noisy = Noisy()
    assert paths(noisy) == ["x.rng", "x.noise (test_own_state.OF_THE_MODULE)"]
    assert paths(Subset(noisy, [0]))[0] == "x.dataset.rng"
    assert paths(ConcatDataset([noisy]))[0] == "x.datasets.0.rng"
    assert paths(functools.partial(drawn, random.Random())) == ["x.1"]
    assert paths(noisy.noise)[0] == "x.rng"
    assert paths(mixing()) == ["x"]


def test_the_global_generators_are_none():
    class Holding:
        def __init__(self):
            self.numpy, self.python, self.torch = (
                np.random.get_state.__self__,
                random.random.__self__,
                torch.default_generator,
            )

    assert paths(Holding()) == []


def test_what_refers_to_itself_or_is_huge_comes_to_an_end():
    class Ring:
        pass

    ring = Ring()
    ring.self, ring.all = ring, [Ring() for _ in range(100_000)]
    for each in ring.all:
        each.ring = ring
    assert paths(ring) == []


@pytest.mark.parametrize("kind", MADE)
def test_looking_leaves_a_generator_where_it_stood(kind):
    generator = MADE[kind]()
    state = state_of(generator)
    first = drawn(generator)
    assert state_of(generator) != state
    put_back(generator, state)
    assert state_of(generator) == state and drawn(generator) == first


def test_a_refused_dataset_is_what_workers_would_tell_apart():
    """Why it is refused: in the loader of two workers each has a copy of the generator."""
    from runner.batches.parts import Part

    part = Part(Noisy(), torch.arange(40))
    batches = []
    for workers in (0, 2):
        part.dataset.rng = np.random.default_rng(0)
        loader = LoaderSettings(4, num_workers=workers).training(part, (), 0, torch.device("cpu"), None)
        batches.append([data for data, _ in loader.batches(0)])
        loader.close()
    assert not all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
