"""The entry, `python -m runner`: a verb, or overrides for a run. Imports nothing heavy before it must."""

import atexit
import contextlib
import contextvars
import errno
import gc
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn

from runner.cli import ACTING, RENAMED, VERBS
from runner.errors import InputError, Interrupted
from runner.terminal import notices, printable
from runner.terminal.printable import printable_lines, put, say


def main() -> None:
    """The console script, and `python -m runner`. Exit codes: 0 done, 1 failed, 2 wrong input, 128 + n signal n."""
    speak_utf8()
    with prepared():
        sys.exit(exit_code(sys.argv[1:]))


def exit_code(argv: Sequence[str]) -> int:
    try:
        find_own_modules()
        try:
            code = contextvars.copy_context().run(dispatch, argv)  # what it grants (--trust) ends with it
        finally:
            if printable.drawn is not None:  # by a loop that an error has left
                printable.drawn.end()
        say_notices()
        return code or unread(argv)
    except InputError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            say_traceback(*sys.exc_info())
        if not getattr(error, "is_logged", False):
            say(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if getattr(error, "is_logged", False):
            return 1  # the run's log has said it, on the screen too
        if isinstance(error, OSError) and error.errno in SAID_BY_THE_SYSTEM:
            say(f"error: {error}", file=sys.stderr)
        else:
            say_traceback(*sys.exc_info())
        return 1


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """The process as a command wants it, with nothing left of an earlier one. In somebody's process, a script or a test
    that calls main(), all of it is put back.
    """
    before = gc.isenabled(), printable.owns_streams, warnings.formatwarning, sys.path[:]
    errors = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    atexit.unregister(say_no_more)
    atexit.register(say_no_more)  # the first that is registered is the last that is called
    printable.lost = None
    notices.take()
    gc.disable()  # the imports make a million objects that stay: looking for garbage among them costs 0.4 s
    prepare_streams()
    printable.owns_streams = True
    warnings.formatwarning = said_warning(warnings.formatwarning)
    try:
        yield
    finally:
        if not is_own_process():
            is_enabled, printable.owns_streams, warnings.formatwarning, sys.path[:] = before
            if is_enabled:
                gc.enable()
            for stream, how in errors:
                if not stream.closed:
                    stream.reconfigure(errors=how)


def unread(argv: Sequence[str]) -> int:
    """1 where all that was asked for was to be read, and could not be written; said, if it is not that nobody reads."""
    put("", sys.stdout, flush=True)
    is_look = not LOOKS.isdisjoint(argv) or any(word.startswith("--cfg=") for word in argv)
    acts = argv[0] in ACTING if argv and argv[0] in VERBS else not is_look
    if printable.lost is None or acts:
        return 0
    if not isinstance(printable.lost, BrokenPipeError):
        say(f"error: {printable.lost}", file=sys.stderr)
    return 1


RECORDS = ("run.json", "sweep.json")
# Words with which nothing is trained.
LOOKS = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--help", "-h", "--version", "--shell-completion", "-sc"}
LOOKS |= {"sweep.dry_run=true", "sweep.dry_run=True"}


def say_no_more() -> None:
    """Nothing looks through what the imports of torch have made, at the end, which takes half a second; and nanobind's
    complaint about that, 40 lines after all that is ours, goes nowhere.
    """
    put("", sys.stdout, flush=True)
    put("", sys.stderr, flush=True)
    if "torch" in sys.modules:
        gc.freeze()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


# What a disk or another user's files answer: one line, and no traceback of ours.
SAID_BY_THE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EIO)


def say_notices() -> None:
    for line in notices.take():
        say(f"warning: {line}", file=sys.stderr)


def speak_utf8() -> None:
    """Starts again, once, in Python's UTF-8 mode where words and names of files can only be ASCII: a locale that is C,
    with Python's own answer to it switched off. A script of somebody's that calls main() is not started again.
    """
    if is_own_process() and sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})


