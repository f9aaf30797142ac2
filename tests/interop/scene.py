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
from migration import PAGE, Migration, Moved
from peer import Cable, Peer, plug
from qemu import Card, Guest

ROUNDS = 4
RATE = 500  # frames a second, each way, by each queue pair
LATE_MS = 100  # between two looks of the guest at its rings
DIRTY_KIB = 1024  # what the guest itself writes to, lest a round find nothing and be the last
USED_SIZE = 6 + 8 * 256  # bytes of a used ring
PORTS = ("a", "b", "peer", "side")  # of the first switch: "a" is its p0


class Scene:
    """A switch, a guest at its socket a, and the guest's peer; b is free. With `two` there is c as
    well, at a switch that is another process, with a cable from one to the other."""

    def __init__(
        self,
        folder: Path,
        *,
        pairs: int = 1,
        two: bool = False,
        rate: int = RATE,
        options: Sequence[str] = (),
        program: Sequence[str] = ("-m", "vhostfast"),
    ) -> None:
        self._folder, self._pairs = folder, pairs
        self._options = (*options, "mq=on") if pairs > 1 else options
        self._names = 0
        with ExitStack() as stack:
            self.switch = self._switch(stack, PORTS, program)
            self._switches = dict.fromkeys(PORTS, self.switch)
            if two:
                self._switches["c"] = self._switch(stack, ("c", "far"))
                stack.enter_context(Cable(self.socket("side"), self.socket("far"), pairs))
            self.guest = stack.enter_context(self.qemu("a"))
            self.guest.ready()
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

    def be_busy(self) -> None:
        """The guest looks at its rings late, and writes to memory of its own all the time."""
        card = "/sys/class/net/eth0"
        self.guest.run(
            f"echo 100000 > {card}/napi_defer_hard_irqs;"
            f" echo {LATE_MS * 1_000_000} > {card}/gro_flush_timeout; guest dirty {DIRTY_KIB}"
        )

    def move(self, place: str) -> Moved:
        """Migrate the guest to the socket of this name, where it stands still.

        That every ring was marked is seen here: the memories can't tell, for QEMU sends the rings
        again at the end.
        """
        switch = self._switches[self.guest.card.socket.stem]
        told = len(switch.output)
        destination = self.destination(place)
        migration = Migration(self.guest, destination)
        migration.wait_for_rounds(ROUNDS)
        moved = migration.finish()
        rings = logged_rings(switch.output[told:])
        assert set(rings) == set(range(2 * self._pairs))
        for index, pages in rings.items():
            assert moved.marked >= set(pages), f"of vring {index}, pages {pages}, not all marked"
        self.guest.close()
        self.guest = destination
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
        self.switch.wait_for("^workers: ", told)
        line = r"^(p\d+): received (\d+) packets \(\d+ bytes\), sent (\d+)"
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


def logged_rings(output: str) -> dict[int, range]:
    """By index, the pages of each used ring that is to be logged, by what the switch was told."""
    told = r"SET_VRING_ADDR VringAddr\(index=(\d+), flags=1, .* log=(\d+)\)"
    return {
        int(index): range(int(log) // PAGE, (int(log) + USED_SIZE - 1) // PAGE + 1)
        for index, log in re.findall(told, output)
    }
