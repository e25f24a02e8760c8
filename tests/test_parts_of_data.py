"""The dataset group's parts: transforms of the training part alone, official validation sets, and what is held out."""

import json
import time
from pathlib import Path

import pytest
import torch

import runner
from runner.batches.parts import Part, hold_out, split
from runner.config.compose import compose
from runner.data import Digits
from runner.errors import InputError
from runner.groups.data_parts import make_parts
from runner.job.rebuilding import rebuilt
from runner.job.resuming import resume
from runner.job.saved import open_saved
from runner.seeding import derive

FAST = ["trainer.dry_run=true", "device.threads=1", "quiet=true"]
CROP = "{_target_: torchvision.transforms.RandomResizedCrop, size: SIZE}"
TENSOR = "{_target_: torchvision.transforms.ToTensor}"
TORCHVISION = {"mnist": 28, "fashion_mnist": 28, "kmnist": 28, "cifar10": 32, "cifar100": 32, "image_folder": 64}


def parts_of(*words):
    _, cfg = compose([*words])
    return make_parts(cfg)


def given(name, data):
    root = data / "images" if name == "image_folder" else data
    return [f"dataset={name}", f"dataset.root={root}", "dataset.val_size=6", "model=mlp"]


def transform_train(size):
    return f"dataset.transform_train=[{CROP.replace('SIZE', str(size))},{TENSOR}]"


def steps_of(part):
    return [type(step).__name__ for step in part.dataset.transform.transforms]


# --------------------------------------------------------------------------------------- transforms of training images


@pytest.mark.parametrize("name", TORCHVISION)
def test_what_is_held_out_of_the_training_set_is_seen_as_the_test_set_is(name, tiny_data, torchvision_unchecked):
    words = given(name, tiny_data)
    plain, parts = parts_of(*words), parts_of(*words, transform_train(TORCHVISION[name]))
    assert steps_of(parts.train) == ["RandomResizedCrop", "ToTensor"]
    assert steps_of(parts.val) == steps_of(parts.test) == steps_of(plain.train)
    assert "RandomResizedCrop" not in steps_of(parts.val)
    for one, other in zip(plain.all.values(), parts.all.values(), strict=True):
        assert torch.equal(one.indices, other.indices)  # the split is the same
    for i in parts.val.indices.tolist():
        assert all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b))
            for a, b in zip(parts.val.dataset[i], plain.val.dataset[i], strict=True)
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "image_folder"])
def test_crops_of_different_sizes_train_resume_and_evaluate(name, tiny_data, torchvision_unchecked):
    words = [*given(name, tiny_data), transform_train(TORCHVISION[name]), "device.threads=1", "quiet=true"]
    words += ["trainer.limit_batches=2", "trainer.epochs=2"]
    runner.run(words, run_dir="run")
    reason = "batches from torch's DataLoader: torchvision.transforms.transforms.RandomResizedCrop may draw"
    assert reason in Path("run/runner.log").read_text()
    record = json.loads(Path("run/run.json").read_text())
    built = rebuilt(open_saved(Path("run"), "best"))
    assert built.trainer.evaluate_on(built.test_loader) == record["test"]["best"]
    assert steps_of(built.parts.train) == ["RandomResizedCrop", "ToTensor"]
    assert resume(Path("run"), ["trainer.epochs=3"])["epochs_done"] == 3


def test_a_deterministic_transform_of_the_training_images_stays_in_memory(tiny_data):
    words = given("mnist", tiny_data)
    pad = "{_target_: torchvision.transforms.Pad, padding: 0}"
    runner.run([*words, *FAST, f"dataset.transform_train=[{pad},{TENSOR}]"], run_dir="run")
    assert json.loads(Path("run/run.json").read_text())["placement"] == "memory"


def test_one_transform_need_not_be_a_list(tiny_data):
    parts = parts_of(*given("mnist", tiny_data), f"dataset.transform_train={TENSOR}")
    assert steps_of(parts.train) == ["ToTensor"]


def test_nothing_is_opened_twice_without_it(tiny_data):
    parts = parts_of(*given("mnist", tiny_data))
    assert parts.train.dataset is parts.val.dataset


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["+dataset.transform_train=[]"], ["runner.data.Digits takes no argument `transform`", "dataset.augment"]),
        (["dataset=mnist", "dataset.transform_train=[{_target_: torchvision.transforms.Nope}]"], ["Nope"]),
        (["dataset=mnist", "dataset.transform_train=[crop]"], ["dataset.transform_train", "'crop'"]),
        (
            ["dataset=mnist", f"dataset.transform_train=[{CROP.replace('SIZE', '[1,2,3]')}]"],
            ["dataset.transform_train.0"],
        ),
    ],
    ids=str,
)
def test_what_is_no_transform_of_it_is_refused(words, told, tiny_data):
    where = [f"dataset.root={tiny_data}"] if "dataset=mnist" in words else []
    with pytest.raises(InputError) as error:
        runner.run([*words, *where, *FAST], run_dir="run")
    for part in told:
        assert part in str(error.value)


# ------------------------------------------------------------------------------------------------ three official parts


def val_of(size=9, seed=2, classes=10):
    arguments = f"size: {size}, shape: [1, 8, 8], num_classes: {classes}, seed: {seed}"
    return f"+dataset.val={{_target_: runner.data.Fake, {arguments}}}"


FAKE = ["dataset=fake", "dataset.input_shape=[1,8,8]", "dataset.train_size=40", "dataset.eval_size=20", "model=mlp"]


