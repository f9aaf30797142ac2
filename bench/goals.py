"""Every goal of the project from one command: what was asked, what was found, whether it is met.

    chrt -r 1 .venv/bin/python bench/goals.py                   # all, as root: half an hour
    .venv/bin/python bench/goals.py --only lean,log --json goals.json

Nothing is measured here: each run is a `vhostfast bench` command with --json, or a program of this
folder, and a goal says how its figure is taken from that. Runs of two commands are taken in turns,
one round each, and held against each other round by round. What a run found is printed when it has
ended, and all of it at the end. Exit code 1: a goal is not met; else 3: one was not measured.

Under chrt the kernel takes the CPU from us for 50 ms of each second, which shows as a slow round,
unless told not to: sysctl kernel.sched_rt_runtime_us=-1 kernel.sched_rr_timeslice_ms=1
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from addresses import BELOW, FEW, MANY
from virtio_user import MODES

from vhostfast.bench.backend import ours
from vhostfast.bench.report import Report
from vhostfast.bench.workload import Plan, Workload
from vhostfast.cli.bench import print_table, short, table_of

IDLE_SECONDS = 2.0  # for which the CPU time of idle guests is counted
BARE_FAST = 8.0  # times DPDK at 64 B that `bare` is where the goals against DPDK hold in full
STARVED_MAX = 0.1  # of a turn, for others; with more nothing is proved, met or not
Told = dict[str, Any]  # what one command printed
Found = Sequence[Sequence[Told]]  # of each command of a run, in turn
Values = tuple[float, ...]  # a figure, round by round


class Failed(Exception):
    """A command didn't end well; the sentence that it said."""


# --- How a figure is taken ------------------------------------------------------------------------


def bare(size: str) -> Callable[[Found], Values]:
    """The share of `bare`."""
    return lambda found: _ratio(found, size, "bare")


def versus(size: str) -> Callable[[Found], Values]:
    """Times as fast as what it is held against."""
    return lambda found: _ratio(found, size, None)


def _ratio(found: Found, size: str, to: str | None) -> Values:
    report = Report.from_dict(found[0][0])
    other = to or report.versus
    assert other is not None  # by the run's command
    return report.ratio(size, report.subject, other).values


def cost(size: str) -> Callable[[Found], Values]:
    """Cycles a packet of the second command, by those of the first."""

    def take(found: Found) -> Values:
        cycles = [
            [value for one in map(Report.from_dict, told) for value in _cycles(one, size)]
            for told in found
        ]
        return tuple(second / first for first, second in zip(*cycles, strict=True))

    return take


def _cycles(report: Report, size: str) -> Values:
    return report.figures(size, report.subject, "cycles").values


def idle(what: str) -> Callable[[Found], Values]:
    """Of idle guests' back-end."""
    return lambda found: tuple(one[what] for one in found[0][0]["rounds"]["vhostfast"])


def virtio_user(mode: str) -> Callable[[Found], Values]:
    """Times as fast as DPDK's back-end, with DPDK's virtio-user in this mode."""

    def take(found: Found) -> Values:
        rates: Told = found[0][0][mode]
        return tuple(us / them for us, them in zip(rates["vhostfast"], rates["dpdk"], strict=True))

    return take


def two_workers(found: Found) -> Values:
    """What two workers do by what one does."""
    rounds = [[turn["mpps"] for turn in turns] for turns in found[0][0]["rounds"]]
    return tuple(2 * both / (first + second) for first, second, both in rounds)


def many_addresses(found: Found) -> Values:
    """What a packet costs among many addresses, by what it costs among few."""
    return tuple(one[MANY] / one[FEW] for one in found[0][0]["rounds"])


def bare_factor(found: Found) -> float:
    """Times as fast as DPDK that `bare` is with 64 B: what this CPU gives at best."""
    report = Report.from_dict(found[0][0])
    assert report.versus is not None
    return report.ratio("64", "bare", report.versus).median


