"""Verified traffic between guests, at C speed: who sends what to whom, and what became of it.

Each frame carries its flow, its sequence and a pattern that fills it, so the receiver can tell
each byte of it (csrc/driver/frame.h draws it). A flow is what one queue pair of one station sends.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vhostfast.core.driver import DriverRing
from vhostfast.core.traffic import FLOWS_MAX, FRAME_MIN, Flows, Loop, Receiver, Sender
from vhostfast.driver.frontend import Frontend
from vhostfast.driver.vring import Vring
from vhostfast.errors import UsageError
from vhostfast.protocol.features import VirtioFeature

# An odd number of cache lines, so that the buffers' first lines spread over all sets of a cache.
STRIDE = 2112
KINDS = ("full", "touch", "lean")
LAYOUTS = ("direct", "chained", "indirect")
IDLES = ("spin", "yield", "wait")


@dataclass(frozen=True, slots=True)
class Load:
    """What the guests do for each packet.

    `kind`: "full" writes, describes and posts a buffer for each, and checks all that comes;
    "touch" has prepared them, but reads and writes the ring entries and one line of the payload;
    "lean" moves the indices alone, and needs a back-end that gives back in order.
    `sizes`: bytes of the frames, 40 and up, at most 16 of them, in turn. `layout`: header and frame
    in one descriptor ("direct"), in one each ("chained"), or so in an indirect table. `stride`:
    bytes of a buffer, and, with `gap` more, from each to the next; a receive buffer smaller than a
    packet is used where MRG_RXBUF is agreed. Of every `verify_every`-th packet (a power of two)
    each byte is checked; 1 checks all, but lean at most one a ring. Raises UsageError.
    """

    kind: str = "full"
    sizes: tuple[int, ...] = (64,)
    layout: str = "direct"
    stride: int = STRIDE
    verify_every: int = 1
    gap: int = 0

    def __post_init__(self) -> None:
        for name, allowed in (("kind", KINDS), ("layout", LAYOUTS)):
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"{name}={value}: give one of {', '.join(allowed)}")
        if min(self.sizes, default=0) < FRAME_MIN:
            raise UsageError(f"sizes={self.sizes}: give frames of {FRAME_MIN} bytes and up")

    @property
    def frame_size(self) -> int:
        """Bytes of all frames, or 0 if they differ."""
        return self.sizes[0] if len(set(self.sizes)) == 1 else 0


@dataclass(frozen=True, slots=True)
class Counters:
    """Packets unless the name says bytes; of frames, without the virtio header.

    `sent` counts what was offered, `done` what the back-end gave back of it. `received` counts good
    frames, repeated ones too; `missing`, `reordered` and `repeated` are told from the sequences of
    the flows (lean: always 0). `foreign` frames are somebody else's. Of `verified` ones each byte
    was checked.
    """

    sent: int = 0
    done: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    corrupt: int = 0
    foreign: int = 0
    foreign_bytes: int = 0
    verified: int = 0
    missing: int = 0
    reordered: int = 0
    repeated: int = 0

    def __add__(self, other: Self) -> "Counters":
        names = [field.name for field in fields(self)]
        return Counters(*(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def arrived(self) -> int:
        """Frames of anybody's."""
        return self.received + self.foreign

    def lost(self, sent: int | None = None) -> int:
        """Packets that never came, of `sent` by the peers if known, else by gaps alone."""
        if sent is None:
            return max(0, self.missing - self.corrupt)
        return sent - (self.received - self.repeated) - self.corrupt


@dataclass(slots=True)
class Station:
    """A guest on the wire: pair k of `frontend` sends flow `flow` + k from `mac` to `peer`.

    `packets` ends each pair's sending. All flows to a guest have different numbers, under 64.
    """

    frontend: Frontend
    mac: bytes
    peer: bytes
    flow: int
    sends: bool = True
    receives: bool = True
    packets: int | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """The buffers of `vring` in its guest's memory: `stride` bytes each from GPA `gpa` on."""

    vring: Vring
    gpa: int
    stride: int

    @property
    def size(self) -> int:
        """Bytes of all: as many buffers as the ring has entries."""
        return self.stride * self.vring.size


def mac(number: int) -> bytes:
    """A locally administered MAC address."""
    return bytes([2, 0, 0, 0]) + number.to_bytes(2, "big")


def pair(first: Frontend, second: Frontend, **options: object) -> list[Station]:
    """Two stations that send to each other; `options` as Station's."""
    stations = [
        Station(first, mac(1), mac(2), flow=0),
        Station(second, mac(2), mac(1), flow=first.queue_pairs),
    ]
    for station in stations:
        for name, value in options.items():
            setattr(station, name, value)
    return stations


