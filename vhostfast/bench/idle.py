"""What a back-end costs that has nothing to do: until its sockets are there, and with idle guests.

Guests are connected, their rings run, their receive buffers are on offer, and nobody sends.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from vhostfast.bench import place
from vhostfast.bench.backend import GONE, Backend, family, running, tasks
from vhostfast.bench.report import Spread
from vhostfast.bench.sample import connected
from vhostfast.bench.workload import Plan

SETTLE_S = 3.0  # from the last ring's start on, until it counts: what a start entails is over
LOOK_S = 0.1


@dataclass(frozen=True, slots=True)
class Idle:
    """Of one start. `start_s`: seconds from the command to its last socket. `cpu`: the share of a
    CPU, 1 is all of it. `resident_mib`: what the process and its children have in memory;
    `shared_mib` of it are shared, so guests' memory. `fds`: their open files."""

    start_s: float
    cpu: float
    resident_mib: float
    shared_mib: float
    fds: int


@dataclass(frozen=True, slots=True)
class IdleReport:
    """The rounds of each row, in turn."""

    machine: dict[str, Any]
    plan: dict[str, Any]
    commands: dict[str, str]
    rounds: dict[str, list[Idle]]

    def figures(self, row: str, what: str) -> Spread:
        """A figure of a row, of all rounds; `what` names a field of Idle."""
        return Spread(tuple(getattr(one, what) for one in self.rounds[row]))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def run(plan: Plan, rows: Sequence[Backend], progress: Callable[[str, float], None]) -> IdleReport:
    """Measure all rows, each time as a fresh process. Raises as `rounds.run`."""
    place.require_cpus(plan)
    place.require_fds(plan)
    rounds: dict[str, list[Idle]] = {row.name: [] for row in rows}
    with place.out_of_the_way(plan):
        for number in range(plan.rounds):
            for at, row in enumerate(rows):
                progress(f"{row.name}, idle", (number + at / len(rows)) / plan.rounds)
                rounds[row.name].append(measure(row, plan))
    commands = {one.name: one.command for one in rows}
    return IdleReport(place.describe(), plan.as_dict(), commands, rounds)


def measure(backend: Backend, plan: Plan) -> Idle:
    """One start, with all guests of the plan idle for its `seconds`."""
    with (
        running(backend, plan) as run,
        connected(run, plan, idle=True) as guests,
        guests.looking_on(),
    ):
        assert run.process is not None  # for it was started here
        pid = run.process.pid
        _sleep(guests.look, SETTLE_S)
        before, began = _cpu_ns(pid), time.monotonic_ns()
        _sleep(guests.look, plan.seconds)
        cpu = (_cpu_ns(pid) - before) / (time.monotonic_ns() - began)
        return Idle(
            start_s=run.start_s,
            cpu=cpu,
            resident_mib=_memory_kib(pid, "VmRSS") / 1024,
            shared_mib=_memory_kib(pid, "RssShmem") / 1024,
            fds=sum(len(os.listdir(process / "fd")) for process in family(pid)),
        )


def _sleep(look: Callable[[], None], seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, LOOK_S))
        look()


# --- /proc ----------------------------------------------------------------------------------------


def _cpu_ns(pid: int) -> int:
    """CPU time of all threads (Documentation/scheduler/sched-stats.rst)."""
    total = 0
    for task in tasks(pid):
        with suppress(*GONE):
            total += int((task / "schedstat").read_text().split()[0])
    return total


def _memory_kib(pid: int, name: str) -> int:
    lines = [
        line
        for process in family(pid)
        for line in (process / "status").read_text().splitlines()
        if line.startswith(f"{name}:")
    ]
    return sum(int(line.split()[1]) for line in lines)
