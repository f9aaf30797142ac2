"""vhostfast bench idle: what a back-end costs that has nothing to do."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from vhostfast.cli.bench import explain, print_table, short, table_of
from vhostfast.cli.bench_options import Json, Subject, Versus, progress_on_stderr

if TYPE_CHECKING:
    from vhostfast.bench.idle import IdleReport

FIGURES = (("sockets s", "start_s"), ("MiB", "resident_mib"), ("shared", "shared_mib"),
           ("fds", "fds"))  # fmt: skip
MEANINGS = {
    "CPU": "share of one, three seconds after the last ring's start, median",
    "range": "lowest and highest start",
    "sockets": "from the command to the last of them",
    "MiB": "resident",
    "shared": "of these, the VMs'",
    "fds": "open files",
}

IdleMode = Annotated[
    str | None,
    typer.Option(
        metavar="poll|interrupt|adaptive", help="Of our own switch.", show_default="interrupt"
    ),
]


def idle(
    backend: Subject = None,
    versus: Versus = None,
    ports: Annotated[int, typer.Option(metavar="N", help="Idle VMs, 2 to 256.")] = 2,
    queues: Annotated[int, typer.Option(metavar="N", help="Queue pairs of each VM.")] = 1,
    mode: IdleMode = None,
    rounds: Annotated[int, typer.Option(metavar="N", help="Starts of each back-end.")] = 3,
    seconds: Annotated[float, typer.Option(help="For which CPU time is counted.")] = 5.0,
    worker_cpu: Annotated[int, typer.Option(metavar="CPU", help="Where back-ends run.")] = 0,
    driver_cpu: Annotated[int, typer.Option(metavar="CPU", help="Where the VMs are.")] = 1,
    as_json: Json = False,
) -> None:
    """How long a back-end takes to its sockets, and what idle VMs then cost."""
    from vhostfast.bench.backend import OURS, choose
    from vhostfast.bench.idle import run
    from vhostfast.bench.workload import Plan, Workload

    ours = OURS in (backend or OURS, versus)
    mode = mode or ("interrupt" if ours else "poll")
    work = Workload(ports=ports, queues=queues, mode=mode)
    plan = Plan(work, rounds, seconds, 0.0, worker_cpu, driver_cpu)
    rows = choose(plan, backend, [], versus, limits=False).backends
    with progress_on_stderr() as progress:
        report = run(plan, rows, progress)
    if as_json:
        print(json.dumps(report.as_dict()))
    else:
        _print(report)


def _print(report: "IdleReport") -> None:
    work, plan = report.plan["workload"], report.plan
    table = table_of(
        f"{work['ports']} idle VMs, {work['queues']} queue pairs each, mode {work['mode']},"
        f" {plan['rounds']} starts, {plan['seconds']:g} s",
        ("back-end", "CPU", "range", *[heading for heading, _ in FIGURES]),
    )
    for row in report.commands:
        cpu = report.figures(row, "cpu")
        cells = [f"{cpu.median:.3%}", f"{cpu.low:.3%}-{cpu.high:.3%}"]
        table.add_row(row, *cells, *[short(report.figures(row, of).median) for _, of in FIGURES])
    print_table(table)
    explain(table, MEANINGS)
