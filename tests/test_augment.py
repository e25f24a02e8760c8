"""Augmentations: what happens to an image follows from its row of random numbers alone."""

import pytest
import torch

from runner.augment import RandomAffine, RandomCrop, RandomErasing, RandomHorizontalFlip

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
