"""What is worth a line on stderr and stops nothing: kept until the command's end, so that an error stays one line."""

_kept: dict[str, None] = {}
_said: set[str] = set()


def add(line: str) -> None:
    """Keeps a line; the same one is said once in a process."""
    if line not in _said:
        _kept[line] = None


def take() -> list[str]:
    """The lines that were kept, for whoever says them."""
    lines = list(_kept)
    _said.update(lines)
    _kept.clear()
    return lines
