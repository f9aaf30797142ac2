"""vhostfast switch: the daemon."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vhostfast.cli.json_option import json_option

if TYPE_CHECKING:
    from vhostfast.switch.daemon import Summary

WAITING_SUMMARIES = 8
NOBODY = "nobody reads it"

Ports = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=KIND:ARG",
        help="A port, such as vm0=vhost-user:/run/vm0.sock[,client][,queues=N][,offloads=on|off]:"
        " connect, not listen; N queue pairs at most, of 1 to 128 (default 128); checksum and"
        " segmentation offloads or none (default on). Repeat it.",
    ),
]
Users = Annotated[
    list[str] | None,
    typer.Option(
        metavar="USER,...",
        help="Serve front-ends of these users alone, by number or name. Or repeat it.",
    ),
]


def switch(
    port: Ports = None,
    forward: Annotated[
        str | None,
        typer.Option(
            metavar="learn|patch|loopback|drop",
            help="By learned addresses (default); ports two by two; back to the sender; nowhere.",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="poll|interrupt|adaptive",
            help="Never sleep; sleep when idle; poll a while, then sleep (default).",
        ),
    ] = None,
    cpus: Annotated[
        str | None, typer.Option(metavar="0,1", help="CPUs for workers, one each; else one, free.")
    ] = None,
    socket_mode: Annotated[
        str | None, typer.Option(metavar="OCTAL", help="Mode of sockets made (default 0600).")
    ] = None,
    socket_group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Group of sockets made.")
    ] = None,
    allow_uid: Users = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='TOML with the same keys, such as socket-mode = "0660"; options given here win.',
        ),
    ] = None,
    witness: Annotated[
        bool | None, typer.Option("--witness", help="Let the kernel check each migration's log.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(metavar="debug|info|warning|error", help="Default info.")
    ] = None,
    as_json: Annotated[bool, json_option("Summaries as JSON, one a line.")] = False,
) -> None:
    """Forward packets between guests, until SIGTERM or SIGINT.

    Prints a summary of each port's counters at the end, and whenever SIGUSR1 comes.
    """
    import asyncio

    from vhostfast.switch.config import configure
    from vhostfast.switch.daemon import run

    options = {
        "port": port,
        "forward": forward,
        "mode": mode,
        "cpus": cpus,
        "socket-mode": socket_mode,
        "socket-group": socket_group,
        "allow-uid": allow_uid,
        "witness": witness,
        "log-level": log_level,
    }
    given = {key: value for key, value in options.items() if value is not None}
    settled = configure(given, config)
    _log_to_stderr(settled.log_level)
    with _summaries_on_stdout(_as_json if as_json else _as_lines) as report:
        asyncio.run(run(settled, report))


def _log_to_stderr(level: str) -> None:
    import logging

    from vhostfast.switch.journal import LogWriter

    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s",
        level=level.upper(),
        handlers=[LogWriter(sys.stderr.fileno()) if sys.stderr else logging.NullHandler()],
    )


@contextmanager
def _summaries_on_stdout(
    form: Callable[["Summary"], str],
) -> Iterator[Callable[["Summary"], None]]:
    """What prints one, and waits for nobody who should read it."""
    from vhostfast.switch.journal import Writer, log

    def fail(why: str | None) -> None:
        log.error("the summary cannot be written: %s", why)

    def report(summary: "Summary") -> None:
        if not writer.put(form(summary)):
            fail(NOBODY)

    fd = sys.stdout.fileno() if sys.stdout else os.open(os.devnull, os.O_WRONLY)
    writer = Writer(fd, WAITING_SUMMARIES, lambda error: fail(error.strerror))
    yield report
    if not writer.close():
        fail(NOBODY)


def _as_json(summary: "Summary") -> str:
    from dataclasses import asdict

    return json.dumps(asdict(summary)) + "\n"


def _as_lines(summary: "Summary") -> str:
    lines = [f"{name}: {describe(counters)}" for name, counters in summary.ports.items()]
    if summary.packets:
        each = summary.busy_cycles / summary.packets
        lines.append(f"workers: {summary.packets} packets, {each:.0f} cycles each")
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.time))  # as in the log
    return "".join(f"{stamp} {line}\n" for line in lines)


def describe(counters: dict[str, int]) -> str:
    """One line for people: what went in and out, then whatever else isn't zero, by its name."""
    rest = dict(counters)
    parts = [
        f"{verb} {rest.pop(side + '_packets')} packets ({rest.pop(side + '_bytes')} bytes)"
        for side, verb in (("rx", "received"), ("tx", "sent"))
    ]
    return ", ".join(parts + [f"{key} {value}" for key, value in rest.items() if value])
