"""What several tests share: the real command in a subprocess, small data in torchvision's formats, tiny parts."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes of two threads each fight over two cores

import numpy as np
import pytest
import torch

from runner.config import admission
from runner.terminal import notices

CONF = Path(__file__).parents[1] / "conf"
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


LONG = (
    "test_search",
    "test_mutations",
    "test_sweep",
    "test_hostile",
    "test_ray",
    "test_engines",
)  # when slow tests run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem not in LONG)


class Cli:
    """`python -m runner ...` in a folder of its own."""

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd

    def __call__(self, *words: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "runner", *words],
            cwd=self.cwd,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *words: str, **options: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "runner", *words],
            cwd=self.cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )


@pytest.fixture(autouse=True)
def trusted(tmp_path, monkeypatch):
    """In this process the tests' own modules are the user's, as those beside a command are."""
    monkeypatch.setattr(admission, "beside", lambda: (tmp_path.resolve(), Path(__file__).resolve().parent))


def until(condition: Callable[[], object], seconds: float = 240) -> None:
    """Waits for a condition, and fails where it does not come: a loop that only ends tests nothing."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


class Batches(list):
    """A loader of these batches."""

    def batches(self, epoch=0, start=0):
        return iter(self[start:])


class Killed(BaseException):
    """Stands for a SIGKILL inside this process: nothing of the run ends, but what a `with` holds."""


def killed_after(batches: int, monkeypatch: pytest.MonkeyPatch, start: Callable[[], object]) -> None:
    """Starts a run that is gone after so many batches of this start."""
    from runner.train.trainer import Trainer

    after, count = Trainer.after_batch, 0

    def dying(self: Trainer) -> None:
        nonlocal count
        after(self)
        count += 1
        if count == batches:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Trainer, "after_batch", dying)
        start()


@pytest.fixture
def cli(tmp_path):
    return Cli(tmp_path)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test runs in a folder of its own; torch's settings are put back and the folder's modules are forgotten."""
    monkeypatch.chdir(tmp_path)
    notices.take()  # what an earlier test left unsaid
    threads = torch.get_num_threads()
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A root with 60 + 20 random images in the formats of every torchvision dataset of conf/, and an image folder."""
    import pickle

    from PIL import Image

    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        raw = root / name / "raw"
        raw.mkdir(parents=True)
        for file in IDX_NAMES:
            count = 60 if file.startswith("train") else 20
            images = "images" in file
            write_idx(raw / file, rng.integers(0, 256, (count, 28, 28)) if images else np.arange(count) % 10)
    for folder, label, names, classes in (
        ("cifar-10-batches-py", "labels", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], 10),
        ("cifar-100-python", "fine_labels", ["train", "test"], 100),
    ):
        (root / folder).mkdir()
        for name in names:
            data = rng.integers(0, 256, (200, 3072), dtype=np.uint8)
            (root / folder / name).write_bytes(pickle.dumps({"data": data, label: [i % classes for i in range(200)]}))
        meta, key = ("batches.meta", "label_names") if classes == 10 else ("meta", "fine_label_names")
        (root / folder / meta).write_bytes(pickle.dumps({key: [f"class {i}" for i in range(classes)]}))
    for kind in ("cat", "dog", "owl"):
        (root / "images" / kind).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / kind / f"{i}.png")
    return root


@pytest.fixture
def torchvision_unchecked(monkeypatch):
    """torchvision's CIFAR compares its files' MD5 with the real ones; here they are ours."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)


@pytest.fixture
def no_owner(monkeypatch):
    """Whoever writes a config into run.json writes it into the checkpoints too: it is not they that refuse it."""
    for module in ("saved", "resuming"):
        monkeypatch.setattr(f"runner.job.{module}.check_owner", lambda *_: None)
