"""A dataset decoded once into tensors on the training device, for batches by index.

Contract: on a CPU, rows are bit for bit what default_collate makes of the dataset's own samples. So only datasets
whose samples are known never to change are taken.
"""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from runner.batches.samples import collated, read
from runner.errors import InputError

# Transforms of torchvision (v1 and v2) that draw nothing.
DETERMINISTIC_TRANSFORMS = {
    *("ToTensor", "PILToTensor", "ToImage", "ToDtype", "ToPureTensor", "ConvertImageDtype"),
    *("Normalize", "Resize", "CenterCrop", "Pad", "Grayscale"),
}
# Those that draw, beside the many whose names begin with Random.
RANDOM_TRANSFORMS = {
    *("ColorJitter", "GaussianBlur", "GaussianNoise", "ElasticTransform", "ScaleJitter", "JPEG", "MixUp", "CutMix"),
    *("AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix"),
}
ON_IMAGES = {"Resize", "CenterCrop", "Pad", "Grayscale"}  # those that take and give a PIL image
# In the environment of a job that has others beside it: how many share this machine's memory, and its GPU's.
JOBS_AT_ONCE, JOBS_PER_GPU = "RUNNER_JOBS_AT_ONCE", "RUNNER_JOBS_PER_GPU"
CGROUP = Path("/sys/fs/cgroup")


def _steps(transform: Any) -> list[Any]:
    """The transforms of a Compose, one by one; none for None."""
    if type(transform).__name__ == "Compose":
        return [step for part in transform.transforms for step in _steps(part)]
    return [] if transform is None else [transform]


def _draws_nothing(step: Any) -> bool:
    return type(step).__module__.startswith("torchvision.") and type(step).__name__ in DETERMINISTIC_TRANSFORMS


def random_transforms(dataset: Any) -> list[str]:
    """The names of a dataset's transforms that are known to draw random numbers: torchvision's, and who is named so."""
    steps = [step for name in ("transform", "target_transform") for step in _steps(getattr(dataset, name, None))]
    names = [(type(step).__name__, type(step).__module__.startswith("torchvision.")) for step in steps]
    return [name for name, is_theirs in names if name.startswith("Random") or (is_theirs and name in RANDOM_TRANSFORMS)]


def is_known(dataset: Any) -> bool:
    """Whether a dataset is one of torchvision's, or our folder of pictures: what its transforms do is all it does."""
    return type(dataset).__module__.startswith("torchvision.datasets.") or is_folder(dataset)


def is_folder(dataset: Any) -> bool:
    return bool(vars(type(dataset)).get("draws_by_transforms_alone", False))


def is_deterministic(dataset: Any) -> bool:
    """Whether dataset[i] is known to draw no random number: this project's datasets, torchvision's by transform."""
    return may_draw(dataset) is None


def may_draw(dataset: Any) -> Any:
    """What of a dataset may draw random numbers: a transform, or the dataset itself; None where it is known to draw
    none.
    """
    if type(dataset) is TensorDataset or vars(type(dataset)).get(
        "is_deterministic", False
    ):  # its own word, not that of a class which it refines
        return None
    if not is_known(dataset):
        return dataset
    from torchvision.datasets.folder import default_loader
    from torchvision.datasets.vision import StandardTransform

    is_plain = isinstance(getattr(dataset, "transforms", None), (StandardTransform, type(None)))
    has_loader = getattr(dataset, "loader", default_loader) is not default_loader and not is_folder(dataset)
    if not is_plain or has_loader:
        return dataset
    steps = [step for name in ("transform", "target_transform") for step in _steps(getattr(dataset, name, None))]
    return next((step for step in steps if not _draws_nothing(step)), None)


class Unfit(ValueError):
    """Why a dataset's samples cannot be kept in one tensor."""


class Store:
    """The samples of a deterministic dataset: a row of `images` and of `targets` each, decoded when first asked for.

    8-bit images that torchvision would turn into floats by ToTensor and Normalize stay 8-bit here, and those two are
    done for a batch at a time.

    Raises:
        Unfit: the samples are not pairs of tensors or numbers.
    """

    def __init__(self, dataset: Any, device: torch.device) -> None:
        self.device, self.count = device, len(dataset)
        if not _is_of_one_size(dataset):
            raise Unfit(f"{name_of(dataset)} may give images of different sizes: no transform gives them a fixed one")
        self._dataset, self._finish = _as_bytes(dataset)
        self._row, self._target = _collated(self._dataset, [0])
        self.num_bytes = self.count * sum(t.numel() * t.element_size() for t in (self._row, self._target))

    def open(self) -> "Store":
        """Reserves the memory, and fills it where the dataset lies in memory already."""
        whole = _whole_images(self._dataset) if self._finish else None
        if whole is not None:
            self.images = whole.to(self.device)
            self.targets = torch.as_tensor(self._dataset.targets, dtype=torch.int64).to(self.device)
        else:
            made = [
                torch.empty((self.count, *row.shape[1:]), dtype=row.dtype, device=self.device)
                for row in (self._row, self._target)
            ]
            self.images, self.targets = made
        self._filled = torch.full((self.count,), whole is not None)
        self.steps = _batched(self._finish, self.device)  # what is left to be done to a batch of images
        return self

    def holds(self, indices: Tensor) -> bool:
        """Whether all rows among indices (int64, on the CPU) were decoded."""
        return bool(self._filled[indices].all())

    def fill(self, indices: Tensor) -> None:
        """Decodes the rows among indices (int64, on the CPU) that are not there yet."""
        missing = indices[~self._filled[indices]]
        if not len(missing):
            return
        images, targets = _collated(self._dataset, missing.tolist())
        for given, kept in ((images, self.images), (targets, self.targets)):
            if given.shape[1:] != kept.shape[1:] or given.dtype != kept.dtype:
                raise InputError(
                    f"dataset: the samples differ, {given.dtype} of {list(given.shape[1:])} and {kept.dtype} of"
                    f" {list(kept.shape[1:])}; dataloader.placement=workers takes them where the batch does"
                )
        rows = missing.to(self.device)
        self.images[rows], self.targets[rows] = images.to(self.device), targets.to(self.device)
        self._filled[missing] = True


