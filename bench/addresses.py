"""Whole packets to many addresses: cycles of a learning switch with 16, 1,000 and 100,000 of them.

    chrt -r 1 .venv/bin/python bench/addresses.py [--rounds 5] [--json FILE]

Four guests on one worker, each the owner of a quarter of the addresses, all of which are learned
and sent to, in any order. The rows differ in nothing but the addresses: each has rings of its own
with 64-byte frames in as many buffers, 131,072 sent and as many received, on cache lines of their
own (together more than a cache holds), in the same order and for the same guests, so that as many
packets in a row are for one. Guests send from one address each; in the row "from all", from all
that they own, so that twice as many places of the table are looked at. The row "16, small" has
rings of 256: beside it one sees what the many buffers cost, whoever they are for.

Guests are played outside of the time that counts: the worker's own cycle counter. Rows take turns;
a round's figure is the median of its passes over all buffers, without the first, which finds the
caches full of another row. Before and after all, each frame has to arrive once, at the owner of its
address. Exit code 1: with 100,000 addresses a packet costs 1.5 times as much as with 16, or more.
"""

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vhostfast.bench.place import hugepages
from vhostfast.bench.report import Spread
from vhostfast.bench.workload import HUGEPAGE
from vhostfast.cli.bench import print_table, spread, table_of
from vhostfast.core import memory as mapped
from vhostfast.core.driver import RING_SIZE_MAX
from vhostfast.core.fabric import Fabric, Worker
from vhostfast.core.ring import Ring
from vhostfast.driver import GuestMemory, Vring

BELOW = 1.5
GUESTS = 4
PASSES = 10  # of each row in a round
SEED = 1
HEADER_SIZE, FRAME_SIZE, STRIDE = 12, 64, 128  # bytes; header and frame lie in lines of their own
WRITE = 2  # VIRTQ_DESC_F_WRITE
MEMORY = ((0, 12 << 20),)  # of a guest: two rings of the largest size, and their buffers
SPARE = 200  # addresses more than asked, for those that the table has no room for
FEW, MANY = "16", "100,000"
ROWS = {
    "16, small": {"addresses": 16, "size": 256},
    FEW: {"addresses": 16},
    "1,000": {"addresses": 1000},
    MANY: {"addresses": 100_000},
    "100,000, from all": {"addresses": 100_000, "from_all": True},
}
FRAME = np.dtype({
    "names": ["target", "source", "type", "number"],
    "formats": [(np.uint8, 6), (np.uint8, 6), ">u2", "<u4"],
    "offsets": [12, 18, 24, 26],
    "itemsize": STRIDE,
})  # fmt: skip


Addresses = NDArray[np.uint8]  # shape (n, 6)


class Guest:
    """Rings of a guest at a port; what it sends stays in its ring, and is offered again."""

    def __init__(self, fabric: Fabric, number: int, size: int, stack: ExitStack) -> None:
        self.port = fabric.add_port(f"port{number}")
        memory = stack.enter_context(GuestMemory(MEMORY, hugepages=HUGEPAGES))
        regions = zip(memory.regions, memory.fds, strict=True)
        space = mapped.GuestMemory((r.gpa, r.size, r.uva, r.mmap_offset, fd) for r, fd in regions)
        self.vrings = [stack.enter_context(Vring(memory, index, size)) for index in (0, 1)]
        self.received, self.sent = (
            self._start(vring, space, HEADER_SIZE + FRAME_SIZE if vring.index else STRIDE)
            for vring in self.vrings
        )

    def _start(self, vring: Vring, space: mapped.GuestMemory, length: int) -> NDArray[np.void]:
        """The ring at work, with a buffer at each of its descriptors, as frames."""
        memory, ring, place, size = vring.memory, Ring(vring.index), vring.addresses(), vring.size
        gpa = memory.take(STRIDE * size)
        desc, slots = vring.ring.desc, np.arange(size)
        desc["addr"], desc["len"] = gpa + STRIDE * slots, length
        desc["flags"] = 0 if vring.index else WRITE
        vring.ring.avail["ring"] = slots
        ring.start(
            space, size=size, desc=place.desc, used=place.used, avail=place.avail, mergeable=True,
            header_size=HEADER_SIZE,
        )  # fmt: skip
        vring.ring.want_calls(False)
        self.port.attach(ring)
        return memory.view(gpa, STRIDE * size).view(FRAME)

    def ready(self) -> None:
        """All buffers are on offer again."""
        for vring in self.vrings:
            ring = vring.ring
            ring.avail["idx"] = (int(ring.used["idx"]) + vring.size) % 65536


