"""Augmentations: what happens to an image follows from its row of random numbers alone."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import runner
from conftest import killed_after
from runner.augment import AlternatingFlip, RandomAffine, RandomCrop, RandomErasing, RandomHorizontalFlip
from runner.batches.parts import Part, split, trained_on
from runner.batches.settings import LoaderSettings
from runner.data import Text
from runner.job.resuming import resume
from test_tasks import assert_equal, final

CPU = torch.device("cpu")

ALL = [
    RandomHorizontalFlip(),
    RandomCrop(padding=3),
    RandomAffine(degrees=15, translate=0.1, scale=(0.9, 1.1)),
    RandomErasing(),
]


@pytest.mark.parametrize("augmentation", ALL, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 20)])
def test_a_batch_is_its_samples_one_by_one(augmentation, shape):
    images, draws = torch.randn(16, *shape), torch.rand(16, augmentation.num_draws)
    batch = augmentation(images, draws)
    single = torch.cat([augmentation(images[i : i + 1], draws[i : i + 1]) for i in range(16)])
    assert torch.equal(batch, single)
    assert batch.shape == images.shape
    assert not torch.equal(batch, images)


def test_flip_mirrors_where_the_draw_is_below_p():
    images = torch.arange(8.0).view(2, 1, 1, 4)
    flipped = RandomHorizontalFlip(0.5)(images, torch.tensor([[0.1], [0.9]]))
    assert flipped.flatten().tolist() == [3, 2, 1, 0, 4, 5, 6, 7]


class InArrays(TensorDataset):
    is_deterministic = True


class ShiftedLabel:
    """An augmentation of images and targets from outside, that knows the epoch: both move by it."""

    num_draws, knows_epoch, on_targets = 2, True, True

    def __call__(self, images, targets, draws, epoch):
        return images + draws[:, :1].view(-1, 1, 1, 1), targets + epoch


def by_placement(part, augment, epochs, seed=1, **settings):
    """What each placement gives: {name: [batches of an epoch]}."""
    found = {}
    for name, given in (
        ("memory", {"placement": "memory"}),
        ("loader", {"num_workers": 0}),
        ("workers", {"num_workers": 2}),
    ):
        loading = LoaderSettings(8, **given, **settings)
        placement = loading.place([part], augment, CPU)
        loader = loading.training(part, augment, seed, CPU, None, placement)
        assert placement.where == ("memory" if name == "memory" else "workers")
        found[name] = [[tuple(batch) for batch in loader.batches(epoch)] for epoch in range(epochs)]
        # from any batch of an epoch on, as a resumed run asks for them
        assert_equal([tuple(batch) for batch in loader.batches(epochs - 1, 2)], found[name][-1][2:])
        loader.close()
    assert_equal(found["loader"], found["memory"])
    assert_equal(found["workers"], found["memory"])
    return found["memory"]


def test_an_alternating_flip_mirrors_each_image_in_every_second_epoch():
    images = torch.arange(40.0).view(40, 1, 1, 1).repeat(1, 1, 1, 2)
    images[..., 1] += 100
    part = Part(InArrays(images, torch.arange(40)), torch.arange(40))
    epochs = []
    for batches in by_placement(part, [AlternatingFlip(), RandomCrop(0)], 4):
        data, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        epochs.append((data[:, 0, 0, 0] > 99)[targets.argsort()])
    assert torch.equal(epochs[0], ~epochs[1]) and torch.equal(epochs[1], ~epochs[2])
    assert torch.equal(epochs[1], epochs[3])
    assert 8 < epochs[0].sum() < 32


def test_one_that_knows_the_epoch_changes_nothing_of_what_others_draw():
    part = Part(InArrays(torch.rand(40, 1, 4, 4) + 1, torch.arange(40)), torch.arange(40))
    alone = by_placement(part, [RandomCrop(2)], 2)
    moved = by_placement(part, [ShiftedLabel(), RandomCrop(2)], 2)
    for epoch in (0, 1):
        for (data, targets), (other, shifted) in zip(alone[epoch], moved[epoch], strict=True):
            assert torch.equal(targets + epoch, shifted)
            assert torch.equal(data == 0, other == 0)  # what the crop filled
            assert not torch.equal(data, other)


@pytest.mark.slow
def test_windows_of_a_text_begin_elsewhere_in_each_epoch_and_never_reach_what_is_held_out():
    context = 16
    text = Text(context=context, random_starts=True)
    text.tokens = torch.arange(len(text.tokens))  # each token is its own place
    parts = split(text, None, val_size=0.1, test_size=0.1)
    for part in (parts.val, parts.test):
        assert all(torch.equal(text[i][0], torch.arange(i * context, (i + 1) * context)) for i in part.indices.tolist())
    held = torch.cat([parts.val.indices, parts.test.indices])
    epochs = by_placement(trained_on(parts.train), [], 3)
    starts = []
    for batches in epochs:
        data, targets = (torch.cat(each) for each in zip(*batches, strict=True))
        assert data.shape == targets.shape == (len(parts.train), context)
        assert torch.equal(data + 1, targets) and torch.equal(data[:, 1:], targets[:, :-1])
        assert not torch.isin(data // context, held).any()
        assert torch.equal((data[:, 0] // context).sort()[0], parts.train.indices.sort()[0])  # each piece once
        starts.append(data[:, 0][(data[:, 0] // context).argsort()])
    assert (starts[0] != starts[1]).float().mean() > 0.7 and (starts[1] != starts[2]).float().mean() > 0.7
    assert set((starts[0] % context).tolist()) == set(range(context))


FLIPPED = ["dataset.augment=[{_target_: runner.augment.AlternatingFlip}]", "model=mlp", "model.hidden=[8]"]
WINDOWS = [
    "experiment=text_gpt",
    "dataset.random_starts=true",
    "dataset.context=8",
    "model.width=8",
    "task.sample_length=0",
]
WINDOWS = [*WINDOWS, "trainer.limit_batches=12"]


@pytest.mark.parametrize("given", [FLIPPED, WINDOWS], ids=["flip", "windows"])
def test_a_run_that_knows_the_epoch_is_the_same_in_every_placement_and_after_a_kill(given, monkeypatch):
    given = [*given, "trainer.epochs=3", "device=cpu", "device.threads=1", "quiet=true", "checkpoint.every_batches=5"]
    given += ["dataloader.batch_size=64"]
    runner.run([*given, "dataloader.placement=memory"], run_dir="memory")
    killed_after(20, monkeypatch, lambda: runner.run([*given, "dataloader.placement=workers"], run_dir="workers"))
    resume(Path("workers"), [])
    assert_equal(final("memory"), final("workers"))
    text = [word.replace("random_starts=true", "random_starts=false") for word in given if "augment" not in word]
    runner.run(text, run_dir="plain")
    assert final("plain")[1] != final("memory")[1]


def test_crop_moves_by_whole_pixels_and_fills():
    image = torch.arange(1.0, 5.0).view(1, 1, 2, 2)
    assert torch.equal(RandomCrop(1)(image, torch.tensor([[0.5, 0.5]])), image)
    assert RandomCrop(1, fill=9)(image, torch.tensor([[0.0, 0.0]])).flatten().tolist() == [9, 9, 9, 1]
    assert RandomCrop(1)(image, torch.tensor([[0.999, 0.999]])).flatten().tolist() == [4, 0, 0, 0]


def test_affine_without_motion_is_the_image_and_agrees_with_torchvision():
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2.functional import affine

    image = torch.rand(1, 1, 9, 9)
    still = RandomAffine(degrees=20, translate=0.2, scale=(0.5, 1.5))(image, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    torch.testing.assert_close(still, image)
    turned = RandomAffine(degrees=30, scale=(1.0, 1.0))(image, torch.tensor([[1.0, 0.5, 0.5, 0.0]]))
    theirs = affine(image, 30.0, [0, 0], 1.0, [0.0], InterpolationMode.BILINEAR)
    both_ways = [affine(image, a, [0, 0], 1.0, [0.0], InterpolationMode.BILINEAR) for a in (-30.0, 30.0)]
    assert any(torch.allclose(turned, other, atol=1e-4) for other in both_ways), (turned - theirs).abs().max()
    moved = RandomAffine(translate=1 / 3)(image, torch.tensor([[0.5, 1.0, 0.5, 0.5]]))
    torch.testing.assert_close(moved[0, 0, 3:], image[0, 0, :-3])


def test_erasing_fills_one_rectangle():
    erased = RandomErasing(p=1.0, size=(0.5, 0.5), fill=7.0)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 5))
    assert (erased == 7).sum() == 2 * 2 * 2
    assert (erased[:, :, :2, :2] == 7).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomHorizontalFlip(1.5),
        lambda: RandomCrop(-1),
        lambda: RandomAffine(degrees=-1),
        lambda: RandomAffine(scale=(2, 1)),
        lambda: RandomErasing(size=(0, 1)),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(ValueError, match="="):
        make()
