"""A second worker: what two workers do together, by what one of them does alone.

    chrt -r 1 python bench/second_worker.py --rounds 5 --json second-worker.json    # as root

Each worker has a CPU and a pair of ports of its own. Two CPUs are enough: the driver of each pair
shares its worker's, and both give way when they have nothing to do (interrupt mode, a driver that
waits), so what a CPU moves is bounded by both. Each round runs a switch with a worker on the first
CPU, one on the second, and one with two workers; the ratio is the packets a second of both by the
mean of the two. Beside it stand the workers' own cycles a packet, together by alone: what they cost
each other, whatever the drivers do. Exit code 1: under 1.8; 3: something is lacking.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from vhostfast.bench.pair import Talker, talker
from vhostfast.bench.place import hugepages
from vhostfast.bench.workload import HUGEPAGE
from vhostfast.cli.bench import print_table, short, table_of
from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.traffic import Load, Traffic, pair
from vhostfast.errors import EnvironmentLacks, VhostfastError

ASKED = 1.8
MEMORY = ((0, 8 << 20),)


@dataclass(frozen=True)
class Turn:
    """Of all pairs together."""

    mpps: float
    cycles: float  # the workers', a packet


def drive(frontends: Sequence[Frontend], cpu: int, seconds: float, start: threading.Barrier,
          rates: list[float]) -> None:  # fmt: skip
    """Traffic both ways between two guests, by the calling thread."""
    os.sched_setaffinity(0, {cpu})
    traffic = Traffic(pair(*frontends), Load("lean", verify_every=64), idle="wait")
    start.wait()
    began = time.perf_counter()
    traffic.run(seconds)
    took = time.perf_counter() - began
    counters = traffic.counters()
    if counters.corrupt or counters.foreign:
        raise VhostfastError(f"frames arrived that nobody sent: {counters}")
    rates.append(counters.received / took / 1e6)


async def told(switch: Talker) -> tuple[int, int]:
    """Cycles in which packets moved, and packets, of all workers so far."""
    switch.process.send_signal(signal.SIGUSR1)
    summary = await switch.hear()
    return summary["busy_cycles"], summary["packets"]


async def turn(cpus: Sequence[int], seconds: float) -> Turn:
    """A switch with a worker on each of these CPUs, and a pair of ports for each."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vhostfast-"))
        sockets = [f"{folder}/{number}.sock" for number in range(2 * len(cpus))]
        ports = [f"--port=vm{n}=vhost-user:{path}" for n, path in enumerate(sockets)]
        options = ("--forward=patch", "--mode=interrupt", "--json", "--log-level=warning",
                   f"--cpus={','.join(map(str, cpus))}")  # fmt: skip
        switch = await stack.enter_async_context(
            talker("the switch", "vhostfast", "switch", *ports, *options)
        )
        frontends = []
        for socket in sockets:
            memory = stack.enter_context(GuestMemory(MEMORY, hugepages=HUGEPAGES))
            frontends.append(stack.enter_context(Frontend(socket, memory)))
            frontends[-1].start()
        rates: list[float] = []
        start = threading.Barrier(len(cpus))
        before = await told(switch)
        await asyncio.gather(*(
            asyncio.to_thread(drive, frontends[2 * n : 2 * n + 2], cpu, seconds, start, rates)
            for n, cpu in enumerate(cpus)
        ))  # fmt: skip
        after = await told(switch)
    cycles, packets = (now - then for now, then in zip(after, before, strict=True))
    return Turn(sum(rates), cycles / packets)


async def measure(rounds: int, seconds: float) -> list[list[Turn]]:
    """The turns of each round: the first CPU, the second, both."""
    first, second = CPUS
    runs = ([first], [second], CPUS)
    return [[await turn(cpus, seconds) for cpus in runs] for _ in range(rounds)]


def show(found: list[list[Turn]]) -> bool:
    """The table; whether two do enough more than one."""
    table = table_of(f"workers, each with its own ports and CPU; {PAGES}",
                     ("round", "first Mpps", "second", "both", "x one", "cycles x"))  # fmt: skip
    ratios = []
    for number, (first, second, both) in enumerate(found, 1):
        ratios.append(2 * both.mpps / (first.mpps + second.mpps))
        cycles = 2 * both.cycles / (first.cycles + second.cycles)
        figures = (first.mpps, second.mpps, both.mpps, ratios[-1], cycles)
        table.add_row(str(number), *map(short, figures))
    print_table(table)
    median = statistics.median(ratios)
    print(f"x one: {median:.2f} ({min(ratios):.2f}-{max(ratios):.2f}), asked {ASKED}")
    return median >= ASKED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="timed, in each turn")
    parser.add_argument("--json", type=Path, help="every figure, into this file")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds, --seconds: give at least one round of some time")
    try:
        if len(CPUS) < 2:
            raise EnvironmentLacks("two workers need two CPUs, and this process may use one")
        found = asyncio.run(measure(options.rounds, options.seconds))
    except VhostfastError as error:
        print(f"second_worker.py: {error}", file=sys.stderr)
        return 3 if isinstance(error, EnvironmentLacks) else 2
    if options.json:
        rounds = {"rounds": [[asdict(one) for one in row] for row in found]}
        options.json.write_text(json.dumps(rounds) + "\n")
    return 0 if show(found) else 1


CPUS = sorted(os.sched_getaffinity(0))[:2]
HUGEPAGES = hugepages()[1] >= 4 * MEMORY[0][1] // HUGEPAGE
PAGES = "pages of 2 MiB" if HUGEPAGES else "pages of 4 KiB: too few of 2 MiB are free"

if __name__ == "__main__":
    sys.exit(main())
