"""vhostfast bench latency and loss-free: packets on a schedule, how long they take and how many of
them a back-end stands."""

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from vhostfast.cli.bench import (
    MEANINGS,
    driver_lines,
    explain,
    machine_lines,
    print_table,
    range_of,
    short,
    spread,
    table_of,
)
from vhostfast.cli.bench_options import Options, with_options
from vhostfast.errors import UsageError

if TYPE_CHECKING:
    from vhostfast.bench.report import Report, Spread

ONE_PAIR = {
    "load": "touch", "queues": 1, "ports": 2, "busy": "all", "buffer_size": 2112, "regions": 1,
}  # fmt: skip
QUANTILES = {"p50": "p50_ns", "p99": "p99_ns", "p99.9": "p999_ns", "max": "max_ns"}
WAYS = {"both-ways": "there and back", "one-way": "one way", "loop": "there and back"}
LIMITS = {
    "lost": "packets lost",
    "held": "ring full",
    "driver": "the driver",
    "machine": "other work",
    "": "none found",
}

Rate = Annotated[
    str,
    typer.Option(
        metavar="10%,50%|0.5,2",
        help="Offered: shares of the highest rate of each back-end, or millions of packets a"
        " second.",
    ),
]
Resolution = Annotated[
    float, typer.Option(metavar="SHARE", help="Of the rate, at which the search ends.")
]
Loss = Annotated[
    float,
    typer.Option(metavar="SHARE", help="Of the packets, that may be lost, and as many held up."),
]


def _latency(options: Options, rate: Rate = "10%,50%,90%") -> None:
    """How long packets take at a fixed rate: median, tail and longest.

    A packet's time begins when it was due, whether or not the ring had room, and counts there and
    back (one-way: there). Guests touch each packet.
    """
    from vhostfast.bench.latency import job, parse_rates

    _require_receiver(options)
    options.measure(job(parse_rates(rate), options.seconds), _print_latency)


def _loss_free(options: Options, resolution: Resolution = 0.02, loss: Loss = 0.0) -> None:
    """The highest rate without loss, by binary search (RFC 2544).

    A trial of --seconds passes if every packet came, and found room in the ring when it was due.
    """
    from vhostfast.bench.search import job

    _require_receiver(options)
    options.measure(job(resolution, loss), _print_loss_free)


latency = with_options(_latency, ONE_PAIR, {"sizes": "64"})
loss_free = with_options(
    _loss_free,
    ONE_PAIR,
    {"sizes": "64", "pattern": "one-way", "rounds": 3, "seconds": 0.5, "warm_up": 0.1},
)


def _require_receiver(options: Options) -> None:
    alone = {"send-only": "nothing arrives", "receive-only": "no guest sends"}
    if what := alone.get(options.pattern):
        raise UsageError(f"--pattern {options.pattern}: {what}; choose one of {', '.join(WAYS)}")


def _title(report: "Report", what: str) -> str:
    work, plan = report.plan["workload"], report.plan
    pages = "2 MiB" if plan["hugepages"] else "4 KiB"
    way = WAYS.get(work["pattern"], work["pattern"])
    return (
        f"{what} {way} ({work['pattern']}), {work['layout']}, {work['ring_size']} entries, log"
        f" {work['log']}, {pages} pages, {plan['rounds']} x {plan['seconds']:g} s"
    )


def _print_latency(report: "Report") -> None:
    table = table_of(
        _title(report, "microseconds"),
        ("bytes", "rate", "back-end", "Mpps"), list(QUANTILES), ("lost", "held", "idle"),
    )  # fmt: skip
    for frames in report.frames():
        for load in report.loads():
            for row in report.commands:
                style = "bold" if row == report.subject else ""
                table.add_row(frames, load, row, *_times(report, frames, load, row), style=style)
            table.add_section()
    print_table(table)
    gap = max(sample.gap_ns for one in report.rounds for sample in one.samples.values())
    print("times: median and range of rounds, counted from when a packet was due")
    explain(
        table,
        {
            "lost": "never came",
            "held": "was due and found the ring full",
            "idle": f"the driver's, which was away for {short(gap / 1e3)} us at worst",
        },
    )
    print("\n".join([*machine_lines(report), *driver_lines(report)]))


def _times(report: "Report", frames: str, load: str, row: str) -> list[str]:
    def figure(what: str) -> "Spread":
        return report.figures(frames, row, what, load)

    shares = [f"{figure(what).median:.2%}" for what in ("lost", "held", "idle")]
    times = [spread(figure(what).scaled(1e-3)) for what in QUANTILES.values()]
    return [short(figure("mpps").median), *times, *shares]


def _print_loss_free(report: "Report") -> None:
    others = [to for to in ("bare", report.versus) if to in report.held_against(report.subject)]
    table = table_of(
        _title(report, "highest rate without loss,"),
        ("bytes", "back-end", "Mpps", "range", "idle", "trials", "limit"),
        [f"x {to}" for to in others],
    )
    for frames in report.frames():
        for row in report.commands:
            rate = report.figures(frames, row)
            limits = Counter(
                one.samples[row].limit for one in report.rounds if one.frames == frames
            )
            cells = [short(rate.median), range_of(rate)] if rate.high else ["-", "-"]
            cells.append(f"{report.figures(frames, row, 'idle').median:.1%}")
            cells.append(f"{sum(report.figures(frames, row, 'trials').values):.0f}")
            cells.append(LIMITS[limits.most_common(1)[0][0]])
            against = report.held_against(row)
            ratios = [
                spread(report.ratio(frames, row, to)) if to in against else "" for to in others
            ]
            style = "bold" if row == report.subject else ""
            table.add_row(frames, row, *cells, *ratios, style=style)
        table.add_section()
    print_table(table)
    print(
        f"within {report.plan['resolution']:.1%}; with {report.plan['loss']:.4%} lost or held a"
        " trial still passed"
    )
    explain(table, MEANINGS | {"idle": "the driver's at that rate", "limit": "what failed above"})
    print("\n".join([*machine_lines(report), *driver_lines(report)]))