class Traffic:
    """Traffic of `stations`, whose rings have just been started (`Frontend.start`), by one thread.

    `idle` is what the thread does when nothing moves: "spin" keeps its CPU; "yield" offers it to
    others, for machines where a worker or another driver needs it; "wait" sleeps until the
    back-end calls. Receive buffers are on offer when this is made. Raises UsageError for sizes
    that fit no buffer.
    """

    def __init__(self, stations: Sequence[Station], load: Load, *, idle: str = "yield") -> None:
        if idle not in IDLES:
            raise UsageError(f"idle={idle}: give one of {', '.join(IDLES)}")
        self.stations = list(stations)
        self.load = load
        self.pools: list[Pool] = []
        self._lanes: list[list[tuple[Sender | None, Receiver | None]]] = []
        self._flows = [Flows() for _ in self.stations]
        for station, flows in zip(self.stations, self._flows, strict=True):
            pairs = range(station.frontend.enabled_pairs)
            self._lanes.append([self._lane(station, number, flows) for number in pairs])
        lanes = [lane for lanes in self._lanes for lane in lanes]
        self._loop = Loop(lanes, load=load.kind, idle=idle)

    def _lane(
        self, station: Station, number: int, flows: Flows
    ) -> tuple[Sender | None, Receiver | None]:
        frontend, load = station.frontend, self.load
        mergeable = VirtioFeature.MRG_RXBUF in frontend.features
        sender = receiver = None
        try:
            if station.receives:
                stride = load.stride + load.gap
                receiver = Receiver(
                    *self._buffers(frontend.receive_ring(number), stride),
                    flows,
                    stride=stride,
                    gap=load.gap,
                    header_size=frontend.header_size,
                    layout=load.layout,
                    mergeable=mergeable,
                    verify_every=load.verify_every,
                    frame_size=load.frame_size,
                )
            if station.sends:
                stride = max(load.stride, _stride(max(load.sizes))) + load.gap
                sender = Sender(
                    *self._buffers(frontend.transmit_ring(number), stride),
                    stride=stride,
                    gap=load.gap,
                    header_size=frontend.header_size,
                    layout=load.layout,
                    destination=station.peer,
                    source=station.mac,
                    flow=station.flow + number,
                    sizes=load.sizes,
                    limit=station.packets,
                )
        except ValueError as error:
            raise UsageError(str(error)) from error
        return sender, receiver

    def _buffers(self, vring: Vring, stride: int) -> tuple[DriverRing, NDArray[np.uint8], int]:
        pool = Pool(vring, vring.memory.take(stride * vring.size), stride)
        self.pools.append(pool)
        return vring.ring, vring.memory.view(pool.gpa, pool.size), pool.gpa

    def run(
        self,
        seconds: float | None = None,
        *,
        linger_s: float = 0.2,
        expected: int | None = None,
    ) -> None:
        """Send for `seconds`, or until each station's `packets` are sent, then receive until
        nothing has moved for `linger_s`; or, where it is known how many packets all stations will
        have received, until these `expected` are there.

        Without the GIL: other threads can look at `counters` and call `stop`. Raises ProtocolError
        if the back-end breaks the rules of a ring.
        """
        self._loop.run(seconds, linger_s=linger_s, expected=expected)

    def stop_sending(self) -> None:
        """Send no more; `run` goes on until nothing has moved for its `linger_s`."""
        self._loop.stop_sending()

    def stop(self) -> None:
        """Leave `run` at once. For good: another run needs another Traffic."""
        self._loop.stop()

    def finish(self) -> None:
        """After `Frontend.stop`: take what came last; a lean load checks every buffer now."""
        self._loop.finish()

    def counters(self, station: int | None = None) -> Counters:
        """Of one station, or of all; at any time."""
        which = range(len(self.stations)) if station is None else [station]
        return sum((self._counters(number) for number in which), Counters())

    def _counters(self, number: int) -> Counters:
        total = Counters()
        for sender, receiver in self._lanes[number]:
            if sender:
                total += Counters(*sender.counters())
            if receiver:
                total += Counters(0, 0, 0, *receiver.counters())
        for flow in range(FLOWS_MAX):
            _, missing, reordered, repeated = self._flows[number][flow]
            total += Counters(missing=missing, reordered=reordered, repeated=repeated)
        return total

    def flow(self, station: int, number: int) -> tuple[int, int, int, int]:
        """(received, missing, reordered, repeated) packets of flow `number` at a station; of a lean
        load nothing is known."""
        return self._flows[station][number]

    def heard(self, station: int) -> set[int]:
        """The flows of which a station has received anything; lean loads don't look."""
        flows = self._flows[station]
        return {number for number in range(FLOWS_MAX) if flows[number][0]}

    def cycles(self) -> tuple[int, int]:
        """TSC cycles of turns in which something moved, and of others; at any time. By their shares
        one sees who is measured, the back-end or the driver."""
        return self._loop.cycles()


def _stride(frame_size: int) -> int:
    """Room for a frame and its header, in an odd number of cache lines."""
    lines = (frame_size + 64 + 63) // 64
    return 64 * (lines | 1)
