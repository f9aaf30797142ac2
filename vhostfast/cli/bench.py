"""vhostfast bench: measures any vhost-user-net back-end, alone or against another."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vhostfast.cli.bench_options import Options, with_options
from vhostfast.cli.ending import end_as_by_ctrl_c

if TYPE_CHECKING:
    from rich.table import Table

    from vhostfast.bench.compare import Change
    from vhostfast.bench.report import Report, Spread

FIGURES = {"mpps": "Mpps", "p50_ns": "p50 ns", "p99_ns": "p99 ns", "p999_ns": "p99.9 ns",
           "max_ns": "max ns"}  # fmt: skip
MEANINGS = {
    "range": "lowest and highest round",
    "cycles": "of the time-stamp counter, a packet",
    "idle": "the driver's",
    "lost": "taken and never came",
    "x": "times as fast as that row, round by round: median and range",
}
FOOTER_COLUMNS = 100

bench = typer.Typer(
    name="bench",
    help="Measure any vhost-user-net back-end, alone or against another.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


def _bench(options: Options, context: typer.Context) -> None:
    """Measure any vhost-user-net back-end, alone or against another.

    First every byte of many frames is checked; then the back-ends run in turn, round by round.
    Beside them stand the driver with nothing behind it (null) and a copy without checks (bare), the
    limit of what is possible here.
    """
    end_as_by_ctrl_c()
    if context.invoked_subcommand is not None:
        _refuse_options(context)
        return
    from vhostfast.bench.job import THROUGHPUT

    options.measure(THROUGHPUT, _print_report)


bench.callback()(with_options(_bench))


def _refuse_options(context: typer.Context) -> None:
    """A subcommand has options of its own; those before it would mean nothing."""
    from vhostfast.errors import UsageError

    for name in context.params:
        source = context.get_parameter_source(name)
        if source and source.name == "COMMANDLINE":
            option = name.removeprefix("as_").replace("_", "-")
            raise UsageError(f"--{option}: give it behind {context.invoked_subcommand}")


def _print_report(report: "Report") -> None:
    work, plan = report.plan["workload"], report.plan
    merge = f"mergeable {work['buffer_size']} B" if work["mergeable"] else "not mergeable"
    pages = "2 MiB" if plan["hugepages"] else "4 KiB"
    pages += f" pages in {work['regions']} regions" if work["regions"] > 1 else " pages"
    lost = ["lost"] if _knows_loss(report) else []
    many = f"{work['ports']} ports, {work['busy']} busy, " if work["ports"] > 2 else ""
    table = table_of(
        f"{many}{work['pattern']}, load {work['load']}, {work['layout']}, {merge},"
        f" {work['queues']} x {work['ring_size']} entries, log {work['log']}, {pages},"
        f" {plan['rounds']} x {plan['seconds']:g} s",
        ("bytes", "back-end", "Mpps", "range", "cycles", "idle"),
        lost,
        [f"x {to}" for to in _others(report)],
    )
    for frames in report.frames():
        for row in report.commands:
            style = "bold" if row == report.subject else ""
            table.add_row(frames, row, *_cells(report, frames, row), style=style)
        table.add_section()
    print_table(table)
    explain(table, MEANINGS)
    print("\n".join([*machine_lines(report), *driver_lines(report)]))


def table_of(title: str, *headings: Sequence[str]) -> "Table":
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in (name for group in headings for name in group):
        justify: Literal["left", "right"] = "left" if heading in ("back-end", "figure") else "right"
        table.add_column(heading, justify=justify, no_wrap=True)
    return table


def print_table(table: "Table") -> None:
    """As wide as it has to be: no figure is cut short."""
    from rich.console import Console

    console = Console()
    endless = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(table, options=endless).maximum)
    console.print(table)


def explain(table: "Table", meanings: Mapping[str, str]) -> None:
    """Of the columns that are there, by the first word of their headings."""
    names = dict.fromkeys(str(column.header).partition(" ")[0] for column in table.columns)
    told = [f"{name}: {meanings[name]}" for name in names if name in meanings]
    print(fill("; ".join(told), FOOTER_COLUMNS, break_on_hyphens=False))


def _cells(report: "Report", frames: str, row: str) -> list[str]:
    rate = report.figures(frames, row)
    cells = [short(rate.median), range_of(rate)]
    cells.append(f"{report.figures(frames, row, 'cycles').median:.0f}")
    cells.append(f"{report.figures(frames, row, 'idle').median:.1%}")
    if _knows_loss(report):
        cells.append(f"{report.figures(frames, row, 'lost').median:.1%}")
    against = report.held_against(row)
    return cells + [
        spread(report.ratio(frames, row, to)) if to in against else "" for to in _others(report)
    ]


def _knows_loss(report: "Report") -> bool:
    return report.plan["workload"]["pattern"] not in ("send-only", "receive-only")


def short(value: float) -> str:
    """Three digits, or all that are before the point."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def range_of(one: "Spread") -> str:
    return f"{short(one.low)}-{short(one.high)}"


