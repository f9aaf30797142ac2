"""The option --json: it prints, and whoever gives it a file to write is told how that goes."""

import sys
from typing import Any

import typer

from vhostfast.errors import UsageError


def json_option(help: str) -> Any:
    """For a command that takes no argument: a word behind --json can only be meant as its file."""
    return typer.Option("--json", callback=_refuse_file, help=help)


def _refuse_file(context: typer.Context, wanted: bool) -> bool:
    words = iter(sys.argv)
    if wanted and "--json" in words:  # which goes up to it
        word = next(words, "-")
        if not word.startswith("-") and word not in getattr(context.command, "commands", ()):
            raise UsageError(f"--json prints on stdout: write --json > {word}")
    return wanted
