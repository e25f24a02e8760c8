"""A confusion matrix and the worst mistakes as blocks of a page, the mistakes as images."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from runner.job.confusion import Confusion

PIXELS = 96  # of an image's longer side on a page, at most
MOST_CLASSES = 60  # of a matrix on a page; of more the most frequent confusions


def blocks(found: Confusion, what: str, dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The blocks of a page.

    Args:
        what: which part, and by which weights.
        dataset: the run's `dataset` config, whose mean and std the images were brought to.
    """
    total, names = sum(map(sum, found.counts)), found.names
    said = [f"{what}: {total - found.mistakes:,} of {total:,} {found.noun} are right, {found.mistakes:,} wrong."]
    shares = [(name, *found.right_of(at)) for at, name in enumerate(names) if sum(found.counts[at])]
    shares.sort(key=lambda one: one[1] / one[2])
    more = f"; the {MOST_CLASSES} worst of {len(shares)}" if len(shares) > MOST_CLASSES else ""
    bars = [[name, right / of, f"{right / of:.4f}  ({right} of {of})"] for name, right, of in shares[:MOST_CLASSES]]
    classes = {"title": f"accuracy per class{more}", "bars": bars, "most": 1}
    first: dict[str, Any] = {"kind": "examples", "heading": "Confusion", "classes": classes, "lines": said}
    if len(names) <= MOST_CLASSES:
        first["matrix"] = {"names": names, "counts": found.counts}
    else:
        cells = [(n, t, g) for t, row in enumerate(found.counts) for g, n in enumerate(row) if n and t != g]
        pairs = [[f"{names[t]}, taken for {names[g]}", n, str(n)] for n, t, g in sorted(cells, reverse=True)[:30]]
        first["pairs"] = {"title": "most frequent confusions", "bars": pairs}
    return [first, *([images(found, dataset)] if found.worst else [])]


def images(found: Confusion, dataset: Mapping[str, Any]) -> dict[str, Any]:
    items = [
        {
            "example": f"{found.noun[:-1]} {one.example}",
            "target": found.names[one.target],
            "guess": found.names[one.guess],
            "pTarget": f"{one.of_target:.4f}",
            "pGuess": f"{one.of_guess:.4f}",
            "src": png_of(one.input, dataset),
        }
        for one in found.worst
    ]
    said = [
        f"The {len(items)} of {found.mistakes:,} whose own class has the lowest probability, the worst first;"
        " with each class its probability."
    ]
    if not any(item["src"] for item in items):
        said.append("The examples are no images of 1 or 3 channels, so there is nothing to draw.")
    return {"kind": "images", "heading": "Worst mistakes", "items": items, "lines": said}


def png_of(data: Any, dataset: Mapping[str, Any]) -> str | None:
    """An input (1 or 3, H, W) as a PNG in a data: address; None where it is no image.

    Where the config says by which mean and std it was brought to this form, that is undone; else its lowest value is
    black and its highest white.
    """
    import torch
    from PIL import Image

    if data is None or data.dim() != 3 or data.shape[0] not in (1, 3) or min(data.shape[1:]) < 2:
        return None
    data = data.float().nan_to_num()
    mean, std = (channels(dataset.get(key), data.shape[0]) for key in ("mean", "std"))
    if mean is not None and std is not None:
        data = data * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
    else:
        data = (data - data.min()) / (data.max() - data.min()).clamp(min=1e-12)
    pixels = (data.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((PIXELS, PIXELS))
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def channels(value: Any, count: int) -> list[float] | None:
    """A mean or std of the config, one for each channel."""
    values: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, count) or not all(isinstance(one, (int, float)) for one in values):
        return None
    return [float(values[0])] * count if len(values) == 1 else [float(one) for one in values]
