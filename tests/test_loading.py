"""Batches: the same tensors with any number of workers, from any position, whatever draws random numbers."""

import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomAffine as TorchvisionAffine

from runner.augment import RandomCrop, RandomHorizontalFlip
from runner.batches.memory import is_deterministic
from runner.batches.parts import Part
from runner.batches.settings import LoaderSettings
from runner.data import Fake

CPU = torch.device("cpu")
DATA = Fake(50, (1, 8, 8), 3)
PART = Part(DATA, torch.arange(4, 47))


class Drawing(torch.utils.data.Dataset):
    """A dataset of the careless kind: it draws from all three global generators."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.rand(2) + random.random() + np.random.rand(), index


class Killing(Drawing):
    """Its worker dies at the sixth example."""

    def __getitem__(self, index):
        if index == 5 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def noisy_collate(samples):
    data, targets = zip(*samples, strict=True)
    return torch.stack(data) + torch.rand(()), torch.tensor(targets)


def batches(loading, part=PART, augment=(), epoch=0, start=0, seed=0):
    loader = loading.training(part, augment, seed, CPU, None)
    return list(loader.batches(epoch, start))


def equal(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b) for one, two in zip(left, right, strict=True) for a, b in zip(one, two, strict=True)
    )


CASES = {
    "own augmentations": (PART, [RandomCrop(2), RandomHorizontalFlip()], None),
    "torchvision's augmentation": (PART, [TorchvisionAffine(20, (0.1, 0.1))], None),
    "both": (PART, [RandomCrop(2), TorchvisionAffine(20)], None),
    "a dataset that draws": (Part(Drawing(), torch.arange(20)), [], None),
    "a collate function that draws": (PART, [], noisy_collate),
}


@pytest.mark.parametrize("case", CASES)
def test_any_number_of_workers_gives_the_same_tensors(case):
    part, augment, collate = CASES[case]
    alone = batches(LoaderSettings(8, collate_fn=collate), part, augment, epoch=3)
    for workers in (1, 3):
        assert equal(alone, batches(LoaderSettings(8, collate_fn=collate, num_workers=workers), part, augment, epoch=3))
    assert not equal(alone, batches(LoaderSettings(8, collate_fn=collate), part, augment, epoch=4))
    assert not equal(alone, batches(LoaderSettings(8, collate_fn=collate), part, augment, epoch=3, seed=1))


def test_persistent_workers_give_each_epoch_its_own_numbers():
    augment = [RandomCrop(2), TorchvisionAffine(20)]
    loader = LoaderSettings(8, num_workers=2, persistent_workers=True).training(PART, augment, 0, CPU, None)
    for epoch in (0, 1, 2):
        assert equal(list(loader.batches(epoch)), batches(LoaderSettings(8), augment=augment, epoch=epoch))


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_is_the_rest_of_the_epoch(start, workers):
    augment = [RandomCrop(2)]
    full = batches(LoaderSettings(8), augment=augment, epoch=2)
    assert equal(full[start:], batches(LoaderSettings(8, num_workers=workers), augment=augment, epoch=2, start=start))


def test_resuming_reads_no_data_that_it_skips():
    read = []

    class Recording(Fake):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    part = Part(Recording(50, (1, 8, 8)), torch.arange(50))
    batches(LoaderSettings(10, shuffle=False), part, start=3)
    assert read == list(range(30, 50))


def test_each_epoch_is_another_permutation_of_the_part():
    orders = []
    for epoch in (0, 1):
        loader = LoaderSettings(10).training(PART, (), 5, CPU, None)
        loader.order.epoch = epoch
        orders.append([i for batch in loader.order for i in batch.indices])
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == PART.indices.tolist()


def test_batches_leave_the_global_generators_alone():
    part, augment, _ = CASES["both"]
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    batches(LoaderSettings(8, num_workers=0), part, augment)
    batches(LoaderSettings(8, num_workers=1), part, augment)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_lengths_with_drop_last_and_limit():
    assert len(LoaderSettings(10).training(PART, (), 0, CPU, None)) == 5
    assert len(LoaderSettings(10, drop_last=True).training(PART, (), 0, CPU, None)) == 4
    assert len(LoaderSettings(10).training(PART, (), 0, CPU, 2)) == 2
    assert len(LoaderSettings(10, eval_batch_size=20, drop_last=True).evaluation(PART, 0, CPU, None)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"eval_batch_size": -5}, "eval_batch_size=-5"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"persistent_workers": True}, "persistent_workers=True"),
        ({"prefetch_factor": 2}, "prefetch_factor=2"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoaderSettings(**settings)


def test_only_what_is_known_to_draw_nothing_counts_as_deterministic(tiny_data):
    from torchvision import transforms
    from torchvision.datasets import MNIST

    fixed = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    drawing = transforms.Compose([transforms.RandomCrop(20), transforms.ToTensor()])
    assert is_deterministic(MNIST(tiny_data, transform=fixed))
    assert not is_deterministic(MNIST(tiny_data, transform=drawing))
    assert is_deterministic(DATA)
    assert not is_deterministic(Drawing())


@pytest.mark.slow  # torch looks for dead workers every 5 s
@pytest.mark.parametrize("is_persistent", [False, True])
def test_a_worker_that_was_killed_is_found_by_who_waits_for_it_and_nowhere_else(is_persistent):
    """torch's handler of SIGCHLD would raise wherever this process is: in the middle of a checkpoint, say."""
    before = signal.getsignal(signal.SIGCHLD)
    settings = LoaderSettings(4, 4, num_workers=2, persistent_workers=is_persistent, shuffle=False)
    loader = settings.training(Part(Killing(), torch.arange(20)), (), 0, CPU, None)
    given = loader.batches()
    try:
        next(given)
        assert signal.getsignal(signal.SIGCHLD) is before
        time.sleep(0.5)  # the worker has died, and nothing happens here
        with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(s\) [\d, ]+\) exited unexpectedly"):
            list(given)
    finally:
        loader.close()