def test_an_official_validation_set_is_a_part_like_the_others():
    record = runner.run([*FAKE, val_of(), "dataset.val_size=0", *FAST], run_dir="run")
    assert record["examples"] == {"train": 40, "val": 9, "test": 20}
    assert record["chosen_on"] == "val"
    assert runner.run([*FAKE, val_of(), "~dataset.val_size", *FAST], run_dir="again")["last"] == record["last"]


def test_a_validation_set_and_a_size_of_one_are_refused():
    with pytest.raises(InputError, match=r"dataset\.val_size=0\.2: dataset\.val is given.*dataset\.val_size=0"):
        runner.run([*FAKE, val_of(), *FAST], run_dir="run")


def test_image_folder_has_a_root_for_each_part(tiny_data, tmp_path):
    import shutil

    from PIL import Image

    for part in ("train", "val", "test"):
        shutil.copytree(tiny_data / "images", tmp_path / "all" / part)
    for number, part in enumerate(("val", "test")):
        for path in (tmp_path / "all" / part).rglob("*.png"):
            Image.open(path).rotate(90 * number + 90).save(path)
    shutil.rmtree(tmp_path / "all" / "val" / "owl")
    words = ["dataset=image_folder", "model=mlp", *FAST]
    with pytest.raises(InputError, match=r"dataset\.val_root=.*/all/val with dataset\.val_size=0"):
        runner.run([*words, f"dataset.root={tmp_path}/all"], run_dir="run")
    roots = [
        f"dataset.{key}={tmp_path}/all/{part}"
        for key, part in (("root", "train"), ("val_root", "val"), ("test_root", "test"))
    ]
    with pytest.raises(
        InputError, match=r"dataset\.val: its 2 classes are not the 3 of dataset\.train.*'owl' only in train"
    ):
        runner.run([*words, *roots, "dataset.val_size=0"], run_dir="run")
    shutil.copytree(tmp_path / "all" / "test" / "owl", tmp_path / "all" / "val" / "owl")
    record = runner.run([*words, *roots, "dataset.val_size=0"], run_dir="run")
    assert record["examples"] == {"train": 24, "val": 24, "test": 24}
    with pytest.raises(InputError, match=r"dataset\.val_root=absent: no data in"):
        runner.run([*words, *roots, "dataset.val_root=absent", "dataset.val_size=0"], run_dir="other")


def test_targets_of_every_official_part_are_classes():
    with pytest.raises(InputError, match=r"dataset\.num_classes=10: the targets of dataset\.val go up to 11"):
        runner.run([*FAKE, val_of(200, classes=12), "dataset.val_size=0", *FAST], run_dir="run")


def test_the_validation_set_must_be_a_dataset():
    with pytest.raises(InputError, match=r"dataset\.val: must be a map-style dataset"):
        runner.run([*FAKE, "+dataset.val=3", "dataset.val_size=0", *FAST], run_dir="run")


# ---------------------------------------------------------------------------------------------------------- hold_out


def held_as_before(part, count, purpose):
    """The loop over labels that hold_out was, in its own words."""
    total = len(part)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(derive(0, "hold out", purpose)))
    labels = torch.as_tensor(part.dataset.targets).long()[part.indices][order]
    keys = torch.empty(total, dtype=torch.float64)
    for label in set(labels.tolist()):
        of_class = (labels == label).nonzero().squeeze(1)
        keys[of_class] = (torch.arange(len(of_class), dtype=torch.float64) + 0.5) / len(of_class)
    is_held = torch.zeros(total, dtype=torch.bool)
    is_held[order[keys.argsort(stable=True)[:count]]] = True
    return part.indices[is_held]


class Labelled:
    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)


@pytest.mark.parametrize("seed", range(60))
def test_hold_out_parts_as_the_loop_over_labels_did(seed):
    draw = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high, (), generator=draw))

    total, classes = number(2, 700), number(1, [3, 20, 1000][seed % 3])
    targets = torch.randint(-classes, classes, (total,), generator=draw) ** (1 + seed % 2)
    indices = torch.randperm(total, generator=draw)[: max(2, total - number(0, total))]
    part = Part(Labelled(targets.tolist()), indices)
    count = number(1, len(part))
    for purpose in ("val", "test"):
        kept, held = hold_out(part, count, purpose)
        assert torch.equal(held.indices, held_as_before(part, count, purpose))
        assert sorted([*kept.indices.tolist(), *held.indices.tolist()]) == sorted(indices.tolist())


def test_the_digits_are_parted_as_they_were():
    part = Part(Digits(), torch.arange(1797))
    assert torch.equal(hold_out(part, 0.2, "test")[1].indices, held_as_before(part, 359, "test"))


def test_many_labels_take_no_longer_than_few():
    """A loop over labels takes 40,000 passes for one of each, and 10 for ten."""
    seconds = []
    for targets in (torch.arange(40_000) % 10, torch.arange(40_000)):
        began = time.process_time()
        hold_out(Part(Labelled(targets), torch.arange(40_000)), 0.1, "val")
        seconds.append(time.process_time() - began)
    assert seconds[1] < 100 * seconds[0]


@pytest.mark.parametrize(
    "targets", [torch.rand(500), torch.rand(500, 2), [f"{i}" for i in range(500)]], ids=["float", "pairs", "text"]
)
def test_targets_that_are_no_classes_are_parted_at_random(targets):
    parts = split(Labelled(targets), None, test_size=0.2, val_size=50)
    assert [len(part) for part in (parts.train, parts.val, parts.test)] == [350, 50, 100]
    other = split(Labelled(torch.arange(500)), None, test_size=0.2, val_size=50)  # each its own class: at random too
    assert torch.equal(parts.test.indices, other.test.indices)
