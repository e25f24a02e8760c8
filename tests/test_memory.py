"""Data in memory: the same tensors as from torch's DataLoader, bit for bit, and a clear choice between the two."""

import pytest
import torch
from torchvision import datasets, transforms

from runner.augment import RandomAffine, RandomCrop, RandomErasing, RandomHorizontalFlip
from runner.batches import settings as settings_module
from runner.batches.loaders import MemoryLoader
from runner.batches.memory import jobs_at_once
from runner.batches.parts import Part
from runner.batches.settings import LoaderSettings
from runner.cli.verify import differences
from runner.data import Digits, Fake
from runner.storage.run_dir import RunDir
from runner.terminal.words import GIB

CPU = torch.device("cpu")
AUGMENT = [RandomCrop(2), RandomHorizontalFlip(), RandomAffine(10, 0.1), RandomErasing()]


def normalized(channels, *before):
    means, stds = [0.1307, 0.5, 0.447][:channels], [0.3081, 0.25, 0.261][:channels]
    return transforms.Compose([*before, transforms.ToTensor(), transforms.Normalize(means, stds)])


SMALL = [transforms.Resize(24), transforms.CenterCrop(20)]
MADE = {
    "digits": lambda root: Digits((0.3,), (0.4,)),
    "fake": lambda root: Fake(70, (3, 9, 7), 5),
    "mnist": lambda root: datasets.MNIST(root, transform=normalized(1)),
    "mnist, resized": lambda root: datasets.MNIST(root, transform=normalized(1, *SMALL)),
    "mnist, other targets": lambda root: datasets.MNIST(
        root, transform=normalized(1), target_transform=transforms.Compose([])
    ),
    "mnist, to half": lambda root: datasets.MNIST(
        root, transform=transforms.Compose([normalized(1), transforms.ConvertImageDtype(torch.float16)])
    ),
    "cifar10": lambda root: datasets.CIFAR10(root, transform=normalized(3)),
    "cifar100, padded": lambda root: datasets.CIFAR100(root, transform=normalized(3, transforms.Pad(2))),
    "image folder": lambda root: datasets.ImageFolder(root / "images", transform=normalized(3, *SMALL)),
}


def placed(part, augment=(), **settings):
    placement = LoaderSettings(8, **settings).place([part], augment, CPU)
    return LoaderSettings(8).training(part, augment, 3, CPU, None, placement), placement


@pytest.mark.parametrize("augment", [[], AUGMENT], ids=["plain", "augmented"])
@pytest.mark.parametrize("name", MADE)
def test_memory_gives_the_tensors_of_workers(name, augment, tiny_data, torchvision_unchecked):
    dataset = MADE[name](tiny_data)
    if name == "mnist, to half" and augment:
        augment = [RandomCrop(2)]  # grid_sample takes no half here
    part = Part(dataset, torch.arange(3, min(60, len(dataset))))
    memory, placement = placed(part, augment)
    assert isinstance(memory, MemoryLoader), placement.reason
    workers = LoaderSettings(8).training(part, augment, 3, CPU, None)
    for epoch, start in ((0, 0), (1, 0), (4, 2), (4, len(memory))):
        expected = list(workers.batches(epoch, start))
        given = list(memory.batches(epoch, start))
        assert len(given) == len(expected) == len(memory) - start
        for one, two in zip(given, expected, strict=True):
            for a, b in zip(one, two, strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)
    for one, two in zip(memory.examples(2), workers.examples(2), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("name", "kind"), [("mnist", "uint8"), ("cifar10", "uint8"), ("image folder", "uint8")])
def test_images_of_8_bits_stay_so(name, kind, tiny_data, torchvision_unchecked):
    dataset = MADE[name](tiny_data)
    _, placement = placed(Part(dataset, torch.arange(4)))
    (store,) = placement.stores.values()
    assert str(store.images.dtype) == f"torch.{kind}"


