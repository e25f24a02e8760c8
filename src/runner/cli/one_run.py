"""Configs out of a verb's words, for verbs that try out a run which does not take place."""

import argparse
from typing import Any

from runner.errors import InputError


def add_flags(made: argparse.ArgumentParser, words: str = "overrides as for a run") -> None:
    made.add_argument("words", nargs="*", default=[], metavar="WORDS", help=words)
    made.add_argument("--config-dir", metavar="DIR", help="YAML files of your own")
    made.add_argument(
        *("--trust",), metavar="PACKAGE", action="append", default=[], help="a package whose code a `_target_` may name"
    )


def words_of(arguments: argparse.Namespace) -> list[str]:
    """The overrides, with what is trusted."""
    trust = [f"trust=[{','.join(arguments.trust)}]"] if arguments.trust else []
    return [*arguments.words, *trust]


def config_of(arguments: argparse.Namespace) -> Any:
    """The config, as composed, without hydra.*.

    Raises:
        InputError: a wrong word, or one with several values.
    """
    from runner.config.compose import compose
    from runner.sweep.combine import alternatives, task_config

    words = words_of(arguments)
    first, *others = alternatives(words)
    if others:
        several = sorted({word.partition("=")[0] for other in others for word in other if word not in first})
        raise InputError(f"{several[0]}: has several values, and this is about one run; give one")
    return task_config(compose(words, arguments.config_dir)[1])
