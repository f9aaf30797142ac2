"""vhostfast audit-migration: does a back-end mark all that it writes?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vhostfast.cli.json_option import json_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vhostfast.audit.report import Report, Row

FAULTS_SHOWN = 12  # of a shape; --json has them all


def audit_migration(
    socket: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            readable=False,
            help="Where the back-end listens for the guest to migrate. Given again: for a guest"
            " that stays and talks to it through the back-end.",
        ),
    ],
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600.0, help="Of traffic at full speed, for each shape.")
    ] = 0.75,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this one, as the report has it. Repeat it."),
    ] = None,
    sabotage: Annotated[
        bool, typer.Option("--sabotage", help="Drop marks as they are read: faults must be found.")
    ] = False,
    as_json: Annotated[bool, json_option("The report as JSON.")] = False,
) -> None:
    """Migrate a built-in guest again and again, and look for pages that the back-end forgot.

    It plays the front-end of any vhost-user-net back-end through every shape of rings that the
    back-end offers: log on amid traffic, rounds of read, clear and copy, stop, then copy and truth
    compared page by page. Needs Linux 6.7.

    Exit code 1: a page was missed, marked without cause, or written or marked after the stop, or
    the back-end broke down. 3: nothing can be audited, or nothing came to the guest, so that only
    half was.
    """
    from vhostfast.audit.run import SABOTAGE, audit

    report = audit(
        socket,
        seconds=seconds,
        shapes=shape or (),
        sabotage=SABOTAGE if sabotage else 0.0,
        progress=_silent if as_json else _say,
    )
    if as_json:
        print(json.dumps(_as_data(report)))
    else:
        _print(report)
    raise typer.Exit(1 if not report.good else 0 if report.whole else 3)


def _silent(_: str) -> None:
    pass


def _say(name: str) -> None:
    typer.echo(f"{name} …", err=True)


def _as_data(report: "Report") -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(report), "good": report.good, "whole": report.whole}


def _print(report: "Report") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Migration audit, a row for each shape", box=None)
    table.add_column("shape", no_wrap=True)
    for heading in ("sent", "received", "rounds", "marks", "missed", "no\ncause", "after\nstop"):
        table.add_column(heading, justify="right")
    for row in report.rows:
        table.add_row(*_cells(row), style="red" if row.faults else "")
    console = Console(highlight=False)
    endless = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(table, options=endless).maximum)
    console.print(table)
    for sentence in _sentences(report):
        console.print(escape(sentence), soft_wrap=True, highlight=False)
    if report.not_reached:
        never = ", ".join(report.not_reached)
        console.print(f"the back-end has gone; not audited any more: {never}", style="red")
    if report.not_offered:
        console.print(escape(f"not offered by the back-end: {', '.join(report.not_offered)}"))
    console.print(escape(_verdict(report)))


def _cells(row: "Row") -> list[str]:
    from vhostfast.audit.report import CAUSELESS, LATE_MARK, LATE_WRITE, MISSED

    faults = [row.count(MISSED), row.count(CAUSELESS), row.count(LATE_MARK, LATE_WRITE)]
    figures = [row.sent, row.received, row.rounds, row.marks, *faults]
    return [row.shape, *(f"{figure:,}" for figure in figures)]


def _sentences(report: "Report") -> "Iterator[str]":
    for note in sorted({note for row in report.rows for note in row.notes}):
        shapes = [row.shape for row in report.rows if note in row.notes]
        every = len(shapes) == len(report.rows)
        yield f"{'every shape' if every else ', '.join(shapes)}: {note}"
    for row in report.rows:
        for fault in row.faults[:FAULTS_SHOWN]:
            yield f"{row.shape}: {fault}"
        if (more := len(row.faults) - FAULTS_SHOWN) > 0:
            yield f"{row.shape}: and {more} faults more (--json has all)"


def _verdict(report: "Report") -> str:
    shapes = _number(len(report.rows), "shape")
    if not report.good:
        faults = _number(sum(len(row.faults) for row in report.rows), "fault")
        dropped = " (marks were dropped on purpose)" if report.sabotage else ""
        return f"{faults} in {shapes}{dropped}"
    return f"{'clean' if report.whole else 'half audited'}: {shapes}, no page missed"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
