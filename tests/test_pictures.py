"""A folder of pictures of one's own: any depth and colour, hidden files, and one line on a file that is no picture."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import runner
from runner.__main__ import dispatch
from runner.data import image_folder
from runner.errors import InputError
from runner.job.resuming import resume
from runner.storage.weights import read_weights

FAST = ["dataset=image_folder", "dataset.root=data", "model=mlp", "device.threads=1", "quiet=true", "trainer.epochs=1"]
SMALL = [*FAST, "dataset.image_size=8"]


def pictures(root="data", count=10, size=(40, 30), suffix="png", classes=("cat", "dog")):
    rng = np.random.default_rng(0)
    for number, name in enumerate(classes):
        Path(root, name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 120, (size[1], size[0], 3)).astype(np.uint8)
            pixels[:, :, number] += 100
            Image.fromarray(pixels).save(Path(root, name, f"{i:02d}.{suffix}"))


# ------------------------------------------------------------ one word is enough


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_folder_alone_trains_the_default_model(mode, tmp_path):
    pictures(count=5)
    for path in Path("data").rglob("*.png"):
        Image.open(path).convert(mode).save(path)
    record = runner.run(["dataset=image_folder", "dataset.root=data", "trainer.dry_run=true", "quiet=true"])
    assert record["state"] == "done"
    assert record["config"]["dataset"]["input_shape"] == [3, 64, 64]


def test_the_shape_alone_makes_it_grey_and_small():
    pictures()
    record = runner.run([*FAST, "dataset.input_shape=[1,28,28]"], run_dir="run")
    assert (record["config"]["dataset"]["mean"], record["config"]["model"]["input_shape"]) == ([0.449], [1, 28, 28])
    assert resume(Path("run"), ["trainer.epochs=2"])["epochs_done"] == 2


def test_no_key_is_complained_of_that_only_a_packaged_file_has_written():
    pictures()
    tensor = "{_target_: torchvision.transforms.ToTensor}"
    grey = "{_target_: torchvision.transforms.Grayscale}"
    words = ["dataset.input_shape=[1,30,40]", f"dataset.transform=[{grey},{tensor}]"]
    assert runner.run([*FAST, *words])["state"] == "done"
    own = "dataset.train={_target_: torchvision.datasets.FakeData, size: 50, image_size: [1,8,8], transform: {}}"
    own = own.replace("{}", tensor)
    words = ["dataset=cifar10", "dataset.input_shape=[1,8,8]", own, "dataset.test=null", "model=mlp"]
    assert runner.run([*words, "trainer.dry_run=true", "quiet=true"])["state"] == "done"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["dataset.input_shape=[3,28,28]", "dataset.image_size=32"],
            ["dataset.image_size=32", "nothing reads this key"],
        ),
        (["dataset.input_shape=[2,28,28]"], ["dataset.input_shape=[2, 28, 28]", "1 channel"]),
        (["dataset.input_shape=[3,20,28]"], ["dataset.input_shape=[3, 20, 28]", "[20, 28]"]),
        (["dataset.root=1"], ["dataset.root=1", "must be text"]),
    ],
    ids=str,
)
def test_what_does_not_go_together_names_the_key_that_was_written(words, told):
    pictures()
    with pytest.raises(InputError) as error:
        runner.run([*FAST, *words])
    assert all(part in str(error.value) for part in told)
    assert "no data in" not in str(error.value)


def test_hidden_files_and_folders_are_no_examples():
    pictures()
    for place in ("data/.ipynb_checkpoints", "data/cat/.ipynb_checkpoints", "data/cat/deep/.cache"):
        Path(place).mkdir(parents=True)
        Image.new("L", (8, 8)).save(Path(place, "00.png"))
    Path("data/cat/._00.png").write_bytes(b"\0\5\26\7")
    Path("data/.DS_Store").write_bytes(b"x")
    made = image_folder("data")
    assert (made.classes, len(made)) == (["cat", "dog"], 20)


def test_a_link_that_leads_back_is_one_line_and_another_is_followed():
    pictures()
    Path("data/cat/again").symlink_to(Path("data").resolve())
    with pytest.raises(InputError, match=r"data/cat/again is a link to .*/data"):
        runner.run(FAST, run_dir="run")
    Path("data/cat/again").unlink()
    pictures("elsewhere", classes=("a",))
    Path("data/dog/more").symlink_to(Path("elsewhere/a").resolve())
    assert len(image_folder("data")) == 30


def test_a_class_without_a_picture_is_named_with_its_folder():
    pictures()
    Path("data/bird").mkdir()
    with pytest.raises(InputError, match=r"^dataset.root=data: data/bird: holds no picture \(\.jpg"):
        runner.run(FAST, run_dir="run")
    Path("data/bird").rmdir()
    Path("data/__MACOSX/cat").mkdir(parents=True)
    Path("data/__MACOSX/cat/._00.png").write_bytes(b"x")
    assert image_folder("data").classes == ["cat", "dog"]


# ------------------------------------------------------------ depth and colour


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (np.array([[0, 257, 65535]], dtype=np.uint16), "16.png"),
        (np.array([[0, 257, 65535]], dtype=np.uint16), "16.tif"),
        (np.array([[0, 257, 65535]], dtype=np.int32), "32.tif"),
        (np.array([[0, 1, 255]], dtype=np.int32), "8_in_32.tif"),
        (np.array([[0, 1 / 255, 1]], dtype=np.float32), "fractions.tif"),
        (np.array([[0, 1, 255]], dtype=np.float32), "floats.tif"),
        (np.array([[0, 257, 65535]], dtype=np.float32), "large.tif"),
        (np.array([[0, 1, 255]], dtype=np.uint8), "8.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_every_depth_becomes_8_bits(values, name, mode):
    from runner.pictures import read_picture

    Image.fromarray(values).save(name)
    read = np.asarray(read_picture(name, mode)).reshape(3, -1)
    assert read.tolist() == [[value] * len(mode) for value in (0, 1, 255)]


def test_what_is_transparent_lies_on_white_and_what_is_not_is_as_pillow_reads_it():
    from runner.pictures import read_picture

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    opaque = Image.fromarray(pixels)
    for mode, name in (("RGBA", "a.png"), ("P", "b.png"), ("LA", "c.png"), ("CMYK", "d.jpg"), ("1", "e.png")):
        opaque.convert("RGB").convert(mode).save(name) if mode != "RGBA" else opaque.save(name)
        with Image.open(name) as kept:
            assert np.array_equal(np.asarray(read_picture(name)), np.asarray(kept.convert("RGB")))
    pixels[:4, :, :3], pixels[:4, :, 3] = 0, 0
    Image.fromarray(pixels).save("shape.png")
    assert (np.asarray(read_picture("shape.png", "L"))[:4] == 255).all()


def test_values_that_are_no_brightness_are_refused_with_the_file():
    pictures()
    Image.fromarray(np.array([[-1.0, 3.0]], dtype=np.float32)).save("data/cat/00.tif")
    with pytest.raises(InputError, match=r"dataset: data/cat/00\.tif: cannot be read \(its values go from -1 to 3"):
        runner.run(SMALL)


@pytest.mark.parametrize("colours", [["white"] * 20, [f"#{i:02x}{i:02x}00" for i in range(20)]], ids=["equal", "plain"])
def test_pictures_that_hold_nothing_are_said_before_training(colours, caplog):
    for i, colour in enumerate(colours):
        path = Path("data", "cat" if i % 2 else "dog", f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(path)
    with caplog.at_level(logging.WARNING, "runner"):
        runner.run([*SMALL[:-1], "trainer.dry_run=true"], run_dir="run")
    lines = [line for line in Path("run/runner.log").read_text().splitlines() if "are each of one single value" in line]
    assert len(lines) and "dataset.train" in lines[0]


def test_examples_that_are_all_equal_are_said(tmp_path):
    pictures(count=1)
    content = Path("data/cat/00.png").read_bytes()
    for name in ("cat", "dog"):
        for i in range(8):
            Path("data", name, f"{i:02d}.png").write_bytes(content)
    runner.run([*SMALL, "trainer.dry_run=true"], run_dir="run")
    assert "dataset.train: the examples that were looked at are all equal" in Path("run/runner.log").read_text()


# ------------------------------------------------------------ a file that cannot be read


BROKEN = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "html": lambda path: path.write_text("<!DOCTYPE html><html></html>"),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "gone": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}
PLACES = {
    "memory": ["dataloader.placement=memory"],
    "loader": ["dataloader.placement=workers"],
    "workers": ["dataloader.num_workers=1"],
}


@pytest.mark.parametrize(
    ("kind", "place"), [*((kind, "memory") for kind in BROKEN), ("cut", "loader"), ("cut", "workers")]
)
def test_a_broken_picture_is_one_line_with_its_file(kind, place):
    pictures(suffix="jpg")
    BROKEN[kind](Path("data/dog/05.jpg"))
    with pytest.raises(InputError) as error:
        runner.run([*SMALL, *PLACES[place], "dataset.test_size=0", "dataset.val_size=2"], run_dir="run")
    assert str(error.value).startswith("dataset: data/dog/05.jpg: cannot be read (")
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(("part", "place"), [("val", "memory"), ("test", "loader"), ("test", "workers")])
def test_a_broken_picture_is_named_in_every_part(part, place):
    for name in ("data", "other"):
        pictures(name, count=40, suffix="jpg")
    for path in Path("other").rglob("*.jpg"):
        Image.open(path).rotate(180).save(path)
    path = Path("other/dog/05.jpg")
    kept = path.read_bytes()
    path.write_bytes(b"")
    words = [*SMALL, *PLACES[place], f"dataset.{part}_root=other"]
    words += ["dataset.val_size=0"] if part == "val" else []
    with pytest.raises(InputError, match=r"^dataset: other/dog/05\.jpg: cannot be read \(it is empty\)"):
        runner.run(words, run_dir="run")
    path.write_bytes(kept)
    assert runner.run(words, run_dir="again")["state"] == "done"
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"^dataset: other/dog/05\.jpg: cannot be read \(it is empty\)"):
        resume(Path("again"), ["trainer.epochs=2", "accept_data_change=true"])
    with pytest.raises(InputError, match=r"^dataset: other/dog/05\.jpg: cannot be read \(it is empty\)"):
        dispatch(["evaluate", "again", "--split", part])


@pytest.mark.slow
def test_a_dataset_of_ones_own_names_its_file_too(cli):
    pictures(suffix="jpg")
    Path("data/dog/05.jpg").write_bytes(b"")
    Path("mine.py").write_text(
        "import pathlib, torch\nimport numpy as np\nfrom PIL import Image\n"
        "from torch.utils.data import Subset\n\n\n"
        "class Mine:\n"
        "    def __init__(self):\n"
        "        self.paths = sorted(pathlib.Path('data').rglob('*.jpg'))\n"
        "    def __len__(self):\n        return len(self.paths)\n"
        "    def __getitem__(self, i):\n"
        "        image = np.asarray(Image.open(self.paths[i]), dtype=np.float32)\n"
        "        return torch.from_numpy(image).mean(2).flatten()[:64], int('dog' in str(self.paths[i]))\n\n\n"
        "def some():\n    return Subset(Mine(), range(19, 0, -1))\n"
    )
    for target in ("mine.Mine", "mine.some"):
        words = [f"dataset.train._target_={target}", "~dataset.train.mean", "~dataset.train.std", "dataset.mean=[0.0]"]
        words += ["dataset.std=[1.0]", "dataset.input_shape=[64]", "dataset.num_classes=2", "model=mlp"]
        done = cli(*words, "trainer.epochs=1", "dataset.test_size=2", "dataset.val_size=2")
        assert done.returncode == 2, done.stderr
        assert "dataset: data/dog/05.jpg: cannot be read (it is empty)" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr


def test_check_reads_every_picture_when_it_is_asked_to(capsys):
    pictures(count=40, suffix="jpg")
    for path in ("data/dog/05.jpg", "data/cat/33.jpg"):
        Path(path).write_bytes(b"")
    assert dispatch(["check", *SMALL, "--examples"]) == 2
    said = capsys.readouterr().out
    assert "data/dog/05.jpg: cannot be read" in said and "data/cat/33.jpg: cannot be read" in said
    assert "2 of its examples" in said
    for path in ("data/dog/05.jpg", "data/cat/33.jpg"):
        Path(path).unlink()
    assert dispatch(["check", *SMALL, "--examples"]) == 0
    assert not Path("outputs").exists()


# ------------------------------------------------------------ transforms and shapes that differ


def test_a_wrong_argument_of_a_transform_names_its_key():
    pictures()
    steps = "[{_target_: torchvision.transforms.ToTensor}, {_target_: torchvision.transforms.Resize, size: [1,2,3]}]"
    with pytest.raises(InputError) as error:
        runner.run([*SMALL, f"dataset.transform={steps}"])
    assert str(error.value).startswith("dataset.train.transform.transforms.1") and "Resize" in str(error.value)


@pytest.mark.parametrize("place", ["loader", "workers"])
def test_a_transform_that_does_not_take_an_image_is_named(place):
    pictures()
    steps = (
        "[{_target_: torchvision.transforms.ToTensor},"
        "{_target_: torchvision.transforms.Normalize, mean: [0.1, 0.2], std: [1.0, 1.0]}]"
    )
    words = [*SMALL, *PLACES[place], f"dataset.transform={steps}", "dataset.input_shape=[3,30,40]"]
    words = [word for word in words if not word.startswith("dataset.image_size")]
    with pytest.raises(InputError) as error:
        runner.run(words)
    assert "Normalize(mean=[0.1, 0.2]" in str(error.value) and "data/" in str(error.value)


def test_pictures_of_several_sizes_ask_for_a_transform_or_a_collate_function():
    pictures()
    Image.new("RGB", (31, 17)).save("data/cat/00.png")
    words = [word for word in SMALL if not word.startswith("dataset.image_size")]
    words += ["dataset.input_shape=[3,30,40]", "dataset.transform=[{_target_: torchvision.transforms.ToTensor}]"]
    with pytest.raises(InputError) as error:
        runner.run(words)
    assert "dataloader.collate_fn={_target_: your.function}" in str(error.value)
    assert "=31" not in str(error.value)


def test_the_bits_of_colour_pictures_are_torchvisions():
    from torchvision.datasets import ImageFolder

    pictures()
    theirs, ours = ImageFolder("data"), image_folder("data")
    assert [s[0] for s in theirs.samples] == [s[0] for s in ours.samples] and theirs.targets == ours.targets
    for i in range(len(ours)):
        assert np.array_equal(np.asarray(theirs[i][0]), np.asarray(ours[i][0]))
    record = runner.run(SMALL, run_dir="run")
    assert json.loads(Path("run/run.json").read_text())["placement"] == "memory"
    same = runner.run([*SMALL, "dataloader.placement=workers"], run_dir="again")
    assert same["last"] == record["last"]
    weights = [read_weights(Path(name, "checkpoints/last.pt"), "init_from") for name in ("run", "again")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
