"""What several tests share: the real command in a subprocess, small data in torchvision's formats, tiny parts."""

import atexit
import gc
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes of two threads each fight over two cores

# Of this process and those that it starts: the temporary files, none of which may stay.
TEMPORARY = os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # where pytest keeps its own
FOLDER = tempfile.mkdtemp(prefix="runner-tests-", dir=TEMPORARY)
os.environ["TMPDIR"] = tempfile.tempdir = os.path.join(FOLDER, "tmp")
os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(FOLDER, "inductor")  # torch sets it where it is not given
os.mkdir(tempfile.tempdir)
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)

import numpy as np
import psutil
import pytest

from runner.__main__ import main
from runner.config import admission
from runner.job.process_state import put, switches
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--order", help="shuffle the files, and the tests of each, by this seed", metavar="SEED")


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.getoption("order")
    return None if seed is None else f"shuffled: --order={seed} --no-loadscope-reorder is this order again"


MOST = 6  # cases of one table in the default suite


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them at the end; or all shuffled. Of a table of
    many cases the default suite takes some, spread over it; the slow tests take the others.
    """
    tables: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        if hasattr(item, "callspec") and item.get_closest_marker("slow") is None:
            tables.setdefault((item.path, item.originalname), []).append(item)
    for cases in tables.values():
        kept = {cases[number * len(cases) // MOST].nodeid for number in range(MOST)}
        for case in cases:
            if case.nodeid not in kept:
                case.add_marker(pytest.mark.slow)
    seed = config.getoption("order")
    if seed is None:
        items.sort(key=lambda item: item.path.stem not in LONG)
    else:
        items.sort(key=lambda item: random.Random(f"{seed} {item.nodeid}").random())
        items.sort(key=lambda item: random.Random(f"{seed} {item.path.stem}").random())


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


@pytest.fixture(autouse=True, scope="session")
def nothing_is_left():
    """The suite leaves no temporary folder and no process of the runner behind; Ray and browsers end in their time."""
    yield

    def left() -> list[str]:
        found = [str(path) for path in Path(FOLDER, "tmp").iterdir() if path.name.startswith("runner")]
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("TMPDIR") == os.environ["TMPDIR"] and process.pid != os.getpid()
                command = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if is_ours and re.search(r"-m runner|runner\.\w", command):
                found.append(f"process {process.pid}: {command[:200]}")
        return found

    deadline = time.monotonic() + 15
    while (found := left()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not found, f"the tests leave behind: {found}"


HOOK = sys.excepthook
FOREIGN = ("PYTEST_", "KMP_", "RAY_", "_TORCHINDUCTOR", "MLFLOW_")  # variables that libraries set when they are used


def defaults() -> dict[str, object]:
    """What of this process a test may not leave changed; what other libraries set is put back: see own_folder."""
    own, handlers = logging.getLogger("runner"), logging.getLogger().handlers
    hook = HOOK if str(sys.excepthook.__module__).startswith("ray.") else sys.excepthook
    return {
        **{f"${name}": value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
        "sys.path": [entry for entry in sys.path if "site-packages" not in entry],  # Ray adds its own
        "hooks": (hook, sys.displayhook, warnings.formatwarning, warnings.showwarning),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "logging": (own.level, own.handlers[:], [one for one in handlers if type(one).__module__ == "runner.job.logs"]),
        "gc": gc.isenabled(),
        "granted": admission.granted(),
    }


@pytest.fixture(autouse=True)
def nothing_is_changed():
    before = defaults()
    yield
    after = defaults()
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    changed = [f"{name}: {before.get(name)} -> {after.get(name)}" for name in names]
    assert not changed, f"the test leaves changed: {'; '.join(changed)}"


@pytest.fixture(autouse=True)
def trusted(nothing_is_changed, tmp_path, monkeypatch):
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


@pytest.fixture
def say(capsys, monkeypatch):
    """The command in this process: its exit code, what it printed, and what it said on stderr."""

    def run(*words, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["runner", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return ended.value.code, shown.out, shown.err

    return run


@pytest.fixture(autouse=True)
def own_folder(nothing_is_changed, tmp_path, monkeypatch):
    """Each test runs in a folder of its own; torch's settings are put back and the folder's modules are forgotten."""
    monkeypatch.chdir(tmp_path)
    notices.take()  # what an earlier test left unsaid
    before = {name: value for name, value in switches().items() if name != "directory"}
    level, modules = logging.getLogger().level, set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(f"{tmp_path}{os.sep}"):
            del sys.modules[name]
    put(before)
    logging.getLogger().setLevel(level)


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
    for module in ("saved", "recovery"):
        monkeypatch.setattr(f"runner.job.{module}.check_owner", lambda *_: None)