def test_a_sample_is_decoded_once_and_only_if_it_is_asked_for():
    read = []

    class Recording(Fake):
        is_deterministic = True

        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    memory, _ = placed(Part(Recording(50, (1, 4, 4)), torch.arange(10, 42)))
    read.clear()
    next(memory.batches(0))
    assert len(read) == 8
    for epoch in range(3):
        list(memory.batches(epoch))
    assert sorted(read) == list(range(10, 42))


class Unknown(Fake):
    """It may draw, whatever the class says that it refines."""


class Broken(Fake):
    is_deterministic = True

    def __getitem__(self, index):
        raise OSError("a broken file")


class Pair(Fake):
    is_deterministic = True

    def __getitem__(self, index):
        return {"image": super().__getitem__(index)[0]}


FAKE = Fake(40, (1, 8, 8))
REASONS = [
    (FAKE, [], {"num_workers": 0}, "num_workers=0"),
    (FAKE, [], {"pin_memory": True}, "pin_memory=True"),
    (FAKE, [], {"placement": "workers"}, "as asked for"),
    (FAKE, [], {"memory_limit": 0}, "do not fit"),
    (FAKE, [transforms.RandomCrop(4)], {}, "torchvision.transforms.transforms.RandomCrop may draw"),
    (Unknown(40, (1, 8, 8)), [], {}, "test_memory.Unknown may draw"),
    (Pair(40, (1, 8, 8)), [], {}, "test_memory.Pair gives samples that are not pairs"),
]


@pytest.mark.parametrize("placement", ["auto", "memory"])
def test_a_first_example_that_cannot_be_read_is_said_at_once(placement):
    with pytest.raises(ValueError, match=r"dataset: example 0 of Broken: cannot be read \(a broken file\)"):
        LoaderSettings(placement=placement).place([Part(Broken(40, (1, 8, 8)), torch.arange(9))], (), CPU)


@pytest.mark.parametrize(("dataset", "augment", "settings", "reason"), REASONS, ids=[case[-1] for case in REASONS])
def test_auto_takes_workers_and_says_why(dataset, augment, settings, reason):
    _, placement = placed(Part(dataset, torch.arange(9)), augment, **settings)
    assert (placement.where, placement.stores) == ("workers", {})
    assert reason in placement.reason
    if "placement" not in settings:
        with pytest.raises(ValueError, match="placement=memory: ") as refused:
            LoaderSettings(8, **settings, placement="memory").place([Part(dataset, torch.arange(9))], augment, CPU)
        assert reason in str(refused.value)


def test_what_does_not_fit_is_refused_with_both_sizes(monkeypatch):
    monkeypatch.setattr(settings_module, "free_bytes", lambda device: 3 * GIB)
    part = Part(FAKE, torch.arange(9))
    with pytest.raises(ValueError, match=r"0\.0 MiB of a limit of 0\.0 MiB \(3\.00 GiB are free\)"):
        LoaderSettings(placement="memory", memory_limit=1e-6).place([part], [], CPU)
    assert "of a limit of 0.75 GiB" in LoaderSettings().place([part], [], CPU).reason


