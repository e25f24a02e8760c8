"""Which lines of src/runner a test reaches, also in the processes that it starts: (file:line), appended to a file.

Light enough to be loaded by a sitecustomize.py, which is how it comes into other processes.
"""

import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

SRC = str(Path(__file__).resolve().parents[1] / "src" / "runner") + os.sep
WHERE = "RUNNER_REACHED"  # the variable that names the file
SITE = f"import sys; sys.path.append({str(Path(__file__).resolve().parents[1])!r})\n"
SITE += "from benchmarks import reached\nreached.start()\n"

_seen: set[tuple[str, int]] = set()
_file = ""


def start() -> None:
    """Follows this process, if the variable is set. A second call begins a new list."""
    global _file
    _file = os.environ.get(WHERE, "")
    _seen.clear()
    if _file:
        sys.settrace(_calls)
        threading.settrace(_calls)


def _calls(frame: FrameType, event: str, argument: Any) -> Any:
    return _lines if frame.f_code.co_filename.startswith(SRC) else None


def _lines(frame: FrameType, event: str, argument: Any) -> Any:
    place = frame.f_code.co_filename, frame.f_lineno
    if event == "line" and place not in _seen:
        _seen.add(place)
        with open(_file, "a") as out:  # at once: the process may be killed
            out.write(f"{place[0][len(SRC) :]}:{place[1]}\n")
    return _lines
