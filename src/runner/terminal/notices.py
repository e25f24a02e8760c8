"""What is worth a line on stderr and stops nothing: kept until the command's end, so that an error stays one line."""

_kept: dict[str, None] = {}


def add(line: str) -> None:
    """Keeps a line, once."""
    _kept[line] = None


def take() -> list[str]:
    """The lines that were kept, for whoever says them."""
    lines = list(_kept)
    _kept.clear()
    return lines
