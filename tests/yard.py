"""Guests on a fabric, without sockets: what tests of the dataplane play with.

with Yard("patch", guests=2) as yard:
    yard.guests[0].send(b"…")
    yard.turn()
    assert yard.guests[1].received() == [b"…"]
"""

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from guest import AWKWARD, Guest

from vhostfast.core.fabric import Fabric, Port, Worker
from vhostfast.core.memory import GuestMemory
from vhostfast.core.ring import Ring
from vhostfast.driver.vring import Vring


@dataclass(frozen=True)
class Shape:
    """How a guest negotiated and how its rings begin."""

    size: int = 16
    base: int = 0
    event_idx: bool = False
    indirect: bool = True
    mergeable: bool = True
    header_size: int = 12
    sends: int = 0  # enum offload: what it has taken as a sender, and as a receiver
    takes: int = 0
    frame_size_max: int = 65589
    regions: tuple[tuple[int, int], ...] = AWKWARD


def mapped(guest: Guest) -> GuestMemory:
    """The guest's memory as a back-end maps it."""
    regions = zip(guest.memory.regions, guest.memory.fds, strict=True)
    return GuestMemory((r.gpa, r.size, r.uva, r.mmap_offset, fd) for r, fd in regions)


@dataclass
class YardGuest:
    """One guest: a receive and a transmit ring, attached to a port."""

    guest: Guest
    shape: Shape
    port: Port
    rx: Vring
    tx: Vring
    rings: list[Ring] = field(default_factory=list)
    buffers: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # by head

    def attach(self) -> None:
        memory = mapped(self.guest)
        for index, vring in enumerate((self.rx, self.tx)):
            ring, addr = Ring(index), vring.addresses()
            ring.start(
                memory,
                size=self.shape.size,
                desc=addr.desc,
                used=addr.used,
                avail=addr.avail,
                event_idx=self.shape.event_idx,
                indirect=self.shape.indirect,
                mergeable=self.shape.mergeable,
                header_size=self.shape.header_size,
                offloads=self.shape.sends if index else self.shape.takes,
                frame_size_max=self.shape.frame_size_max,
                call_fd=vring.call_fd,
                kick_fd=vring.kick_fd,
            )
            self.rings.append(ring)
            self.port.attach(ring)

    def send(
        self,
        frame: bytes,
        cuts: list[int] | None = None,
        indirect: bool = False,
        header: bytes | None = None,
    ) -> int:
        """Offer header and frame, cut into descriptors of these sizes and one for the rest."""
        data = (bytes(self.shape.header_size) if header is None else header) + frame
        chain = []
        for size in cuts or []:
            chain.append((self.guest.store(data[:size]), min(size, len(data)), False))
            data = data[size:]
        chain.append((self.guest.store(data), len(data), False))
        return self.tx.ring.add(chain, indirect=indirect)

    def post(self, *sizes: int, indirect: bool = False) -> int:
        """Offer a receive buffer of these pieces."""
        pieces = [(self.guest.blank(size), size) for size in sizes]
        head = self.rx.ring.add([(gpa, size, True) for gpa, size in pieces], indirect=indirect)
        self.buffers[head] = pieces
        return head

    def received(self) -> list[bytes]:
        """The frames that came, with nothing left to be done: their headers are plain."""
        packets = self.packets()
        assert not any(any(header) for header, _ in packets), "the header has more than num_buffers"
        return [frame for _, frame in packets]

    def packets(self) -> list[tuple[bytes, bytes]]:
        """The first ten bytes of their headers, and the frames that came, put together from their
        buffers, whose every byte is checked."""
        packets, used = [], self.rx.ring.take_all()
        while used:
            data, count, taken = b"", 1, 0
            while taken < count:
                head, length = used.pop(0)
                data += self._gather(head, length)
                taken += 1
                if self.shape.header_size == 12 and taken == 1:
                    count = int.from_bytes(data[10:12], "little")
                    assert count >= 1
            packets.append((data[:10], data[self.shape.header_size :]))
        return packets

    def _gather(self, head: int, length: int) -> bytes:
        pieces = self.buffers.pop(head)
        data = b"".join(self.guest.memory.read(gpa, size) for gpa, size in pieces)
        assert length <= len(data)
        assert data[length:] == b"\xa5" * (len(data) - length), "written past used.len"
        return data[:length]


class Yard:
    """`guests` of one `shape`, or of the `shapes` given, on a fabric with one worker."""

    def __init__(
        self,
        forward: str,
        guests: int = 2,
        shapes: tuple[Shape, ...] = (),
        level: str | None = None,
    ) -> None:
        self._stack = ExitStack()
        self.fabric = Fabric(forward)
        self.worker = Worker(self.fabric, "poll", level)
        self.guests = [
            self._guest(number, shape) for number, shape in enumerate(shapes or [Shape()] * guests)
        ]
        self.fabric.lay_out()

    def _guest(self, number: int, shape: Shape) -> YardGuest:
        guest = self._stack.enter_context(Guest(shape.regions))
        rx, tx = (
            guest.vring(
                shape.size,
                index=index,
                event_idx=shape.event_idx,
                indirect=shape.indirect,
                base=shape.base,
            )
            for index in (0, 1)
        )
        result = YardGuest(guest, shape, self.fabric.add_port(f"port{number}"), rx, tx)
        result.attach()
        return result

    def turn(self) -> int:
        return self.worker.turn()

    def close(self) -> None:
        for guest in self.guests:
            for ring in guest.rings:
                guest.port.detach(ring)
        self.fabric.lay_out()
        self.fabric.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
