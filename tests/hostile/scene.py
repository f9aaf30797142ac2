"""One guest that breaks rules, or only looks like it, among others: what its ring does to whom.

A case is a chain of descriptors, written raw into one of the guest's rings. Whatever comes of it,
every byte of every guest's memory is compared afterwards: only what used elements count has
changed, with the log on only where it is marked, and of a chain that was refused nothing at all.
"""

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from struct import pack

import numpy as np
from yard import Shape, Yard, YardGuest

from vhostfast.core.memory import Log
from vhostfast.driver.vring import Vring

NEXT, WRITE, INDIRECT = 1, 2, 4
RING, FIRST, LIMIT = 16, "first", "limit"  # entries; where `next` may lead
PAGE, LOG_BYTES = 4096, 4096
# Rings; a hole; two that touch, cut within a page, where the buffers are; then nothing.
BEGIN, HOLE, BUFFERS, CUT, END = 0x1000, 0x3000, 0x8000, 0x9805, 0xC000
REGIONS = ((BEGIN, HOLE - BEGIN), (BUFFERS, CUT - BUFFERS), (CUT, END - CUT))
HEADER = 12
MACS = [bytes([2, 0, 0, 0, 0, number]) for number in range(4)]
HOSTILE, PARTNER, OTHERS = 0, 1, (2, 3)  # of the guests; patch joins the first two, and the others


def frame(to: int, sender: int, size: int = 60) -> bytes:
    """Every byte of it can be told from the canaries, which have the highest bit set."""
    head = MACS[to] + MACS[sender] + b"\x08\x00"
    return (head + bytes((17 * i + 3) % 128 for i in range(size)))[:size]


@cache
def canaries(gpa: int, size: int, number: int) -> np.ndarray:
    """Bytes that differ from place to place and from guest to guest, the highest bit set."""
    return (np.arange(gpa, gpa + size) * 7 + number * 31) % 128 + 128


@dataclass(frozen=True)
class Desc:
    """A descriptor: `flip` is what of its flags is not as it should be; `next`, if not None, is
    where it goes on to, else to the one after it."""

    addr: int
    len: int
    flip: int = 0
    next: int | str | None = None


