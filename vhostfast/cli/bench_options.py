"""The options that say what `vhostfast bench` measures: written once, for each of its commands."""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vhostfast.cli.json_option import json_option

if TYPE_CHECKING:
    from vhostfast.bench.job import Job
    from vhostfast.bench.report import Report
    from vhostfast.bench.rounds import Progress
    from vhostfast.bench.workload import Plan

NONE: Mapping[str, Any] = MappingProxyType({})

Json = Annotated[bool, json_option("Everything as JSON, on stdout: --json > FILE.")]
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
        metavar="both-ways|one-way|loop|send-only|receive-only",
        help="Two VMs send to each other; one to the other; one gets back what it sends, or"
        " nothing: then what is taken counts; or it gets what the back-end sends by itself.",
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
        help="Pieces that a VM's memory is told in, 1 to 509; null and bare know one, so with more"
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
Limits = Annotated[bool, typer.Option(help="The rows null and bare, where there are such.")]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.svg", help="Draw it as well (needs vhostfast[plot])."),
]
Hugepages = Annotated[
    str, typer.Option(metavar="auto|on|off", help="Memory of the VMs in 2 MiB pages.")
]


@dataclass(frozen=True, slots=True)
class Options:
    """As given on the command line."""

    backend: Subject = None
    socket: Sockets = None
    versus: Versus = None
    sizes: Sizes = "64,512,1500"
    pattern: Pattern = "both-ways"
    load: Load = "lean"
    ring_size: Annotated[int, typer.Option(metavar="N", help="Entries, a power of two.")] = 256
    layout: Layout = "direct"
    mergeable: Annotated[bool, typer.Option(help="Whether MRG_RXBUF is agreed on.")] = True
    buffer_size: BufferSize = 2112
    queues: Annotated[int, typer.Option(metavar="N", help="Queue pairs of each VM.")] = 1
    ports: Ports = 2
    busy: Busy = "all"
    regions: Regions = 1
    mode: Mode = "poll"
    forward: Forward = None
    log: Log = "off"
    rounds: Annotated[int, typer.Option(metavar="N", help="Of each size.")] = 5
    seconds: Annotated[float, typer.Option(help="Timed, in each turn.")] = 1.0
    warm_up: Annotated[float, typer.Option(help="Seconds before, not counted.")] = 0.3
    worker_cpu: Annotated[int, typer.Option(metavar="CPU", help="Where back-ends run.")] = 0
    driver_cpu: Annotated[int, typer.Option(metavar="CPU", help="Where the VMs run.")] = 1
    hugepages: Hugepages = "auto"
    limits: Limits = True
    plot: Plot = None
    as_json: Json = False

    def measure(self, job: "Job[Any]", show: Callable[["Report"], None]) -> None:
        """Do the job with all back-ends, and tell what came of it: `show` as a table."""
        from vhostfast.bench.backend import choose
        from vhostfast.bench.rounds import run

        if self.plot:
            from vhostfast.bench.plot import require

            require(self.plot)
        plan = self._plan()
        rows = choose(plan, self.backend, self.socket or [], self.versus, limits=self.limits)
        with progress_on_stderr() as progress:
            report = run(plan, rows, progress, job=job)
        if self.as_json:
            print(json.dumps(report.as_dict()))
        else:
            show(report)
        if self.plot:
            from vhostfast.bench.plot import draw

            draw(report, self.plot)

    def _plan(self) -> "Plan":
        from vhostfast.bench.backend import OVS
        from vhostfast.bench.place import choose_hugepages
        from vhostfast.bench.workload import Plan, Workload, parse_frames

        forward = self.forward or ("learn" if OVS in (self.backend, self.versus) else "patch")
        work = Workload(
            parse_frames(self.sizes), self.pattern, self.load, self.ring_size, self.layout,
            self.mergeable, self.queues, self.mode, self.log, forward, self.ports, self.busy,
            self.buffer_size, self.regions,
        )  # fmt: skip
        cpus = self.worker_cpu, self.driver_cpu
        plan = Plan(work, self.rounds, self.seconds, self.warm_up, *cpus)
        use, sentence = choose_hugepages(self.hugepages, plan)
        if sentence:
            typer.echo(sentence, err=True)
        return replace(plan, hugepages=use)


def with_options(
    command: Callable[..., None],
    fixed: Mapping[str, Any] = NONE,
    defaults: Mapping[str, Any] = NONE,
) -> Callable[..., None]:
    """The command with its own parameters but the first, which is `Options`, and behind them each
    of those options, but for `fixed` ones, and with its own `defaults`."""
    asked = [field for field in fields(Options) if field.name not in fixed]
    parameters = list(inspect.signature(command).parameters.values())[1:]
    for field in asked:
        default = defaults.get(field.name, field.default)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(
            inspect.Parameter(field.name, kind, default=default, annotation=field.type)
        )

    def run(**values: Any) -> None:
        given = {field.name: values.pop(field.name) for field in asked}
        command(Options(**fixed, **given), **values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


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
