"""vhostfast bench: measures any vhost-user-net back-end, alone or against another."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from vhostfast.bench.compare import Change
    from vhostfast.bench.report import Report, Spread
    from vhostfast.bench.rounds import Progress

IDLE_MIN = 0.02  # of the driver's time; with less it is the driver that was measured

bench = typer.Typer(
    name="bench",
    help="Measure any vhost-user-net back-end, alone or against another.",
    invoke_without_command=True,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Everything as JSON, on stdout.")]
Subject = Annotated[
    str | None,
    typer.Option(
        metavar="'CMD {0} {1}'",
        help="What to measure: a command to start, pin and stop; {0} and {1} become the sockets to"
        " serve, {worker} and {driver} the CPUs; a word with {socket} is there for each, {n} its"
        " number. Default: our own switch.",
    ),
]
Sockets = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="Measure what serves these sockets already: one each."),
]
Versus = Annotated[
    str | None,
    typer.Option(
        metavar="dpdk|ovs|'CMD {0} {1}'",
        help="Against this one, in turn. dpdk is testpmd, ovs Open vSwitch with DPDK, vhostfast our"
        " own switch.",
    ),
]
Sizes = Annotated[
    str, typer.Option(metavar="64,imix", help="Bytes of the frames, 60 to 1514, or imix.")
]
Pattern = Annotated[
    str,
    typer.Option(
        metavar="both-ways|one-way|loop|send-only",
        help="Two VMs send to each other; one to the other; one gets back what it sends, or"
        " nothing: then what is taken counts.",
    ),
]
Load = Annotated[
    str,
    typer.Option(
        metavar="lean|touch|full",
        help="What VMs do for a packet: move indices; touch it, as a guest does; make it anew.",
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        metavar="direct|chained|indirect",
        help="Header and frame in one descriptor; in one each; so in a table.",
    ),
]
BufferSize = Annotated[
    int,
    typer.Option(metavar="BYTES", help="Of a receive buffer; a longer frame takes several."),
]
Ports = Annotated[
    int, typer.Option(metavar="N", help="VMs, 2 to 256, joined two by two: 0 and 1, 2 and 3 ...")
]
Busy = Annotated[
    str, typer.Option(metavar="all|2", help="Which of them send; the others are there and idle.")
]
Regions = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Pieces that a VM's memory is told in, 1 to 8; null and bare know one, so with more"
        " they have no rows.",
    ),
]
Mode = Annotated[str, typer.Option(metavar="poll|interrupt|adaptive", help="Of our own switch.")]
Forward = Annotated[
    str | None,
    typer.Option(
        metavar="patch|learn",
        help="Of our own switch: by pairs, or by learned addresses. [default: patch; beside ovs,"
        " which learns, learn]",
    ),
]
Log = Annotated[
    str,
    typer.Option(
        metavar="off|on|both",
        help="Whether VMs migrate meanwhile: what is written has to be marked in a log, which is"
        " read ten times a second. both: on, against the same back-end with it off.",
    ),
]
Hugepages = Annotated[
    str, typer.Option(metavar="auto|on|off", help="Memory of the VMs in 2 MiB pages.")
]


@bench.callback()
def _bench(
    context: typer.Context,
    backend: Subject = None,
    socket: Sockets = None,
    versus: Versus = None,
    sizes: Sizes = "64,512,1500",
    pattern: Pattern = "both-ways",
    load: Load = "lean",
    ring_size: Annotated[int, typer.Option(metavar="N", help="Entries, a power of two.")] = 256,
    layout: Layout = "direct",
    mergeable: Annotated[bool, typer.Option(help="Whether MRG_RXBUF is agreed on.")] = True,
    buffer_size: BufferSize = 2112,
    queues: Annotated[int, typer.Option(metavar="N", help="Queue pairs of each VM.")] = 1,
    ports: Ports = 2,
    busy: Busy = "all",
    regions: Regions = 1,
    mode: Mode = "poll",
    forward: Forward = None,
    log: Log = "off",
    rounds: Annotated[int, typer.Option(metavar="N", help="Of each size.")] = 5,
    seconds: Annotated[float, typer.Option(help="Timed, in each turn.")] = 1.0,
    warm_up: Annotated[float, typer.Option(help="Seconds before, not counted.")] = 0.3,
    worker_cpu: Annotated[int, typer.Option(metavar="CPU", help="Where back-ends run.")] = 0,
    driver_cpu: Annotated[int, typer.Option(metavar="CPU", help="Where the VMs run.")] = 1,
    hugepages: Hugepages = "auto",
    limits: Annotated[
        bool, typer.Option(help="The rows null and bare, where there are such.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure any vhost-user-net back-end, alone or against another.

    First every byte of many frames is checked; then the back-ends run in turn, round by round.
    Beside them stand the driver with nothing behind it (null) and a copy without checks (bare), the
    limit of what is possible here.
    """
    if context.invoked_subcommand is not None:
        return
    from vhostfast.bench.backend import OVS, choose
    from vhostfast.bench.place import choose_hugepages
    from vhostfast.bench.rounds import run
    from vhostfast.bench.workload import Plan, Workload, parse_frames

    frames = parse_frames(sizes)
    forward = forward or ("learn" if OVS in (backend, versus) else "patch")
    work = Workload(
        frames, pattern, load, ring_size, layout, mergeable, queues, mode, log, forward, ports,
        busy, buffer_size, regions,
    )  # fmt: skip
    plan = Plan(work, rounds, seconds, warm_up, worker_cpu, driver_cpu)
    use, sentence = choose_hugepages(hugepages, plan)
    plan = Plan(work, rounds, seconds, warm_up, worker_cpu, driver_cpu, hugepages=use)
    if sentence:
        typer.echo(sentence, err=True)
    rows = choose(plan, backend, socket or [], versus, limits=limits)
    with progress_on_stderr() as progress:
        report = run(plan, rows, progress)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        _print_report(report)


