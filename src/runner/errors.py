"""The exceptions that end a run with one clear line."""

from collections.abc import Sequence


class InputError(ValueError):
    """Something the user gave is wrong: one line that names the key, the value and the choices. Exit code 2."""


class UnknownKey(InputError):
    """A key that nothing in the config takes; `choices` are those that its group has."""

    def __init__(self, message: str, key: str = "", choices: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.key, self.choices = key, list(choices)


class Held(InputError):
    """Another process is writing in the folder."""


class Diverged(RuntimeError):
    """The loss or a parameter is no longer finite. Exit code 1; the last good checkpoint is left alone."""


class Interrupted(Exception):
    """A signal asked the run to stop, and its state has been saved. Exit code 128 + signum."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by signal {signum}")
        self.signum = signum
