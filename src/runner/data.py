"""Datasets: only what torch and torchvision have not got."""

import gzip
import importlib.util
import io
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from runner.errors import InputError
from runner.seeding import derive


def _packaged(name: str, delimiter: str = ",") -> np.ndarray[Any, Any]:
    """A table of numbers that scikit-learn carries, fp64, less its title line; its import would take a second."""
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder, "datasets", "data", name)
        if path.is_file():
            return np.loadtxt(io.BytesIO(gzip.decompress(path.read_bytes())), delimiter=delimiter)
    raise FileNotFoundError(f"scikit-learn keeps no {name} here")


def _read_digits() -> np.ndarray[Any, Any]:
    """1797 rows of 64 pixels (0 to 16) and a label."""
    try:
        return _packaged("digits.csv.gz").astype(np.int64)
    except FileNotFoundError:  # a scikit-learn that keeps the file elsewhere
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        return np.column_stack([images, labels]).astype(np.int64)


def _read_diabetes() -> np.ndarray[Any, Any]:
    """442 rows of 10 measurements and the progression of the disease."""
    try:
        table = _packaged("diabetes_data_raw.csv.gz", " "), _packaged("diabetes_target.csv.gz")
    except FileNotFoundError:
        from sklearn.datasets import load_diabetes

        table = load_diabetes(return_X_y=True, scaled=False)
    return np.column_stack(table)


class Digits(Dataset[tuple[Tensor, int]]):
    """scikit-learn's 1,797 handwritten digits: images (1, 8, 8), pixels scaled to [0, 1] and normalized.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    """

    is_deterministic = True

    def __init__(self, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,)) -> None:
        table = torch.from_numpy(_read_digits())
        self.targets: list[int] = table[:, 64].tolist()
        self.images = ((table[:, :64].float() / 16 - mean[0]) / std[0]).view(-1, 1, 8, 8)
        self.classes = [str(digit) for digit in range(10)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], self.targets[index]


class Diabetes(Dataset[tuple[Tensor, Tensor]]):
    """scikit-learn's 442 patients: 10 measurements (10,), and the progression of their disease after a year (1,).

    Both are standardised by the means and standard deviations given.

    Source: Efron et al., "Least Angle Regression", 2004.
    """

    is_deterministic = True

    def __init__(
        self,
        mean: Sequence[float] = (0.0,) * 10,
        std: Sequence[float] = (1.0,) * 10,
        target_mean: float = 0.0,
        target_std: float = 1.0,
    ) -> None:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 10:
                raise ValueError(f"{name}={list(values)}: must hold 10 numbers, one a measurement")
        if min(*std, target_std) <= 0:
            raise ValueError(f"std={list(std)}, target_std={target_std}: all must be above 0")
        table = torch.from_numpy(_read_diabetes())
        self.data = ((table[:, :10] - torch.tensor(list(mean))) / torch.tensor(list(std))).float()
        self.values = ((table[:, 10:] - target_mean) / target_std).float()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data[index], self.values[index]


