"""A folder with one folder of pictures a class, as torchvision's ImageFolder, for files of any depth and colour.

Hidden files and folders are no examples (`._x.jpg`, `.ipynb_checkpoints`, `__MACOSX`). A picture becomes 8-bit grey
or colour: 16 bits and floats are scaled, not cut off, and what is transparent lies on white.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import has_file_allowed_extension

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
HIDDEN = (".", "__MACOSX")
MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels


class PictureFolder(ImageFolder):  # type: ignore[misc]  # torchvision has no types
    """An ImageFolder of pictures with 1 or 3 channels."""

    draws_by_transforms_alone = True

    def __init__(self, root: str, transform: Callable[[Any], Any] | None = None, channels: int = 3) -> None:
        def is_picture(path: str) -> bool:
            inside = os.path.relpath(path, root).split(os.sep)
            return has_file_allowed_extension(path, EXTENSIONS) and not any(name.startswith(HIDDEN) for name in inside)

        loader = functools.partial(read_picture, mode=MODES[channels])
        super().__init__(root, transform=transform, loader=loader, is_valid_file=is_picture)

    def find_classes(self, directory: str | os.PathLike[str]) -> tuple[list[str], dict[str, int]]:
        """The folders that are not hidden, in order."""
        found = sorted(
            entry.name for entry in os.scandir(directory) if entry.is_dir() and not entry.name.startswith(HIDDEN)
        )
        if not found:
            raise FileNotFoundError(f"there is no folder of a class in {directory}: {directory}/CLASS/picture.png")
        refuse_circles(os.fspath(directory))
        return found, {name: index for index, name in enumerate(found)}


def refuse_circles(folder: str, above: tuple[str, ...] = ()) -> None:
    """Raises:
    ValueError: a folder below this one is a link to one that it lies in: its pictures would have no end.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise ValueError(f"{folder} is a link to {real}, in which it lies; remove the link")
    with os.scandir(folder) as entries:
        below = [entry.path for entry in entries if entry.is_dir() and not entry.name.startswith(HIDDEN)]
    for path in below:
        refuse_circles(path, (*above, real))


def read_picture(path: str, mode: str = "RGB") -> Image.Image:
    """A file as an 8-bit picture of a mode of Pillow's, L or RGB.

    Raises:
        OSError: it is none. ValueError: its values are no brightness.
    """
    with open(path, "rb") as file, Image.open(file) as opened:
        picture = in_8_bits(opened) if opened.mode.startswith(("I", "F")) else opened
        if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
            picture = on_white(picture)
        return picture.convert(mode)


def in_8_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16 bits, or of 32 bits or floats whose brightest may be 1, 255 or 65535: told by the format where
    it says so, else by its own brightest value.
    """
    values = np.asarray(picture, dtype=np.float64)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 65535:
        raise ValueError(f"its values go from {low:g} to {high:g}, and must lie in 0 to 1, 255 or 65535")
    is_16_bit = picture.mode.startswith("I;16") or picture.format in ("PNG", "PPM") or high > 255
    brightest = 65535 if is_16_bit else 1 if picture.mode == "F" and high <= 1 else 255
    return Image.fromarray(np.rint(values * (255 / brightest)).astype(np.uint8))


def on_white(picture: Image.Image) -> Image.Image:
    """A picture with transparent places before white; one that has none as it is."""
    with_alpha = picture.convert("RGBA")
    if with_alpha.getextrema()[3][0] == 255:
        return picture
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), with_alpha)
