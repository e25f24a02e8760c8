"""One run's config out of a verb's words, for verbs that try out a run which does not take place."""

import argparse
from typing import Any

from runner.errors import InputError


def add_flags(made: argparse.ArgumentParser) -> None:
    made.add_argument("words", nargs="*", metavar="WORDS", help="overrides as for a run")
    made.add_argument("--config-dir", metavar="DIR", help="YAML files of your own")
    made.add_argument("--trust", action="append", default=[], help="a package whose code a `_target_` may name")


def config_of(arguments: argparse.Namespace) -> Any:
    """The config, as composed, without hydra.*.

    Raises:
        InputError: a wrong word, or one with several values.
    """
    from runner.config.compose import compose
    from runner.sweep.combine import alternatives, task_config

    words = arguments.words + ([f"trust=[{','.join(arguments.trust)}]"] if arguments.trust else [])
    first, *others = alternatives(words)
    if others:
        several = sorted({word.partition("=")[0] for other in others for word in other if word not in first})
        raise InputError(f"{several[0]}: has several values, and this is about one run; give one")
    return task_config(compose(words, arguments.config_dir)[1])