# --- The goals ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """`figure` of a run has to be `least` or more, or less than `below`, or is only told. Where
    `bare` is not BARE_FAST here, `slow_cpu` is enough."""

    run: str
    what: str
    figure: Callable[[Found], Values]
    least: float | None = None
    below: float | None = None
    slow_cpu: float | None = None


def _mode(mode: str) -> str:
    return f"'{ours(Plan(Workload(mode=mode))).command}'"


SMALL = "--sizes 64 --no-limits"
# By name, the options of `vhostfast bench`, or a program of this folder; of two commands, the
# second is held against the first.
RUNS = {
    "lean": ("--load lean --versus dpdk --sizes 64,512,1500",),
    "touch": ("--load touch --versus dpdk --sizes 64,512,1500 --no-limits",),
    "indirect": ("--layout indirect --versus dpdk --sizes 64 --no-limits",),
    "chained": ("--layout chained --versus dpdk --sizes 64 --no-limits",),
    "mergeable": ("--ring-size 1024 --versus dpdk --sizes 64 --no-limits",),
    "queues": ("--queues 2 --versus dpdk --sizes 64 --no-limits",),
    "log": ("--log both --sizes 64,1500 --no-limits",),
    "adaptive": (f"--backend {_mode('adaptive')} --versus {_mode('poll')} --sizes 64 --no-limits",),
    "idle-2": ("idle --ports 2 --mode interrupt",),
    "idle-256": ("idle --ports 256 --mode interrupt",),
    "ports": (SMALL, f"{SMALL} --ports 64 --busy 2"),
    # 8 are as many as one message tells; 509 are told one by one (CONFIGURE_MEM_SLOTS). They are
    # cut at 4 KiB: with such pages at a page's end, with those of 2 MiB amid a page.
    "regions-8": (f"{SMALL} --hugepages off", f"{SMALL} --hugepages off --regions 8"),
    "regions-509": (f"{SMALL} --hugepages off", f"{SMALL} --hugepages off --regions 509"),
    "regions-amid-8": (SMALL, f"{SMALL} --regions 8"),
    "regions-amid-509": (SMALL, f"{SMALL} --regions 509"),
    "ovs": ("--versus ovs --sizes 64,1500 --no-limits",),
    "virtio-user": ("virtio_user.py",),
    "second-worker": ("second_worker.py",),
    "addresses": ("addresses.py",),
}

GOALS = (
    Goal("lean", "share of bare, 64 B", bare("64"), least=0.5),
    Goal("lean", "share of bare, 512 B", bare("512"), least=0.75),
    Goal("lean", "share of bare, 1500 B", bare("1500"), least=0.85),
    Goal("lean", "x DPDK, 64 B", versus("64"), least=4.0, slow_cpu=2.0),
    Goal("lean", "x DPDK, 512 B", versus("512"), least=3.0, slow_cpu=2.0),
    Goal("lean", "x DPDK, 1500 B", versus("1500"), least=2.5, slow_cpu=2.0),
    *(
        Goal("touch", f"x DPDK, {size} B", versus(size), least=2.5)
        for size in ("64", "512", "1500")
    ),
    Goal("indirect", "x DPDK, 64 B", versus("64"), least=2.0),
    Goal("chained", "x DPDK, 64 B", versus("64"), least=2.0),
    Goal("mergeable", "x DPDK, 64 B, 1024 entries", versus("64"), least=2.0),
    Goal("queues", "x DPDK, 64 B, 2 queue pairs", versus("64"), least=2.0),
    Goal("log", "log on by log off, 64 B", versus("64"), least=0.95),
    Goal("log", "log on by log off, 1500 B", versus("1500"), least=0.95),
    Goal("adaptive", "adaptive by poll, 64 B", versus("64"), least=0.95),
    *(
        goal
        for ports in (2, 256)
        for goal in (
            Goal(f"idle-{ports}", "CPUs, interrupt mode", idle("cpu"), below=0.01),
            Goal(f"idle-{ports}", "seconds to its sockets", idle("start_s"), below=0.3),
            Goal(f"idle-{ports}", "MiB resident", idle("resident_mib"), below=60.0 + ports),
        )
    ),
    Goal("ports", "cycles a packet, 64 ports, 2 busy, by 2", cost("64"), below=1.1),
    *(
        Goal(f"regions-{which}", f"cycles a packet, {told} by 1", cost("64"), below=1.05)
        for which, told in (
            ("8", "8 regions cut at pages"),
            ("509", "509 regions cut at pages"),
            ("amid-8", "8 regions cut amid huge pages"),
            ("amid-509", "509 regions cut amid huge pages"),
        )
    ),
    Goal("ovs", "x Open vSwitch, 64 B", versus("64")),
    Goal("ovs", "x Open vSwitch, 1500 B", versus("1500")),
    *(Goal("virtio-user", f"x DPDK, {mode}", virtio_user(mode), least=1.0) for mode in MODES),
    Goal("second-worker", "two workers by one", two_workers, least=1.8),
    Goal("addresses", "cycles a packet, 100,000 by 16", many_addresses, below=BELOW),
)


# --- What is found --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A goal, what was `asked`, and the figure's rounds; none if it could not be measured, and then
    `note` says why. `met` is None where nothing was asked, or found."""

    run: str
    what: str
    asked: str
    values: Values
    met: bool | None
    note: str


