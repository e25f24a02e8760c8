"""Datasets and how they are parted."""

import pytest
import torch

from runner.batches.parts import Part, count_classes, hold_out, integer_targets, split
from runner.data import Digits, Fake
from runner.errors import InputError


def whole(dataset):
    return Part(dataset, torch.arange(len(dataset)))


def test_digits_are_scikit_learns_own():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    digits = Digits()
    assert digits.targets == labels.tolist()
    assert torch.equal(digits.images.view(-1, 64), torch.from_numpy(images).float() / 16)


def test_digits_normalization_is_that_of_what_is_not_tested():
    rest, _ = hold_out(whole(Digits()), 0.2, "test")
    images = Digits().images[rest.indices]
    assert (round(float(images.mean()), 4), round(float(images.std()), 4)) == (0.3045, 0.3755)


@pytest.mark.parametrize(("size", "count"), [(0.1, 180), (0.25, 449), (5, 5), (1796, 1796)])
def test_a_part_is_held_out_by_fraction_or_count_and_stratified(size, count):
    digits = Digits()
    kept, held = hold_out(whole(digits), size, "val")
    assert len(held) == count
    assert sorted([*kept.indices.tolist(), *held.indices.tolist()]) == list(range(1797))
    targets = torch.tensor(digits.targets)
    of_class, of_held = targets.bincount(), targets[held.indices].bincount(minlength=10)
    assert ((of_held - of_class * count / 1797).abs() <= 1).all()


def test_the_split_is_fixed_and_differs_by_purpose():
    first, second = (hold_out(whole(Digits()), 0.2, "val")[1].indices for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, hold_out(whole(Digits()), 0.2, "test")[1].indices)


@pytest.mark.parametrize("size", [-1, -0.1, 1.0, 1.5, 1797, 5000])
def test_a_part_larger_than_the_data_is_refused(size):
    with pytest.raises(InputError, match=f"dataset.val_size={size}"):
        hold_out(whole(Digits()), size, "val")


def test_without_integer_targets_the_split_is_random():
    data = [(torch.zeros(1), 0.5)] * 10
    kept, held = hold_out(whole(data), 3, "val")
    assert (len(kept), len(held)) == (7, 3)


def test_the_evaluated_part_is_val_else_test_else_train():
    data = Fake(20, (1, 2, 2))
    assert split(data, data, val_size=5).eval_split == "val"
    assert split(data, data).eval_split == "test"
    assert split(data, None).eval_split == "train"
    parts = split(data, None, test_size=0.5, val_size=0.5)
    assert [len(p) for p in (parts.train, parts.val, parts.test)] == [5, 5, 10]


def test_fake_samples_follow_from_seed_and_index():
    a, b = Fake(10, (3, 4, 4), 5, seed=1), Fake(10, (3, 4, 4), 5, seed=1)
    assert all(torch.equal(a[i][0], b[i][0]) and a[i][1] == b[i][1] for i in (9, 3, 0))
    assert not torch.equal(a[0][0], Fake(10, (3, 4, 4), 5, seed=2)[0][0])
    assert a[0][0].shape == (3, 4, 4)


def test_classes_are_counted_by_name_or_by_target():
    assert count_classes(Digits()) == 10
    assert count_classes(Fake(50, num_classes=4)) == 4
    assert count_classes([(0, 1)]) is None
    assert integer_targets(Fake(3)) is not None
