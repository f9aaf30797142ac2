"""An ordinary host on the guest's network, played by our own front-end; and a cable.

A thread of its own turns each, a tick a millisecond.
"""

from __future__ import annotations

import struct
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import pattern
from host import Vm

TICK_S = 0.001
PING_S = 0.01
BURST = 16  # frames sent at once, at least, so that the switch has a group of them in its hands
CATCH_UP_S = 0.1  # what was not sent in a longer pause is not made up for
RING_SIZE = 256
MEMORY = ((0, 8 << 20),)
RARP_TYPE, IP_TYPE, ICMP = b"\x80\x35", b"\x08\x00", 1


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def plug(socket: Path, pairs: int) -> Vm:
    return Vm(str(socket), ring_size=RING_SIZE, regions=MEMORY, queue_pairs=pairs)


class Turned(ABC):
    """Cards that a thread turns from `with` on. What goes wrong there is raised by who waits."""

    def __init__(self, *cards: Vm) -> None:
        self._cards = cards
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    @abstractmethod
    def turn(self) -> None:
        """Do what there is to do now."""

    def _run(self) -> None:
        try:
            while not self._stop.wait(TICK_S):
                self.turn()
        except Exception as error:  # raised in the thread of the test
            self._failure = error

    def wait_until(self, holds: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            if self._failure:
                raise self._failure
            assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
            time.sleep(TICK_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        for card in self._cards:
            card.close()
        if self._failure and error is None:
            raise self._failure


class Cable(Turned):
    """Joins two switches: what comes out of a port of one goes into a port of the other."""

    def __init__(self, first: Path, second: Path, pairs: int = 1) -> None:
        self._pairs = pairs
        super().__init__(plug(first, pairs), plug(second, pairs))

    def turn(self) -> None:
        first, second = self._cards
        for source, target in ((first, second), (second, first)):
            for pair in range(self._pairs):
                target.send(source.received(pair), pair)


class Peer(Turned):
    """The host with the addresses `mac` and `address`, whose peer is the guest with `guest`.

    It sends `rate` frames a second by each queue pair, and checks every byte of what comes back.
    While `pinging` is an address it pings that one, every ten milliseconds.
    """

    mac, address = "02:00:00:00:00:09", "10.0.0.9"

    def __init__(self, socket: Path, guest: str, *, rate: int, pairs: int = 1) -> None:
        self.rate = rate
        self.pinging: str | None = None
        self.pings = 0
        self.replies: list[tuple[float, int]] = []  # (when, to which ping)
        self.rarps: list[bytes] = []
        self._mac, self._guest = mac_bytes(self.mac), mac_bytes(guest)
        self._flows = [pattern.Flow() for _ in range(pairs)]
        self._since = self._pinged = time.monotonic()
        self._card = plug(socket, pairs)
        super().__init__(self._card)

    def totals(self, flow: int) -> pattern.Totals:
        return self._flows[flow].totals()

    def wait_for_frames(self, count: int) -> None:
        """Until so many more have come of each flow."""
        goals = [(flow, flow.totals().received + count) for flow in self._flows]
        self.wait_until(
            lambda: all(flow.totals().received >= goal for flow, goal in goals),
            f"{count} frames of each flow",
        )

    def longest_silence_ms(self, first: int = 0, last: int | None = None) -> int:
        """The longest time without an answer to our pings, from one answer to another."""
        times = [when for when, _ in self.replies[first:last]]
        return round(1000 * max(after - before for before, after in pairwise(times)))

    # --- The thread -------------------------------------------------------------------------------

    def turn(self) -> None:
        for pair, flow in enumerate(self._flows):
            for data in self._card.received(pair):
                self._take(data, pair, flow)
        now = time.monotonic()
        self._since = max(self._since, now - CATCH_UP_S)
        due = int((now - self._since) * self.rate)
        if due >= BURST:
            for pair, flow in enumerate(self._flows):
                self._send(due, pair, flow)
            self._since += due / self.rate
        if self.pinging and now - self._pinged >= PING_S:
            self._pinged = now
            self._ping(self.pinging)

    def _send(self, count: int, pair: int, flow: pattern.Flow) -> None:
        numbers = range(flow.sent, flow.sent + count)
        self._card.send([pattern.frame(self._guest, self._mac, pair, n) for n in numbers], pair)
        flow.sent += count

    def _take(self, data: bytes, pair: int, flow: pattern.Flow) -> None:
        kind = data[12:14]
        if kind == pattern.TYPE:
            sequence = pattern.sequence_of(data)
            if data == pattern.frame(self._mac, self._guest, pair, sequence):
                flow.note(sequence)
            else:
                flow.corrupt += 1
        elif kind == RARP_TYPE:
            self.rarps.append(data)
        elif kind == IP_TYPE and data[23] == ICMP and data[34] == 0:
            self.replies.append((time.monotonic(), int.from_bytes(data[40:42], "big")))

    def _ping(self, address: str) -> None:
        def packed(text: str) -> bytes:
            return bytes(int(part) for part in text.split("."))

        ip = struct.pack(">BBHHHBBH", 0x45, 0, 28, 0, 0, 64, ICMP, 0)
        ip = _summed(ip + packed(self.address) + packed(address), 10)
        icmp = _summed(struct.pack(">BBHHH", 8, 0, 0, 1, self.pings & 0xFFFF), 2)
        self._card.send([self._guest + self._mac + IP_TYPE + ip + icmp])
        self.pings += 1


def _summed(data: bytes, at: int) -> bytes:
    """With its Internet checksum, RFC 1071, which stands at `at`."""
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:at] + struct.pack(">H", ~total & 0xFFFF) + data[at + 2 :]