def evaluate(goal: Goal, found: Found | Failed) -> Row:
    """Hold what a run found against a goal of it."""
    least, note = goal.least, ""
    if isinstance(found, Failed):
        return Row(
            goal.run, goal.what, _asked(least, goal.below), (), None, f"not measured: {found}"
        )
    if goal.slow_cpu is not None:
        factor = bare_factor(found)
        least = goal.least if factor >= BARE_FAST else goal.slow_cpu
        note = f"bare is {short(factor)} x DPDK at 64 B; "
    values = goal.figure(found)
    median = statistics.median(values)
    met = None
    if least is not None:
        met = median >= least
    elif goal.below is not None:
        met = median < goal.below
    return Row(goal.run, goal.what, _asked(least, goal.below), values, met, note + _limits(found))


def _asked(least: float | None, below: float | None) -> str:
    return f">= {least:g}" if least is not None else f"< {below:g}" if below is not None else ""


def _limits(found: Found) -> str:
    """What a run was limited by besides the subject: the driver, and others on its CPUs."""
    told = [one for of_command in found for one in of_command]
    if "subject" not in told[0]:
        return ""  # of idle guests, or of a program
    subject = [turn["samples"][one["subject"]] for one in told for turn in one["rounds"]]
    turns = [
        sample for one in told for turn in one["rounds"] for sample in turn["samples"].values()
    ]
    idle_share = min(sample["idle"] for sample in subject)
    starved = max(sample["starved"] for sample in turns)
    note = f"driver idle {idle_share:.0%} or more, others had a CPU {starved:.0%} at worst"
    if restless := sum(not turn["still"] for one in told for turn in one["rounds"]):
        note += f", the CPUs' distance changed in {restless} rounds"
    if restless or starved > STARVED_MAX:
        note += ": doubt it, and measure on a quiet machine, under chrt -r 1"
    return note


def exit_code(rows: Sequence[Row]) -> int:
    """1 if a goal is not met, else 3 if one could not be measured, else 0."""
    if any(row.met is False for row in rows):
        return 1
    return 3 if any(not row.values for row in rows) else 0


# --- Running --------------------------------------------------------------------------------------


def measure(name: str, rounds: int, seconds: float) -> Found:
    """All commands of a run. Raises Failed."""
    commands = RUNS[name]
    if commands[0].endswith(".py"):
        return [[program(commands[0], rounds)]]
    if len(commands) == 1:
        return [[bench(commands[0], rounds, seconds)]]
    found: list[list[Told]] = [[] for _ in commands]
    for _ in range(rounds):
        for told, command in zip(found, commands, strict=True):
            told.append(bench(command, 1, seconds))
    return found


