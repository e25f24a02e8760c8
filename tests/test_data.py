"""Datasets and how they are parted."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset, random_split

from runner.batches.parts import Part, count_classes, hold_out, integer_targets, split, stray_target
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


class Labelled(torch.utils.data.Dataset):
    """Examples that tell their labels under a name, as a list or an array."""

    def __init__(self, labels, name="targets", shift=0):
        setattr(self, name, labels)
        self.given, self.shift = [int(label) for label in labels], shift

    def __len__(self):
        return len(self.given)

    def __getitem__(self, i):
        return torch.zeros(3), self.given[i] - self.shift


LABELS = [0] * 40 + [1] * 40 + [2] * 20
TENSORS = TensorDataset(torch.zeros(100, 3), torch.tensor(LABELS))
KINDS = {
    "targets": Labelled(LABELS),
    "labels": Labelled(LABELS, "labels"),
    "array": Labelled(np.array(LABELS, dtype=np.int32)),
    "list of numpy's": Labelled(list(np.array(LABELS, dtype=np.uint8)), "labels"),
    "TensorDataset": TENSORS,
    "Subset": Subset(Labelled(LABELS + [3] * 9), range(100)),
    "random_split": random_split(TENSORS, [70, 30])[0],
    "Subset by an array": Subset(TENSORS, np.arange(99, -1, -1)),
    "ConcatDataset": ConcatDataset(
        [Labelled(LABELS[:50]), TensorDataset(torch.zeros(50, 3), torch.tensor(LABELS[50:]))]
    ),
    "nested": Subset(ConcatDataset([Subset(TENSORS, range(50)), Subset(Labelled(LABELS), range(50, 100))]), range(100)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_are_at_hand_are_counted_and_stratified_by(kind):
    dataset = KINDS[kind]
    labels = torch.tensor([int(dataset[i][1]) for i in range(len(dataset))])
    assert torch.equal(integer_targets(dataset), labels)
    assert count_classes(dataset) == 3
    held = hold_out(whole(dataset), 0.2, "val")[1]
    share = torch.bincount(labels[held.indices]) - torch.bincount(labels) * 0.2
    assert share.abs().max() <= 1


def test_what_is_no_label_an_example_is_none():
    three = TensorDataset(torch.zeros(9, 1), torch.zeros(9, dtype=torch.int64), torch.arange(9))
    mixed = ConcatDataset([Labelled(LABELS), TensorDataset(torch.zeros(5, 3), torch.zeros(5))])
    for dataset in (three, mixed, TensorDataset(torch.arange(9)), Subset(TensorDataset(torch.zeros(9, 1)), range(3))):
        assert integer_targets(dataset) is None and count_classes(dataset) is None


def test_the_names_of_classes_are_found_below_a_subset():
    assert count_classes(Subset(Digits(), range(5))) == 10
    assert count_classes(ConcatDataset([Digits(), Subset(Digits(), range(5))])) == 10


def test_a_label_that_is_no_class_is_one_only_where_the_example_says_so():
    assert stray_target(Subset(Labelled(LABELS), range(100)), 2) == 2
    assert stray_target(Labelled(LABELS), 3) is None
    assert stray_target(Subset(Labelled(LABELS, shift=1), range(100)), 2) is None