def is_own_process() -> bool:
    """Whether the process is our command: `python -m runner`, or the console script."""
    program = sys.modules["__main__"]
    name = getattr(getattr(program, "__spec__", None), "name", None)
    return name == "runner.__main__" or os.path.basename(getattr(program, "__file__", None) or "") == "runner"


def prepare_streams() -> None:
    """A run needs no terminal: streams that were closed (`>&-`) lead nowhere, and what the terminal's encoding cannot
    show is printed as replacements.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            # The number must be taken: the next file that is opened would get it, and whoever prints would write there.
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            os.set_inheritable(number, True)
            if nowhere != number:
                os.close(nowhere)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # in the C locale stdout's errors are "surrogateescape"
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def say_traceback(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """What Python would print of an error, with what it holds shown escaped: it may quote a file, or its name."""
    import traceback  # 2 ms of a start that needs none

    say(*printable_lines("".join(traceback.format_exception(kind, error, trace))).splitlines(), file=sys.stderr)


def said_warning(form: Callable[..., str]) -> Callable[..., str]:
    """As form, which makes the text of a warning, with what it holds shown escaped."""

    def said(*arguments: Any, **options: Any) -> str:
        return printable_lines(form(*arguments, **options))

    return said


def find_own_modules() -> None:
    """The console script, as `python -m`, finds the user's own modules in the working directory; neither does in the
    folder of a run or a sweep, which may be a stranger's.

    Raises:
        InputError: one of them would be taken for this package.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError as error:
        raise InputError("the working directory is gone: it was removed or renamed; cd to one that is there") from error
    if os.path.exists(os.path.join(here, "runner.py")):
        raise InputError(
            f"{os.path.join(here, 'runner.py')}: a file of this name stands in front of the package `runner`, in"
            " `python -m runner` and in a sweep's workers; rename it"
        )
    if any(os.path.exists(os.path.join(at, name)) for at in (here, os.path.dirname(here)) for name in RECORDS):
        sys.path[:] = [entry for entry in sys.path if entry not in ("", here)]
    elif "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)


def dispatch(argv: Sequence[str]) -> int:
    first = argv[0] if argv else ""
    if first in VERBS:
        verb = importlib.import_module(f"runner.cli.{first.replace('-', '_')}")
        parser = verb.parser()
        parser.error = wrong_flags
        return verb.main(parser.parse_intermixed_args(argv[1:]))  # type: ignore[no-any-return]
    if first in RENAMED:
        raise InputError(f"{first}: is now `python -m runner {RENAMED[first]}`")
    refuse_bare_words(argv)
    if "--version" in argv:
        from importlib.metadata import version

        say(f"runner {version('torch-runner')}")
        return 0
    if {"-h", "--help"} & set(argv):
        from runner.cli.help import show

        show(argv)
        return 0
    from runner.cli import overrides

    flags = overrides.parser()
    flags.error = wrong_flags  # type: ignore[method-assign]
    return overrides.main(["quiet=true" if word == "--quiet" else word for word in argv], flags)


TAKE_A_VALUE = (
    *("--config-dir", "-cd", "--trust", "--cfg", "-c", "--package", "-p", "--info", "-i"),
    *("--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun"),
)


def refuse_bare_words(argv: Sequence[str]) -> None:
    """Refuses a word that is neither an override nor a flag: a verb that is not the first word, or none at all."""
    for number, word in enumerate(argv):
        if not word or word[0] in "-+~" or "=" in word or (number and argv[number - 1] in TAKE_A_VALUE):
            continue
        if word in VERBS:
            rest = " ".join([*argv[number + 1 :], *argv[:number]])
            raise InputError(f"{word}: a verb is the first word: python -m runner {word} {rest}".rstrip())
        import difflib  # 2 ms of a start that needs none

        meant = "".join(f"did you mean {near}? " for near in difflib.get_close_matches(word, VERBS, 1))
        raise InputError(f"{word}: neither an override (KEY=VALUE) nor a verb; {meant}verbs: {', '.join(VERBS)}")


def wrong_flags(message: str) -> NoReturn:
    raise InputError(message)


if __name__ == "__main__":
    main()
