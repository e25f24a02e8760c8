"""--trust and --trust-all: what a verb that opens a record may run that does not lie beside the command."""

import argparse


def add_flags(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="admit this package's or module's code, which does not lie beside the command (docs/security.md)",
    )
    made.add_argument("--trust-all", action="store_true", help="... all code that it names, from where it says")


def grant(arguments: argparse.Namespace) -> None:
    from runner.config import admission

    packages = [name for given in arguments.trust for name in given.split(",") if name]
    admission.grant(packages, arguments.trust_all)