def bench(options: str, rounds: int, seconds: float) -> Told:
    """What `vhostfast bench` with these options prints as JSON. Raises Failed."""
    words = shlex.split(options)
    if words[0] == "idle":
        seconds = IDLE_SECONDS
    else:
        words = ["--hugepages", "on", *words]  # what stands behind it replaces it
    words += ["--rounds", str(rounds), "--seconds", f"{seconds:g}", "--json"]
    command = [sys.executable, "-m", "vhostfast", "bench", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split()) or "it said nothing"
        raise Failed(f"exit code {done.returncode}, {said}")
    told: Told = json.loads(done.stdout)
    return told


def program(name: str, rounds: int) -> Told:
    """What a program of this folder writes as JSON. Raises Failed."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        path = Path(__file__).with_name(name)
        command = [sys.executable, str(path), "--rounds", str(rounds), "--json", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: its own goal is not met
            raise Failed(f"exit code {done.returncode}, {' '.join(done.stderr.split())}")
        told: Told = json.loads(Path(file.name).read_text())
        return told


def print_rows(rows: Sequence[Row]) -> None:
    title = "goals: medians of all rounds, between the lowest and the highest"
    table = table_of(title, ("figure", "asked", "found", "range", "met", "rounds"))
    for row in rows:
        found, between = "", ""
        if row.values:
            found = _digits(statistics.median(row.values))
            between = f"{_digits(min(row.values))}-{_digits(max(row.values))}"
        met = {True: "yes", False: "NO", None: "" if row.values else "not measured"}[row.met]
        figure = f"{row.run}: {row.what}"
        table.add_row(figure, row.asked, found, between, met, str(len(row.values)))
    print_table(table)
    for line in dict.fromkeys(f"{row.run}: {row.note}" for row in rows if row.note):
        print(line)


def line(row: Row) -> str:
    """A row in short, told before the table is whole."""
    found = _digits(statistics.median(row.values)) if row.values else row.note
    return f"{row.what}: {found}" + (f", asked {row.asked}" if row.asked else "")


def _digits(value: float) -> str:
    return short(value) if value >= 2 else f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"


def main() -> int:
    parser = argparse.ArgumentParser(description="All goals, and which of them are met.")
    parser.add_argument("--only", default=",".join(RUNS), help=f"of {', '.join(RUNS)}")
    parser.add_argument("--rounds", type=int, default=5, help="of each figure [5]")
    parser.add_argument("--seconds", type=float, default=0.4, help="timed, in each turn [0.4]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure and round, to FILE")
    options = parser.parse_args()
    names = options.only.split(",")
    if strange := [name for name in names if name not in RUNS]:
        parser.error(f"--only {','.join(strange)}: choose of {', '.join(RUNS)}")
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds, --seconds: give at least one round of some time")
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
    rows: list[Row] = []
    runs: dict[str, Any] = {}
    for number, name in enumerate(names, 1):
        began = time.monotonic()
        print(f"{number}/{len(names)} {name} ...", end=" ", file=sys.stderr, flush=True)
        found: Found | Failed
        try:
            found = measure(name, options.rounds, options.seconds)
        except Failed as error:
            found = error
        runs[name] = str(found) if isinstance(found, Failed) else found
        new = [evaluate(goal, found) for goal in GOALS if goal.run == name]
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
        for row in new:
            print(f"  {line(row)}", file=sys.stderr)
        rows += new
    print_rows(rows)
    if options.json:
        told = {"goals": [asdict(row) for row in rows], "runs": runs}
        options.json.write_text(json.dumps(told) + "\n", encoding="utf-8")
    return exit_code(rows)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("goals: ended by Ctrl-C: nothing is stored", file=sys.stderr)
        sys.exit(130)