def _collated(dataset: Any, indices: list[int]) -> tuple[Tensor, Tensor]:
    batch = collated(read(dataset, indices))
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise Unfit(f"{name_of(dataset)} gives samples that are not pairs of tensors")
    return batch[0], batch[1]


def _is_of_one_size(dataset: Any) -> bool:
    """Whether images read from files are cut to one size; a dataset that holds an array has them so."""
    if not is_known(dataset) or hasattr(dataset, "data"):
        return True
    for step in _steps(getattr(dataset, "transform", None)):
        size = getattr(step, "size", None)
        if type(step).__name__ == "CenterCrop" or (isinstance(size, (list, tuple)) and len(size) == 2):
            return True
    return False


def _as_bytes(dataset: Any) -> tuple[Any, list[Any]]:
    """The dataset with 8-bit samples, and the transforms that are left for batches; else itself and none."""
    if not is_known(dataset):
        return dataset, []
    from torchvision.datasets import CIFAR10, MNIST, DatasetFolder
    from torchvision.transforms import Compose, PILToTensor

    if type(dataset).__getitem__ not in (MNIST.__getitem__, CIFAR10.__getitem__, DatasetFolder.__getitem__):
        return dataset, []
    steps = _steps(dataset.transform)
    names = [type(step).__name__ for step in steps]
    at = names.index("ToTensor") if "ToTensor" in names else len(names)
    if at == len(names) or not set(names[:at]) <= ON_IMAGES or set(names[at + 1 :]) - {"Normalize"}:
        return dataset, []
    as_bytes = copy.copy(dataset)
    as_bytes.transform = Compose([*steps[:at], PILToTensor()])
    return as_bytes, steps[at:]


def _whole_images(as_bytes: Any) -> Tensor | None:
    """uint8 (N, C, H, W) where the dataset holds all of its images so, and its targets, else None."""
    from torchvision.datasets import CIFAR10, MNIST

    if as_bytes.target_transform is not None or len(_steps(as_bytes.transform)) > 1:
        return None
    if isinstance(as_bytes, MNIST):
        return as_bytes.data.unsqueeze(1)  # type: ignore[no-any-return]
    return torch.from_numpy(as_bytes.data).permute(0, 3, 1, 2).contiguous() if isinstance(as_bytes, CIFAR10) else None


def _batched(steps: list[Any], device: torch.device) -> list[Callable[[Tensor], Tensor]]:
    """torchvision's ToTensor and then Normalize for uint8 (N, C, H, W), with the same roundings."""
    if not steps:
        return []

    def column(values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)

    made: list[Callable[[Tensor], Tensor]] = [lambda images: images.float().div_(255)]
    for step in steps[1:]:
        mean, std = column(step.mean), column(step.std)
        if bool((std == 0).any()):
            raise InputError(f"dataset: Normalize with std={list(step.std)}: must not hold a zero")
        made.append(lambda images, mean=mean, std=std: images.sub_(mean).div_(std))  # type: ignore[misc]
    return made


def free_bytes(device: torch.device) -> int:
    """Memory that is free for a dataset on the device: a container's limit counts too."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        pages = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    cached = int(pages.get("inactive_file", 0))  # given back when it is needed
    return max(0, min(free, int(limit) - used + cached)) if limit.isdecimal() else free


def jobs_at_once(device: torch.device) -> int:
    """How many jobs share the device's memory: a sweep says so to each of its workers; one where nobody does.

    Raises:
        InputError: the variable holds something else.
    """
    name = JOBS_PER_GPU if device.type == "cuda" else JOBS_AT_ONCE
    text = os.environ.get(name) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{name}={text}: must be a whole number of at least 1, of the jobs that share the memory")
    return int(text)


def name_of(thing: Any) -> str:
    """module.name of a function or class, module.Class of any other object."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"