@contextmanager
def progress_on_stderr() -> Iterator["Progress"]:
    """A bar that is silent between turns: it would run on a CPU that is measured."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    with Bar(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=1.0)

        def progress(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share, refresh=True)

        yield progress


def _print_report(report: "Report") -> None:
    work, plan = report.plan["workload"], report.plan
    merge = f"mergeable {work['buffer_size']} B" if work["mergeable"] else "not mergeable"
    pages = "2 MiB" if plan["hugepages"] else "4 KiB"
    pages += f" pages in {work['regions']} regions" if work["regions"] > 1 else " pages"
    many = f"{work['ports']} ports, {work['busy']} busy, " if work["ports"] > 2 else ""
    table = table_of(
        f"{many}{work['pattern']}, load {work['load']}, {work['layout']}, {merge},"
        f" {work['queues']} x {work['ring_size']} entries, log {work['log']}, {pages},"
        f" {plan['rounds']} x {plan['seconds']:g} s",
        ("bytes", "back-end", "Mpps", "range", "cycles", "idle", "lost"),
        [f"x {to}" for to in _others(report)],
    )
    for frames in report.frames():
        for row in report.commands:
            style = "bold" if row == report.subject else ""
            table.add_row(frames, row, *_cells(report, frames, row), style=style)
        table.add_section()
    print_table(table)
    for line in _footer(report):
        print(line)


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


def _cells(report: "Report", frames: str, row: str) -> list[str]:
    rate = report.figures(frames, row)
    cells = [short(rate.median), _range(rate)]
    cells.append(f"{report.figures(frames, row, 'cycles').median:.0f}")
    cells += [f"{report.figures(frames, row, what).median:.1%}" for what in ("idle", "lost")]
    against = report.held_against(row)
    return cells + [
        _spread(report.ratio(frames, row, to)) if to in against else "" for to in _others(report)
    ]


def short(value: float) -> str:
    """Three digits, or all that are before the point."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _range(spread: "Spread") -> str:
    return f"{short(spread.low)}-{short(spread.high)}"


def _spread(spread: "Spread") -> str:
    return f"{short(spread.median)} ({_range(spread)})"


def _others(report: "Report") -> list[str]:
    """Which rows others are held against: columns."""
    return [to for to in ("bare", report.versus) if to in report.commands]


def _footer(report: "Report") -> list[str]:
    """What a reader has to know to believe the table."""
    plan, distances = report.plan, [ns for one in report.rounds for ns in one.distances]
    lines = [
        "range: lowest and highest round; cycles: of the time-stamp counter, a packet; idle: the"
        " driver's;\nx: times as fast as that row, round by round: median and range",
        f"CPUs {plan['worker_cpu']} (back-end) and {plan['driver_cpu']} (driver) were"
        f" {min(distances):.0f} to {max(distances):.0f} ns apart",
    ]
    starved = max(sample.starved for one in report.rounds for sample in one.samples.values())
    lines.append(
        f"other work kept driver or back-end from its CPU for {starved:.0%} of a turn at worst"
    )
    lines += [
        f"{frames} bytes: the driver was never idle, so {report.subject} may do more"
        for frames in report.frames()
        if report.figures(frames, report.subject, "idle").median < IDLE_MIN
    ]
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
    as_json: Json = False,
) -> None:
    """Which figures have changed by more than the noise. Runs of different kinds are refused."""
    from vhostfast.bench.compare import compare as held_against
    from vhostfast.bench.report import load

    changes = held_against(load(old), load(new))
    if as_json:
        print(json.dumps([_change(one) for one in changes]))
    else:
        _print_changes(changes)


def _change(one: "Change") -> dict[str, object]:
    return {
        "frames": one.frames, "row": one.row, "ratio_to": one.to, "old": one.old.median,
        "new": one.new.median, "factor": one.factor, "chance": one.chance,
        "more_than_noise": one.is_more_than_noise,
    }  # fmt: skip


def _print_changes(changes: "list[Change]") -> None:
    title = f"{changes[0].row}: medians and the range of rounds"
    table = table_of(title, ("bytes", "figure", "old", "new", "change", ""))
    for one in changes:
        verdict = "more than noise" if one.is_more_than_noise else "noise"
        figure = f"x {one.to}" if one.to else "Mpps"
        cells = (_spread(one.old), _spread(one.new), f"{one.factor - 1:+.1%}", verdict)
        table.add_row(one.frames, figure, *cells, style="bold" if one.is_more_than_noise else "")
    print_table(table)
    print(
        "more than noise: no round of one run lies among those of the other, which by chance"
        f" alone happens once in {changes[0].chance} times"
    )
