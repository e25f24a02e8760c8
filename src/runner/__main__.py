"""The entry, `python -m runner`: a verb, or overrides for a run. Imports nothing heavy before it must."""

import errno
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from runner.cli import VERBS
from runner.errors import InputError, Interrupted


def main() -> None:
    """The console script, and `python -m runner`. Exit codes: 0 done, 1 failed, 2 wrong input, 128 + n signal n."""
    gc.disable()  # the imports make a million objects that stay: looking for garbage among them costs 0.4 s
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the console script too finds the user's own modules
    try:
        sys.exit(dispatch(sys.argv[1:]))
    except InputError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        if not getattr(error, "is_logged", False):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as stopped:
        sys.exit(128 + stopped.signum)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output is gone; python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if getattr(error, "is_logged", False):
            sys.exit(1)  # the run's log has said it, on the screen too
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        raise


def dispatch(argv: Sequence[str]) -> int:
    first = argv[0] if argv else ""
    if first in VERBS:
        verb = importlib.import_module(f"runner.cli.{first}")
        parser = verb.parser()
        parser.error = wrong_flags
        return verb.main(parser.parse_intermixed_args(argv[1:]))  # type: ignore[no-any-return]
    if first and first[0] not in "-+~" and "=" not in first:
        raise InputError(f"{first}: neither an override (KEY=VALUE) nor a verb; verbs: {', '.join(VERBS)}")
    if "--version" in argv:
        from importlib.metadata import version

        print(f"runner {version('torch-runner')}")
        return 0
    if {"-h", "--help"} & set(argv):
        from runner.cli.help import show

        show(argv)
        return 0
    return run(["quiet=true" if word == "--quiet" else word for word in argv])


def run(argv: Sequence[str]) -> int:
    """Hydra's command line: one run, or with its flags a sweep, a look at the config, completion."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = wrong_flags  # type: ignore[method-assign]
    arguments = parser.parse_intermixed_args(argv)
    flags = (arguments.cfg, arguments.info, arguments.shell_completion, arguments.hydra_help)
    if arguments.config_path or arguments.config_name or arguments.experimental_rerun:
        raise InputError(
            "--config-path, --config-name and --experimental-rerun are not for the runner; use --config-dir"
        )
    if (arguments.resolve or arguments.package) and not arguments.cfg:
        raise InputError("--resolve and --package go with --cfg")
    if any(flags) and arguments.multirun:
        raise InputError("-m runs a sweep; --cfg, --info, --hydra-help and -sc do not go with it")
    if arguments.multirun:
        from runner.job.launch import multirun

        multirun(arguments.overrides, arguments.config_dir)
        return 0
    if any(flags):
        return hydra_flags(arguments, parser)
    from runner.job.launch import launch

    launch(arguments.overrides, task, arguments.config_dir)
    return 0


def wrong_flags(message: str) -> NoReturn:
    raise InputError(message)


def task(cfg: Any, run_dir: Any, notes: list[str]) -> Any:
    from runner.job.run import train

    return train(cfg, run_dir, notes)


def hydra_flags(arguments: Any, parser: Any) -> int:
    """--cfg, --info, --hydra-help and shell completion, by Hydra, with its errors in our form."""
    import hydra._internal.utils as hydra_utils

    from runner.config import compose as config
    from runner.job.launch import sweep_job

    config.set_up()
    path = config.search_path(arguments.config_dir)
    hydra_utils.create_automatic_config_search_path = lambda *_: path
    arguments.config_dir = None
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets exceptions through, and main() says them in one line
    try:
        with config.own_hydra():
            hydra_utils._run_hydra(arguments, parser, sweep_job, None, config.CONFIG_NAME)
    finally:
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    return 0


if __name__ == "__main__":
    main()
