"""Durations, sizes and commands as a person reads them, in a terminal and on a page."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

GIB = 2**30
LONGEST_CODE = 60  # of a command's word, such as the source behind `python -c`


def duration(seconds: float) -> str:
    """`2.1 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def size(num_bytes: float) -> str:
    """`1.50 GiB`, `20.5 MiB`."""
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / 2**20:.1f} MiB"


def plural(count: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "es" if noun.endswith("tch") else "s")


def typed(command: Sequence[str], longest_code: int | None = None) -> str:
    """A recorded command as somebody types it: without the path of Python.

    Args:
        longest_code: letters of a word that is source code, of which only the beginning is shown; None: all.
    """
    if not command:
        return ""
    words = [os.path.basename(command[0]), *command[1:]]
    if len(words) > 1 and os.path.basename(words[1]) == "runner":  # the console script
        words = ["runner", *words[2:]]
    elif re.fullmatch(r"python[\d.]*", words[0]):
        words[0] = "python"
    return pasted(words if longest_code is None else [shortened(word, longest_code) for word in words])


def pasted(words: Sequence[str]) -> str:
    """A command's words as a shell takes them, after printable() too: what does not print is quoted as $'...'."""
    return " ".join(shlex.quote(word) if word.isprintable() else ansi_quoted(word) for word in words)


def ansi_quoted(word: str) -> str:
    text = "".join(char if char.isprintable() and char not in "'\\" else escaped(char) for char in word)
    return f"$'{text}'"


def escaped(char: str) -> str:
    """Its bytes, as bash has them."""
    if char in "'\\":
        return f"\\{char}"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


def folder_word(path: Path | str) -> str:
    """A path as a command's word that is no flag."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def shortened(word: str, longest: int) -> str:
    is_code = "\n" in word or "import " in word
    return f"{word[: longest - 3]}..." if is_code and len(word) > longest else word