def test_samples_of_other_shapes_are_named():
    class Growing(Fake):
        is_deterministic = True

        def __getitem__(self, index):
            return torch.zeros(1, 2 + index // 8), 0

    memory, _ = placed(Part(Growing(20, (1, 8, 8)), torch.arange(20)))
    mixed = LoaderSettings(6, shuffle=False).training(memory.order.part, [], 3, CPU, None, memory_of(memory))
    with pytest.raises(ValueError, match="samples of a batch differ"):
        list(mixed.batches(0))
    with pytest.raises(ValueError, match=r"\[1, 3\].*\[1, 2\].*placement=workers"):
        memory.order.shuffle = False
        list(memory.batches(0))


def memory_of(loader):
    dataset = loader.order.part.dataset
    return LoaderSettings().place([Part(dataset, torch.arange(9))], [], CPU)


def test_what_may_draw_through_a_back_door_is_left_to_the_workers(tiny_data):
    flips = transforms.RandomHorizontalFlip()
    joint = datasets.ImageFolder(tiny_data / "images", transform=normalized(3, *SMALL))
    joint.transforms = lambda image, target: (flips(image), target)
    own_loader = datasets.ImageFolder(
        tiny_data / "images",
        transform=normalized(3, *SMALL),
        loader=lambda path: flips(datasets.folder.pil_loader(path)),
    )
    for dataset in (joint, own_loader):
        assert placed(Part(dataset, torch.arange(9)))[1].where == "workers"


def test_images_without_a_fixed_size_are_left_to_the_workers(tiny_data):
    for step in (transforms.Resize(24), transforms.Grayscale()):
        dataset = datasets.ImageFolder(tiny_data / "images", transform=normalized(1, step))
        assert "of different sizes" in placed(Part(dataset, torch.arange(9)))[1].reason
    fixed = datasets.ImageFolder(tiny_data / "images", transform=normalized(3, transforms.Resize((24, 20))))
    assert placed(Part(fixed, torch.arange(9)))[1].where == "memory"


def test_a_std_of_zero_is_refused(tiny_data):
    zero = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.0])])
    with pytest.raises(ValueError, match=r"std=\[0\.0\]"):
        placed(Part(datasets.MNIST(tiny_data, transform=zero), torch.arange(9)))


def test_a_containers_limit_counts_without_what_is_used(tmp_path, monkeypatch):
    from runner.batches import memory

    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = memory.free_bytes(CPU)
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300000\n")
    assert memory.free_bytes(CPU) == 400_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) > 400_000 and whole > 400_000


@pytest.mark.parametrize("jobs", [1, 4])
def test_jobs_at_once_share_the_quarter_that_one_alone_may_take(jobs, monkeypatch):
    from runner.sweep.worker import share_memory

    monkeypatch.setattr(settings_module, "free_bytes", lambda device: 8 * GIB)
    for name in ("RUNNER_JOBS_AT_ONCE", "RUNNER_JOBS_PER_GPU"):
        monkeypatch.setenv(name, "")  # it is put back afterwards
    part, cuda = Part(FAKE, torch.arange(9)), torch.device("cuda")
    assert LoaderSettings().place([part], [], CPU).reason.endswith("of a limit of 2.00 GiB (8.00 GiB are free)")
    share_memory(jobs, per_gpu=2)
    among = f", among {jobs} jobs at once" if jobs > 1 else ""
    reason = LoaderSettings().place([part], [], CPU).reason
    assert reason.endswith(f"of a limit of {2 / jobs:.2f} GiB (8.00 GiB are free{among})")
    assert jobs_at_once(cuda) == 2
    assert "of a limit of 1.00 GiB" in LoaderSettings(memory_limit=1).place([part], [], CPU).reason


def test_a_share_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("RUNNER_JOBS_AT_ONCE", "some")
    with pytest.raises(ValueError, match="RUNNER_JOBS_AT_ONCE=some: must be a whole number of at least 1"):
        LoaderSettings().place([Part(FAKE, torch.arange(9))], [], CPU)


@pytest.mark.slow
def test_the_jobs_of_a_sweep_share_and_stay_the_jobs_and_bits_that_they_are_alone(cli):
    words = ["model=mlp", "model.hidden=[4]", "trainer.epochs=1", "trainer.limit_batches=2", "device.threads=1"]
    done = cli("-m", *words, "seed=1,2,3", "hydra.launcher.jobs=2", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    alone = cli(*words, "seed=2", "hydra.run.dir=alone")
    assert alone.returncode == 0 and "among" not in alone.stdout
    for seed in (1, 2, 3):
        assert "are free, among 2 jobs at once)" in (cli.cwd / "sweep" / f"seed={seed}" / "runner.log").read_text()
    one, other = RunDir(cli.cwd / "sweep" / "seed=2"), RunDir(cli.cwd / "alone")
    assert list(differences(one, other)) == []
    assert one.read_run()["config"] == other.read_run()["config"]