def cut(gpa: int, *sizes: int, whole: int = HEADER + 60) -> list[Desc]:
    """`whole` bytes at `gpa` in descriptors of these sizes, and one for the rest."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    ends.append(whole)
    return [Desc(gpa + a, b - a) for a, b in pairwise(ends)]


@dataclass(frozen=True)
class Setting:
    """What a case is played in: `forward` "device" is a device in Python at the ring."""

    forward: str
    pieces: bool = False  # the other side's chains are of three pieces: the general path throughout
    log: bool = False
    mergeable: bool = True
    indirect: bool = True


@dataclass
class Watched:
    """A guest whose memory is full of canaries."""

    one: YardGuest
    number: int
    regions: tuple[tuple[int, int], ...]
    log: mmap.mmap | None = None
    before: dict[int, np.ndarray] = field(default_factory=dict)
    raw: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # of the receive ring

    def __post_init__(self) -> None:
        for gpa, size in self.regions:
            self.one.guest.memory.view(gpa, size)[:] = canaries(gpa, size, self.number)
        for vring in self.vrings:
            vring.ring.reset(self.one.shape.base)

    @property
    def vrings(self) -> tuple[Vring, Vring]:
        return self.one.rx, self.one.tx

    def look(self) -> None:
        view = self.one.guest.memory.view
        self.before = {gpa: view(gpa, size).copy() for gpa, size in self.regions}
        self.used = [ring.base for ring in self.one.rings]

    def changed(self) -> set[int]:
        """GPAs of the bytes that differ from when we looked."""
        found: set[int] = set()
        for gpa, old in self.before.items():
            new = self.one.guest.memory.view(gpa, len(old))
            found |= set((np.flatnonzero(new != old) + gpa).tolist())
        return found

    def elements(self, ring: int) -> list[tuple[int, int]]:
        """What was used since we looked, by our own count: used.idx may have been poisoned."""
        used = self.vrings[ring].ring.used
        count = (self.one.rings[ring].base - self.used[ring]) & 0xFFFF
        assert count == 0 or int(used["idx"]) == self.one.rings[ring].base
        indices = [(self.used[ring] + i) % RING for i in range(count)]
        return [(int(used["ring"][i]["id"]), int(used["ring"][i]["len"])) for i in indices]

    def may_change(self) -> set[int]:
        """What used elements count, the elements themselves, and used.idx."""
        found: set[int] = set()
        for ring, vring in enumerate(self.vrings):
            for i, (head, left) in enumerate(self.elements(ring)):
                at = vring.used_gpa + 4 + 8 * ((self.used[ring] + i) % RING)
                found |= set(range(at, at + 8)) | {vring.used_gpa + 2, vring.used_gpa + 3}
                for gpa, size in self.raw.get(head, self.one.buffers.get(head, [])):
                    found |= set(range(gpa, gpa + min(size, left)))
                    left -= min(size, left)
                assert left == 0, "used.len is more than the buffer"
        return found

    def check(self) -> None:
        changed = self.changed()
        assert changed <= self.may_change(), "bytes that nobody may write to"
        if self.log is not None:
            bits = np.unpackbits(np.frombuffer(self.log[:], np.uint8), bitorder="little")
            assert {gpa // PAGE for gpa in changed} <= set(np.flatnonzero(bits).tolist())
            assert changed or not bits.any()


class Scene:
    """Four guests, the first of them hostile; `writes`: by its receive ring."""

    def __init__(
        self,
        setting: Setting,
        writes: bool,
        watch: tuple[tuple[int, int], ...] = REGIONS,
        **shape: object,
    ) -> None:
        self.setting, self.writes = setting, writes
        kind = {"size": RING, "mergeable": setting.mergeable, "indirect": setting.indirect}
        kind |= {"regions": REGIONS, "base": 65530, **shape}
        forward = "drop" if setting.forward == "device" else setting.forward
        self.yard = Yard(forward, shapes=(Shape(**kind),) * 4)
        self.guests = [Watched(one, number, watch) for number, one in enumerate(self.yard.guests)]
        self.hostile = self.guests[HOSTILE]
        self.vring = self.hostile.vrings[0 if writes else 1]
        self.ring = self.hostile.one.rings[0 if writes else 1]
        for guest, mac in zip(self.yard.guests, MACS, strict=True):
            guest.guest.memory.position = BUFFERS
            self.yard.fabric.learn(mac, guest.port)
        if setting.log:
            for guest in self.guests:
                self._log(guest)
        self.offered = 0

    def _log(self, guest: Watched) -> None:
        fd = os.memfd_create("log")
        os.ftruncate(fd, LOG_BYTES)
        log, guest.log = Log(fd, LOG_BYTES, 0), mmap.mmap(fd, LOG_BYTES)
        os.close(fd)
        for ring, vring in zip(guest.one.rings, guest.vrings, strict=True):
            ring.set_log(log, vring.used_gpa)
        self.yard.fabric.lay_out()

    @property
    def receiver(self) -> int:
        """Who gets what the hostile guest sends, or, where that receives, the frame for it."""
        if self.writes or self.setting.forward == "loopback":
            return HOSTILE
        return PARTNER

    @property
    def sender(self) -> int:
        return PARTNER if self.writes and self.setting.forward != "loopback" else HOSTILE

    # --- What the hostile guest does ---

    def packet(self, at: int | None = None, size: int = 60, header: bytes = bytes(HEADER)) -> int:
        """The GPA of a packet to be sent, or of room for one."""
        guest = self.hostile.one.guest
        data = header + frame(self.receiver, HOSTILE, size)
        gpa = guest.memory.take(len(data)) if at is None else at
        if not self.writes:
            guest.memory.write(gpa, data)
        return gpa

    def write(self, gpa: int, desc: Desc, flags: int, after: int) -> None:
        self.hostile.one.guest.memory.write(
            gpa, pack("<QIHH", desc.addr, desc.len, flags ^ desc.flip, after)
        )

    def chain(self, descs: list[Desc], places: list[int], table: int, limit: int) -> None:
        """The descriptors, each at its place of the table at a GPA."""
        for i, desc in enumerate(descs):
            more = i + 1 < len(descs) or isinstance(desc.next, str)
            after = places[i + 1] if i + 1 < len(descs) else 0
            if desc.next is not None:
                after = {FIRST: places[0], LIMIT: limit}.get(desc.next, desc.next)
            flags = NEXT * more | WRITE * self.writes
            self.write(table + 16 * places[i], desc, flags, after)

    def offer(
        self,
        descs: list[Desc],
        in_table: bool = False,
        table_at: int | None = None,
        table_more: int = 0,
        head: int = 5,
    ) -> int:
        """Offer a chain, in descriptors of the ring that are not in order, or in a table that says
        to have so many more; its head."""
        places = [(head + 3 * i) % RING for i in range(RING)]
        if in_table:
            gpa = table_at or self.hostile.one.guest.memory.take(16 * len(descs))
            self.chain(descs, list(range(len(descs))), gpa, len(descs))
            table = Desc(gpa, 16 * (len(descs) + table_more), WRITE * self.writes | INDIRECT)
            self.chain([table], places, self.vring.desc_gpa, RING)
        else:
            self.chain(descs, places, self.vring.desc_gpa, RING)
        if self.writes:
            self.hostile.raw[head] = [(desc.addr, desc.len) for desc in descs]
        self.offer_head(head)
        return head

    def room(self, head: int, pieces: list[int]) -> None:
        """Offer a receive buffer of these pieces, in a descriptor of the ring or in a table."""
        memory = self.hostile.one.guest.memory
        descs = [Desc(memory.take(max(size, 1)), size) for size in pieces]
        self.offer(descs, len(pieces) > 1, head=head)

    def offer_head(self, head: int) -> None:
        avail, base = self.vring.ring.avail, self.hostile.one.shape.base
        avail["ring"][(base + self.offered) % RING] = head
        self.offered += 1
        avail["idx"] = base + self.offered & 0xFFFF

    # --- What the others do ---

    def post(self, guest: YardGuest, size: int = 200) -> None:
        pieces = (HEADER + 1, 20, size - HEADER - 21) if self.setting.pieces else (size,)
        guest.post(*pieces)

    def send(self, guest: YardGuest, data: bytes) -> int:
        return guest.send(data, [HEADER + 1, 20] if self.setting.pieces else None)

    def look(self) -> None:
        for guest in self.guests:
            guest.look()

    def play(self, size: int = 60, count: int = 1, room: int = 2) -> list[bytes]:
        """Let it happen, and compare all memory; the frames that came to their receiver, whose
        headers are plain. `count` are sent to a hostile receiver, of that size; an honest one has
        `room` buffers for it."""
        if self.setting.forward == "device":
            return self._play_device(size)
        receiver = self.yard.guests[self.receiver]
        if self.writes:
            self.sent = [
                self.send(self.yard.guests[self.sender], frame(HOSTILE, self.sender, size))
                for _ in range(count)
            ]
        else:
            for _ in range(room):
                self.post(receiver, 200 if size <= 180 else size + HEADER)
        self.look()
        self.play_on()
        return [] if self.writes else receiver.received()

    def _play_device(self, size: int) -> list[bytes]:
        self.look()
        got = []
        if self.writes:
            self.count = self.ring.send([np.frombuffer(frame(HOSTILE, PARTNER, size), np.uint8)])
        else:
            got = [packet.tobytes() for packet in self.ring.receive()]
        self.compare()
        return got

    def play_on(self) -> None:
        """Until nothing moves; and compare all memory."""
        while self.yard.turn():
            pass
        self.compare()

    def compare(self) -> None:
        for guest in self.guests:
            guest.check()

    def others_go_on(self) -> None:
        """The other two exchange a frame, whatever there was."""
        one, two = (self.yard.guests[number] for number in OTHERS)
        if self.setting.forward == "device":
            one.send(frame(3, 2))
            assert [p.tobytes() for p in one.rings[1].receive()] == [frame(3, 2)]
            return
        receiver = one if self.setting.forward == "loopback" else two
        self.post(receiver)
        self.send(one, frame(3, 2))
        while self.yard.turn():
            pass
        assert receiver.received() == [frame(3, 2)]

    @property
    def fault(self) -> str | None:
        if self.setting.forward == "device":
            return self.ring.fault
        return self.yard.guests[HOSTILE].port.fault

    @property
    def malformed(self) -> int:
        """What the hostile guest sent that was no packet."""
        if self.setting.forward == "device":
            return self.ring.malformed
        return self.hostile.one.port.counters()["rx_dropped_malformed"]

    @property
    def too_big(self) -> int:
        """What the hostile guest's buffers could not hold."""
        if self.setting.forward == "device":
            return self.ring.too_big
        return self.hostile.one.port.counters()["tx_dropped_too_big"]

    def used(self) -> list[tuple[int, int]]:
        """What the hostile ring has used."""
        return self.hostile.elements(0 if self.writes else 1)

    def content(self, head: int, size: int) -> bytes:
        """What stands in a receive buffer."""
        read = self.hostile.one.guest.memory.read
        return b"".join(read(gpa, n) for gpa, n in self.hostile.raw[head])[:size]

    def close(self) -> None:
        for guest in self.guests:
            if guest.log is not None:
                guest.log.close()
            for ring in guest.one.rings:
                ring.set_log(None, None)
        self.yard.close()

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


Chain = Callable[[int], list[Desc]]
