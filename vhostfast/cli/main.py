"""The command line: one module a command, and the way from an error to an exit code.

Exit codes: 0 good; 1 the job ran and found a fault; 2 wrong usage; 3 the environment lacks
something. Command modules import what they run inside their functions: a daemon's sockets must not
wait for the progress bars of another command.
"""

import sys
from typing import Annotated

import typer

from vhostfast.cli.audit import audit_migration
from vhostfast.cli.bench import bench
from vhostfast.cli.bench_idle import idle
from vhostfast.cli.bench_latency import latency, loss_free
from vhostfast.cli.demo import demo
from vhostfast.cli.switch import switch
from vhostfast.errors import EnvironmentLacks, UsageError, VhostfastError

FOUND_FAULT = 1
WRONG_USAGE = 2
LACKS = 3

app = typer.Typer(
    name="vhostfast",
    help="A fast vhost-user network back-end: switch, library and test driver.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes cut sentences short
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(switch)
app.command()(demo)
app.command()(audit_migration)
app.add_typer(bench)
bench.command("latency")(latency)
bench.command("loss-free")(loss_free)
bench.command()(idle)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"vhostfast {version('vhostfast')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="And exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an expected error is one sentence on stderr and an exit code."""
    try:
        app()
    except VhostfastError as error:
        print(f"vhostfast: {error}", file=sys.stderr)
        codes = {UsageError: WRONG_USAGE, EnvironmentLacks: LACKS}
        sys.exit(codes.get(type(error), FOUND_FAULT))
