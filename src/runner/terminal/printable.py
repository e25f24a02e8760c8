"""Text for a terminal, a log or a spreadsheet: what would act there instead of being read is shown escaped.

Contract: whatever comes from a record, a config, a file's name or an exception passes through here before it is shown.
One text is one line: only whoever prints decides where a line ends. In src/ nothing else calls print().
"""

import contextlib
import os
import sys
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Letters and marks that show nothing: fillers, the grapheme joiner, the supplementary variation selectors.
UNSEEN = {*"\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0", *map(chr, range(0xE0100, 0xE01F0))}
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the latter are their full-width forms


class Drawn(Protocol):
    """What stands on the terminal's last line for a while: see runner.terminal.progress."""

    def clear(self) -> None: ...

    def end(self) -> None: ...


drawn: Drawn | None = None
lost: Exception | None = None  # why something that was for stdout could not be written there
owns_streams = False  # whether the process is our command: else its streams are somebody's, and are left alone


def printable(value: Any, kept: str = "") -> str:
    """str(value) with each control and format character, separator of lines and lone surrogate as \\x1b or \\u202e.

    Args:
        kept: characters that stay as they are.
    """
    text = str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in kept or is_seen(char) else escaped(char) for char in text)


def is_seen(char: str) -> bool:
    """Whether a terminal shows the character, and does nothing else with it. A wide or fixed space counts as shown."""
    return char not in UNSEEN and (char.isprintable() or unicodedata.category(char) == "Zs")


def escaped(char: str) -> str:
    code = ord(char)
    return SHORT.get(char) or (
        f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    )


def can_show(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def printable_lines(text: str) -> str:
    """A text of several lines that are meant: a traceback, another library's message."""
    return printable(text.expandtabs(4), kept="\n")


def hide() -> None:
    """Takes what runner.terminal.progress has drawn off the terminal, before something is written there."""
    if drawn is not None:
        drawn.clear()


def say(*lines: Any, file: TextIO | None = None, flush: bool = False) -> None:
    """Prints each of the lines as one line."""
    hide()
    put("\n".join(printable(line) for line in lines) + "\n", sys.stdout if file is None else file, flush)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream leads to a terminal; None, one that was closed, and what only takes text do not."""
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError, OSError):
        return False


def put(text: str, stream: TextIO | None, flush: bool = False) -> None:
    """Writes a text as it is, what the stream's encoding has not as replacements. What cannot be written (nobody reads
    any more, a full disk, a closed stream) is lost, and nothing else: what is done does not hang on whether somebody
    can read of it. See `lost`.
    """
    global lost
    if stream is None:
        return
    try:
        try:
            print(text, end="", file=stream, flush=flush)
        except UnicodeEncodeError as error:
            print(text.encode(error.encoding, "replace").decode(error.encoding), end="", file=stream, flush=flush)
    except (OSError, ValueError, AttributeError) as error:
        if stream is sys.stdout:
            lost = error
        if owns_streams:  # it leads nowhere from now on: what waits in its buffer would fail again at the end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: where a text begins like one, an apostrophe stands in front, as
    OWASP's page on CSV injection says. Numbers stay, and None is an empty cell.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA) and not is_number(text) else text


def csv_row(values: Sequence[Any]) -> list[Any]:
    return [csv_cell(value) for value in values]


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
