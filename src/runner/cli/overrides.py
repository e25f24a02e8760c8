"""What stands in place of a verb: overrides and flags, for one run, a sweep, or a look at the config."""

import argparse
import contextlib
import io
from collections.abc import Sequence
from typing import Any

from runner.errors import InputError
from runner.terminal.printable import say

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
NOT_OURS = ("--config-path", "--config-name", "--experimental-rerun")  # Hydra's, for programs with another entry


def parser() -> argparse.ArgumentParser:
    """Hydra's flags, as far as they make sense here."""
    made = argparse.ArgumentParser(prog="runner", add_help=False)
    made.add_argument("overrides", nargs="*", default=[], help="KEY=VALUE, GROUP=CHOICE")
    made.add_argument("--cfg", "-c", choices=("job", "hydra", "all"), help="show the config instead of running it")
    made.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    made.add_argument("--package", "-p", help="with --cfg: this part of the config only")
    made.add_argument("--run", "-r", action="store_true", help="one run (the default)")
    made.add_argument("--multirun", "-m", action="store_true", help="a sweep")
    made.add_argument("--shell-completion", "-sc", action="store_true", help="install=SHELL or uninstall=SHELL")
    made.add_argument("--config-dir", "-cd", help="YAML files of your own; they come before ours")
    made.add_argument("--trust", action="append", default=[], help="a package whose code a `_target_` may name")
    made.add_argument("--info", "-i", const="all", nargs="?", choices=INFO, help="how Hydra composes the config")
    made.add_argument("--hydra-help", action="store_true", help="Hydra's own help")
    for flag, short in zip(NOT_OURS, ("-cp", "-cn", None), strict=True):
        made.add_argument(flag, *([short] if short else []), help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str], made: argparse.ArgumentParser) -> int:
    """Runs what argv says, parsed by `made`, which is parser()."""
    arguments = made.parse_intermixed_args(argv)
    if arguments.trust:
        arguments.overrides.append(f"trust=[{','.join(arguments.trust)}]")
    looks = (arguments.cfg, arguments.info, arguments.shell_completion, arguments.hydra_help)
    if arguments.config_path or arguments.config_name or arguments.experimental_rerun:
        raise InputError(f"{', '.join(NOT_OURS[:-1])} and {NOT_OURS[-1]} are not for the runner; use --config-dir")
    if (arguments.resolve or arguments.package) and not arguments.cfg:
        raise InputError("--resolve and --package go with --cfg")
    if any(looks) and arguments.multirun:
        raise InputError("-m runs a sweep; --cfg, --info, --hydra-help and -sc do not go with it")
    if any(looks):
        look(arguments, made)
    elif arguments.multirun:
        from runner.sweep.multirun import multirun

        multirun(arguments.overrides, arguments.config_dir)
    else:
        from runner.job.launch import launch

        launch(arguments.overrides, task, arguments.config_dir)
    return 0


def task(cfg: Any, run_dir: Any, notes: list[str]) -> Any:
    from runner.job.run import train

    return train(cfg, run_dir, notes)


def look(arguments: Any, made: argparse.ArgumentParser) -> None:
    """--cfg, --info, --hydra-help and shell completion, by Hydra, with its errors in our form."""
    from runner.config import compose, hydra_adapter

    compose.set_up()
    with compose.own_hydra():
        shown = io.StringIO()
        try:
            with contextlib.redirect_stdout(shown):
                hydra_adapter.show(compose.make_hydra(arguments.config_dir), compose.CONFIG_NAME, arguments, made)
        finally:
            if text := shown.getvalue().removesuffix("\n"):
                say(*text.split("\n"))