class Text(Dataset[tuple[Tensor, Tensor]]):
    """Characters of a text in pieces that do not overlap: (tokens, following), both int64 (context,).

    `classes` holds the distinct characters, in order; a token is an index in it.

    Args:
        path: a file of UTF-8; None: sentences made by generated_text().
        context: tokens of a piece.
        random_starts: in training each piece begins at another of its characters in each epoch, see Windows.
    """

    is_deterministic = True

    def __init__(self, path: str | None = None, context: int = 64, random_starts: bool = False) -> None:
        if context < 1:
            raise ValueError(f"context={context}: must be at least 1")
        try:
            text = generated_text() if path is None else Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "is no UTF-8"
            raise InputError(f"dataset.path={path}: cannot be read as text ({reason})") from error
        if len(text) <= context:
            raise InputError(f"dataset.path={path}: holds {len(text)} characters; context={context} needs more")
        self.classes = sorted(set(text))
        index = {character: at for at, character in enumerate(self.classes)}
        self.tokens, self.context = torch.tensor([index[character] for character in text]), context
        self.random_starts = random_starts

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        at = index * self.context
        return self.tokens[at : at + self.context], self.tokens[at + 1 : at + 1 + self.context]

    def as_trained_on(self, indices: Tensor) -> "Text | Windows":
        """What the training part, these pieces, is trained on."""
        return Windows(self, indices) if self.random_starts else self


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """A text's pieces, each with the next one, and an augmentation that cuts (tokens, following) from the two.

    The start is a draw of (seed, epoch, index) among the characters of the piece itself, so a window reaches into the
    next piece: where that is held out, it is the piece itself.
    """

    is_deterministic = True
    num_draws, on_targets = 1, True

    def __init__(self, text: Text, indices: Tensor) -> None:
        self.text, self.classes, self.own_augmentations = text, text.classes, [self]
        is_trained_on = torch.zeros(len(text) + 1, dtype=torch.bool).index_fill(0, indices, True)
        self.starts = torch.where(is_trained_on[1:], text.context, 1)  # so many of each piece
        self.starts[-1] = len(text.tokens) - len(text) * text.context
        self.tokens = torch.nn.functional.pad(text.tokens, (0, text.context))

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        at = index * self.text.context
        return self.tokens[at : at + 2 * self.text.context], self.starts[index]

    def __call__(self, tokens: Tensor, starts: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.minimum((draws[:, 0] * starts).long(), starts - 1)
        at = start.view(-1, 1) + torch.arange(self.text.context, device=tokens.device)
        return tokens.gather(1, at), tokens.gather(1, at + 1)


def generated_text(sentences: int = 2500, seed: int = 0) -> str:
    """Sentences of a small grammar, the same for the same seed: a plural noun has a plural verb."""
    generator = random.Random(derive(seed, "generated text"))
    nouns = ("cat", "dog", "bird", "fox", "horse", "child", "river", "stone", "cloud", "tree")
    verbs = ("see", "like", "follow", "find", "hear", "forget", "call", "leave")
    adjectives = ("small", "old", "red", "quiet", "quick", "tall")

    def noun_phrase() -> tuple[str, bool]:
        noun, is_plural = generator.choice(nouns), generator.random() < 0.4
        many = {"fox": "foxes", "child": "children"}.get(noun, f"{noun}s")
        words = [generator.choice(("the", "some", "two") if is_plural else ("the", "a", "one"))]
        words += [generator.choice(adjectives)] * (generator.random() < 0.3)
        return " ".join([*words, many if is_plural else noun]), is_plural

    lines = []
    for _ in range(sentences):
        (subject, is_plural), (thing, _) = noun_phrase(), noun_phrase()
        verb = generator.choice(verbs)
        lines.append(f"{subject} {verb if is_plural else f'{verb}s'} {thing}.")
    return "\n".join(lines)


class Fake(Dataset[tuple[Tensor, Any]]):
    """Synthetic images of any shape: a pattern for each class under unit noise. Sample i follows from (seed, i).

    The patterns are the same for every seed, so that a network trained on one Fake does well on another.

    Args:
        is_multilabel: an image shows several patterns, and its target is num_classes labels of 0. or 1.
    """

    is_deterministic = True

    def __init__(
        self,
        size: int,
        shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        seed: int = 0,
        is_multilabel: bool = False,
    ) -> None:
        if size < 1 or num_classes < 1:
            raise ValueError(f"size={size}, num_classes={num_classes}: both must be at least 1")
        self.size, self.shape, self.seed = size, tuple(shape), seed
        generator = torch.Generator().manual_seed(derive(0, "fake patterns"))
        self.patterns = torch.randn(num_classes, *self.shape, generator=generator)
        generator.manual_seed(derive(seed, "fake targets"))
        self.targets: Any  # an integer each, or labels (size, num_classes)
        if is_multilabel:
            self.targets = (torch.rand(size, num_classes, generator=generator) < 0.3).float()
        else:
            self.targets = torch.randint(num_classes, (size,), generator=generator).tolist()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        generator = torch.Generator().manual_seed(derive(self.seed, "fake image", index))
        target = self.targets[index]
        shown = self.patterns[target] if isinstance(target, int) else self.patterns[target > 0].sum(0)
        return shown + torch.randn(self.shape, generator=generator), target


def image_folder(
    root: str | None, transform: Callable[[Any], Any] | None = None, input_shape: Sequence[int] = (3, 64, 64)
) -> Any:
    """The pictures of `root` as a dataset, in grey or colour by the channels of input_shape (C, H, W); None for a root
    of None (no such part).
    """
    if root is None:
        return None
    from runner.pictures import (  # torchvision takes a second, and other datasets need none
        EXTENSIONS,
        MODES,
        PictureFolder,
    )

    if input_shape[0] not in MODES:
        raise InputError(f"dataset.input_shape={list(input_shape)}: pictures have 1 channel (grey) or 3 (colour)")
    sizes = [getattr(step, "size", None) for step in getattr(transform, "transforms", [])[:1]]
    if len(input_shape) == 3 and sizes == [input_shape[1]] and input_shape[2] > input_shape[1]:
        raise InputError(
            f"dataset.input_shape={list(input_shape)}: is wider than high, and dataset.transform scales the shorter"
            f" side to {input_shape[1]}; give it whole, with a Resize of [{input_shape[1]}, {input_shape[2]}]"
        )
    try:
        made = PictureFolder(root, transform, input_shape[0])
    except FileNotFoundError as error:
        if (empty := re.search(r"no valid file for the classes (.+?)\. ", str(error))) is None:
            raise
        names = ", ".join(f"{root}/{name}" for name in empty[1].split(", "))
        raise InputError(
            f"dataset.root={root}: {names}: holds no picture ({', '.join(EXTENSIONS)}); put some there, or remove it"
        ) from error
    if len(parts := {"train", "val", "valid", "validation", "test"} & set(made.classes)) > 1:
        val = "".join(
            f", dataset.val_root={root}/{name} with dataset.val_size=0"
            for name in ("val", "valid", "validation")
            if name in parts
        )
        raise InputError(
            f"dataset.root={root}: its folders are parts, not classes ({', '.join(sorted(parts))});"
            f" choose dataset.root={root}/train{val}{f' and dataset.test_root={root}/test' if 'test' in parts else ''}"
        )
    return made