class Yard:
    """Guests that send to each other's addresses, by a switch that knows them all."""

    def __init__(self, stack: ExitStack, addresses: int, size: int = RING_SIZE_MAX,
                 *, from_all: bool = False) -> None:  # fmt: skip
        self.size = size
        self.fabric = Fabric("learn")
        stack.callback(self.fabric.close)
        self.worker = Worker(self.fabric, "poll")
        self.guests = [Guest(self.fabric, number, size, stack) for number in range(GUESTS)]
        self.fabric.lay_out()
        # Frame i of guest g is for guest g + step[i], so of all frames i each guest gets one.
        step = np.random.default_rng(SEED).integers(1, GUESTS, size)
        owner = (np.arange(GUESTS)[:, None] + step).ravel() % GUESTS
        random = np.random.default_rng(SEED)
        self.owned = self._learn(addresses // GUESTS, random)
        self.target = np.empty((GUESTS * size, 6), np.uint8)
        for number, owned in enumerate(self.owned):
            self.target[owner == number] = shuffled(owned, size, random)
        for number, guest in enumerate(self.guests):
            all_of_it = slice(number * size, (number + 1) * size)
            guest.sent["target"] = self.target[all_of_it]
            sources = self.owned[number][: None if from_all else 1]
            guest.sent["source"] = shuffled(sources, size, random)
            guest.sent["type"] = 0x88B5  # IEEE 802: for local experiments
            guest.sent["number"] = np.arange(GUESTS * size)[all_of_it]

    def _learn(self, each: int, random: np.random.Generator) -> list[Addresses]:
        """So many addresses for each guest, all of which the table has kept."""
        spare = SPARE if each > SPARE else 0
        drawn = random.integers(0, 256, (GUESTS, each + spare, 6), np.uint8)
        drawn[:, :, 0] = 2  # locally administered
        for guest, addresses in zip(self.guests, drawn, strict=True):
            for address in addresses:
                self.fabric.learn(address.tobytes(), guest.port)
        owned = []
        for guest, addresses in zip(self.guests, drawn, strict=True):
            kept = [self.fabric.find(address.tobytes()) is guest.port for address in addresses]
            owned.append(addresses[kept][:each])
            assert len(owned[-1]) == each
        return owned

    def cost(self) -> float:
        """Cycles a packet of one pass over all buffers."""
        for guest in self.guests:
            guest.ready()
        before, packets = self.worker.busy_cycles, 0
        while moved := self.worker.turn():
            packets += moved
        assert packets == GUESTS * self.size
        return (self.worker.busy_cycles - before) / packets

    def check(self) -> None:
        """A pass of which each frame arrives once, at the owner of its address."""
        before = [guest.port.counters() for guest in self.guests]
        for guest in self.guests:
            guest.received[:] = 0
        self.cost()
        for guest, owned, then in zip(self.guests, self.owned, before, strict=True):
            counted = {name: n - then[name] for name, n in guest.port.counters().items()}
            assert counted["rx_packets"] == counted["tx_packets"] == self.size  # none flooded
            there = guest.received
            assert np.array_equal(there["target"], self.target[there["number"]])
            assert set(as_numbers(there["target"])) == set(as_numbers(owned))
        numbers = np.concatenate([guest.received["number"] for guest in self.guests])
        assert np.array_equal(np.sort(numbers), np.arange(len(numbers)))


def shuffled(addresses: Addresses, count: int, random: np.random.Generator) -> Addresses:
    """So many of them, each as often as the others, in any order."""
    return addresses[random.permutation(np.arange(count) % len(addresses))]


def as_numbers(addresses: Addresses) -> NDArray[np.uint64]:
    return addresses @ (np.uint64(256) ** np.arange(6, dtype=np.uint64))


def measure(rounds: int) -> list[dict[str, float]]:
    """Cycles a packet of each row, round by round."""
    found = []
    with ExitStack() as stack:
        yards = {row: Yard(stack, **kind) for row, kind in ROWS.items()}
        for yard in yards.values():
            yard.check()
        for _ in range(rounds):
            costs = {row: [yard.cost() for _ in range(1 + PASSES)] for row, yard in yards.items()}
            found.append({row: statistics.median(each[1:]) for row, each in costs.items()})
        for yard in yards.values():
            yard.check()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="every figure, into this file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: give at least one")
    rounds = measure(options.rounds)
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds}) + "\n")
    table = table_of(f"{FRAME_SIZE} B to many addresses, {PAGES}: medians and the range of rounds",
                     ("addresses", "cycles a packet", f"x {FEW}"))  # fmt: skip
    ratios = {row: Spread(tuple(one[row] / one[FEW] for one in rounds)) for row in ROWS}
    for row, ratio in ratios.items():
        table.add_row(row, spread(Spread(tuple(one[row] for one in rounds))), spread(ratio))
    print_table(table)
    return 0 if ratios[MANY].median < BELOW else 1


HUGEPAGES = hugepages()[1] >= len(ROWS) * GUESTS * MEMORY[0][1] // HUGEPAGE
PAGES = "pages of 2 MiB" if HUGEPAGES else "pages of 4 KiB: too few of 2 MiB are free"

if __name__ == "__main__":
    sys.exit(main())
