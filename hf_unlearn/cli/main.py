"""The command `hf-unlearn`."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="hf-unlearn", description="Erase records, classes or attributes from a model."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    methods = commands.add_parser("methods", help="list the methods, or describe one")
    methods.add_argument("name", nargs="?", help="describe this one in full")
    methods.add_argument("--format", choices=("text", "json", "markdown"), default="text")
    # Its options are those of dataclasses, and parsed by what parses them in the recipes.
    commands.add_parser(
        "audit", help="audit a model: what an adversary finds in it (exit codes: see its --help)", add_help=False
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["audit"]:
        from hf_unlearn.cli.audit import main as audit

        return audit(argv[1:])
    arguments = parser.parse_args(argv)
    from hf_unlearn.cli.methods import print_methods

    return print_methods(arguments.name, arguments.format)
