"""A confusion matrix as a table and as a picture."""

import re
from collections.abc import Mapping
from typing import Any

MOST_CLASSES = 30  # of a picture


def table_of(found: Mapping[str, Any]) -> str:
    """A confusion matrix as a table in Markdown; rows: target, columns: predicted."""
    names = [re.sub(r"[^\w\-. ]", "_", name) for name in found["names"]]
    lines = [["", *names], ["---"] * (len(names) + 1)]
    lines += [[f"**{name}**", *map(str, row)] for name, row in zip(names, found["counts"], strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture_of(found: Mapping[str, Any]) -> Any:
    """A confusion matrix as a picture, each row shaded by its shares; None where it has too many classes."""
    from PIL import Image, ImageDraw

    names, counts = found["names"], found["counts"]
    if len(names) > MOST_CLASSES:
        return None
    cell, edge = 36, 80
    image = Image.new("RGB", (edge + cell * len(names), edge + cell * len(names)), "white")
    draw = ImageDraw.Draw(image)
    draw.text((4, 4), "target (rows),\npredicted\n(columns)", "black")
    for row, name in enumerate(names):
        short = name.encode("latin-1", "replace").decode("latin-1")[:10]
        draw.text((4, edge + cell * row + 12), short, "black")
        draw.text((edge + cell * row + 4, edge - 16 - 12 * (row % 2)), short, "black")
        for column, count in enumerate(counts[row]):
            share = count / max(1, sum(counts[row]))
            at = (edge + cell * column, edge + cell * row)
            color = (round(255 - 225 * share), round(255 - 155 * share), round(255 - 75 * share))
            draw.rectangle((*at, at[0] + cell - 2, at[1] + cell - 2), color)
            if count:
                draw.text((at[0] + 4, at[1] + 12), str(count), "white" if share > 0.5 else "black")
    return image