def spread(one: "Spread") -> str:
    return f"{short(one.median)} ({range_of(one)})"


def _others(report: "Report") -> list[str]:
    """Which rows others are held against: columns."""
    return [to for to in ("bare", report.versus) if to in report.commands]


def driver_lines(report: "Report") -> list[str]:
    """Where it was the driver that was measured."""
    from vhostfast.bench.sample import IDLE_MIN

    return [
        f"{frames} bytes{load and f' at {load}'}: the driver was never idle, so {report.subject}"
        " may do better"
        for frames in report.frames()
        for load in report.loads()
        if report.figures(frames, report.subject, "idle", load).median < IDLE_MIN
    ]


def machine_lines(report: "Report") -> list[str]:
    """How the machine behaved meanwhile."""
    from vhostfast.bench.backend import RUNNING

    plan, distances = report.plan, [ns for one in report.rounds for ns in one.distances]
    starved = max(sample.starved for one in report.rounds for sample in one.samples.values())
    lines = [
        f"CPUs {plan['worker_cpu']} (back-end) and {plan['driver_cpu']} (driver) were"
        f" {min(distances):.0f} to {max(distances):.0f} ns apart",
        f"other work kept driver or back-end from its CPU for {starved:.0%} of a turn at worst",
    ]
    if RUNNING in report.commands:
        lines.append(
            f"{RUNNING} was not started here: on the driver's CPU its figures are of no use;"
            f" pin it to CPU {plan['worker_cpu']} (our switch: --cpus)"
        )
    again = sum(one.attempts - 1 for one in report.rounds)
    restless = sum(not one.still for one in report.rounds)
    if again:
        lines.append(f"{again} more rounds were run, because that distance had changed within one")
    if restless:
        lines.append(f"{restless} of {len(report.rounds)} rounds: it changed each time; doubt them")
    return lines


@bench.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="What --json printed once.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="What it printed later.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Which figures have changed by more than the noise. Runs of different kinds are refused."""
    from vhostfast.bench.compare import compare as held_against
    from vhostfast.bench.report import load

    reports = load(old), load(new)
    changes = held_against(*reports)
    if as_json:
        print(json.dumps([_change(one) for one in changes]))
    else:
        _print_changes(changes)
        for name, report in zip(("old", "new"), reports, strict=True):
            print("\n".join(f"{name}: {line}" for line in machine_lines(report)))


@bench.command()
def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN.json", help="What --json printed.")],
    picture: Annotated[Path, typer.Argument(metavar="FILE.svg", help="What to draw.")],
) -> None:
    """A stored run as a picture: rates by size, or times against the load, with their spread."""
    from vhostfast.bench.plot import draw
    from vhostfast.bench.report import load

    draw(load(run), picture)


def _change(one: "Change") -> dict[str, object]:
    return {
        "frames": one.frames, "load": one.load, "row": one.row, "figure": one.figure,
        "ratio_to": one.to, "old": one.old.median, "new": one.new.median,
        "factor": one.factor if one.old.median else None, "chance": one.chance,
        "more_than_noise": one.is_more_than_noise,
    }  # fmt: skip


def _print_changes(changes: "list[Change]") -> None:
    title = f"{changes[0].row}: medians and the range of rounds"
    table = table_of(title, ("bytes", "figure", "old", "new", "change", ""))
    for one in changes:
        verdict = "more than noise" if one.is_more_than_noise else "noise" if one.is_told else "?"
        figure = f"x {one.to}" if one.to else FIGURES.get(one.figure, one.figure)
        figure += f" at {one.load}" if one.load else ""
        change = f"{one.factor - 1:+.1%}" if one.old.median else ""
        cells = (spread(one.old), spread(one.new), change, verdict)
        table.add_row(one.frames, figure, *cells, style="bold" if one.is_more_than_noise else "")
    print_table(table)
    if changes[0].is_told:
        print(
            "more than noise: no round of one run lies among those of the other, which by chance"
            f" alone happens once in {changes[0].chance:g} times"
        )
    else:
        print("?: too few rounds to tell a change from noise; run both with --rounds 2 or more")
