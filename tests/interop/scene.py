"""A guest that can move: the switches, the sockets, its peer, and the checks round a move."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pattern
from dpdk_backends import Switch
from host import Vm
from migration import Migration, Moved, Ring
from peer import Cable, Peer, plug
from qemu import Card, Guest

ROUNDS = 4
RATE = 400  # frames a second, each way, by each queue pair
LATE_MS = 2000  # between two looks of the guest at its rings
RX_ENTRIES, TX_ENTRIES = 1024, 256  # room for what comes meanwhile
UNREAD = 100  # frames of which the guest knows nothing yet when it stops, if it can be had
DIRTY_KIB = 4096  # what the guest itself writes to, lest a round find nothing and be the last
PORTS = ("a", "b", "peer", "side")  # of the first switch: "a" is its p0


class Scene:
    """A switch, a guest at its socket a, and the guest's peer; b is free. With `two` there is c as
    well, at a switch that is another process, with a cable from one to the other. A `busy` guest
    looks at its receive rings late, and writes to memory of its own all the time."""

    def __init__(
        self,
        folder: Path,
        *,
        pairs: int = 1,
        two: bool = False,
        busy: bool = False,
        rate: int = RATE,
        options: Sequence[str] = (),
        program: Sequence[str] = ("-m", "vhostfast"),
    ) -> None:
        self._folder, self._pairs = folder, pairs
        self._options = [*options, f"rx_queue_size={RX_ENTRIES}", f"tx_queue_size={TX_ENTRIES}"]
        self._options += ["mq=on"] if pairs > 1 else []
        self._names = 0
        with ExitStack() as stack:
            self.switch = self._switch(stack, PORTS, program)
            if two:
                self._switch(stack, ("c", "far"))
                stack.enter_context(Cable(self.socket("side"), self.socket("far"), pairs))
            self.guest = stack.enter_context(self.qemu("a"))
            self.guest.ready()
            if busy:
                self._be_busy()
            self.rings = rings_told(self.switch.output)
            assert len(self.rings) == 2 * pairs
            peer = Peer(self.socket("peer"), self.guest.card.mac, rate=rate, pairs=pairs)
            self.peer = stack.enter_context(peer)
            self.guest.run(f"arp -s {peer.address} {peer.mac}")
            pattern.begin(self.guest, peer.mac, rate=rate, pairs=pairs)
            self._stack = stack.pop_all()

    def _switch(
        self, stack: ExitStack, names: Sequence[str], program: Sequence[str] = ("-m", "vhostfast")
    ) -> Switch:
        switch = Switch(
            self._folder,
            [self.socket(name) for name in names],
            queues=None,
            forward="learn",
            adaptive=True,
            options=("--log-level", "debug"),
            program=program,
        )
        stack.enter_context(switch).ready()
        return switch

    def socket(self, name: str) -> Path:
        return self._folder / f"{name}.sock"

    def qemu(self, place: str, incoming: bool = False, paused: bool = True) -> Guest:
        """A new QEMU at the socket of this name."""
        self._names += 1
        name = f"{place}{self._names}"
        card = Card(self.socket(place), 1, self._options, self._pairs)
        if not incoming:
            return Guest(name, self._folder, card)
        return Guest(name, self._folder, card, incoming=self.socket(f"{name}-in"), paused=paused)

    def destination(self, place: str, paused: bool = True) -> Guest:
        guest = self._stack.enter_context(self.qemu(place, True, paused))
        guest.control("query-status")  # it listens
        return guest

    def _be_busy(self) -> None:
        """Its card has one interrupt for all rings: with napi_tx every one that says that something
        was sent would have it look at what it received."""
        driver, card = "/sys/bus/virtio/drivers/virtio_net", "/sys/class/net/eth0"
        self.guest.run(
            "echo 0 > /sys/module/virtio_net/parameters/napi_tx;"
            f" echo virtio0 > {driver}/unbind; echo virtio0 > {driver}/bind"
        )
        self.guest.bring_up()
        self.guest.run(
            f"echo 1000000 > {card}/napi_defer_hard_irqs;"
            f" echo {LATE_MS * 1_000_000} > {card}/gro_flush_timeout; guest dirty {DIRTY_KIB}"
        )

    def migrate(self, place: str) -> tuple[Moved, dict[int, set[int]]]:
        """Migrate the guest to the socket of this name, where it stands still; and the pages of
        each used ring that were written to at the end.

        It ends after the guest has looked at its first ring, long before it looks again: so there
        are buffers that we alone have written to.
        """
        source, receiver = self.guest, self.rings[0]
        destination = self.destination(place)
        migration = Migration(source, destination)
        migration.wait_for_rounds(ROUNDS)
        first = [ring.used_index(source) for ring in self.rings]
        migration.wait_for_event(lambda: receiver.filled(source) < UNREAD, "the guest's look")
        migration.wait_for_event(lambda: receiver.filled(source) >= UNREAD, "frames unread")
        moved = migration.finish(receiver)
        written = {
            ring.index: ring.written_pages(begin, ring.used_index(source))
            for ring, begin in zip(self.rings, first, strict=True)
        }
        source.close()
        self.guest = destination
        return moved, written

    def move(self, place: str) -> Moved:
        """Migrate the guest, and lose nothing.

        That all of a used ring was marked is seen in the log alone, for QEMU sends the rings again
        at the end.
        """
        moved, written = self.migrate(place)
        moved.assert_equal()
        for index, pages in written.items():
            assert moved.marked >= pages, f"of vring {index}, not all marked: pages {pages}"
        self.guest.control("cont")
        return moved

    def check_traffic(self, frames: int = 100) -> list[str]:
        """It goes on both ways, with nothing corrupt, nothing repeated. What each flow has lost."""
        goals = [total.received + frames for total in self._totals_of_guest()]
        self.peer.wait_for_frames(frames)
        self.peer.wait_until(
            lambda: all(
                total.received >= goal
                for total, goal in zip(self._totals_of_guest(), goals, strict=True)
            ),
            f"{frames} frames of each flow at the guest",
        )
        lost = []
        for flow, there in enumerate(self._totals_of_guest()):
            here = self.peer.totals(flow)
            for total, way in ((there, "to the guest"), (here, "from it")):
                total.assert_clean()
                lost.append(f"{total.missing} of {total.received + total.missing} {way}")
        return lost

    def _totals_of_guest(self) -> list[pattern.Totals]:
        return [pattern.totals(self.guest, flow) for flow in range(self._pairs)]

    def plug(self, name: str) -> Vm:
        """A card of our own at the socket of this name."""
        card = plug(self.socket(name), self._pairs)
        self._stack.callback(card.close)
        return card

    def counters(self) -> dict[str, tuple[int, int]]:
        """Of each port of the first switch: frames received from its guest, and sent to it."""
        told = len(self.switch.output)
        self.switch.process.send_signal(signal.SIGUSR1)
        self.switch.wait_for("^[-0-9: ]+ workers: ", told)
        line = r" (p\d+): received (\d+) packets \(\d+ bytes\), sent (\d+)"
        found = re.findall(line, self.switch.output[told:], re.MULTILINE)
        return {name: (int(received), int(sent)) for name, received, sent in found}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def rings_told(output: str) -> list[Ring]:
    """The rings of port p0, by what a switch that tells all was told last."""
    told = r"p0: SET_VRING_ADDR VringAddr\(index=(\d+),.* used=(\d+), avail=(\d+), log=(\d+)\)"
    rings = {}
    for numbers in re.findall(told, output):
        index, used, avail, log = map(int, numbers)
        entries = TX_ENTRIES if index % 2 else RX_ENTRIES
        rings[index] = Ring(index, entries, log + avail - used, log)  # log: GPA of the used ring
    return [rings[index] for index in sorted(rings)]
