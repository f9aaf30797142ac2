"""Random traffic against the log, by content and by what the used elements say.

After each step: the pages whose bytes changed are marked, and what is marked may have been written:
it holds bytes that a used element counts, or a field of the used ring. Receive buffers are filled
with a byte that no frame has, so that every store shows.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from guest import AWKWARD
from yard import Shape, Yard, YardGuest, mapped

from vhostfast.core.fabric import levels
from vhostfast.core.memory import Log
from vhostfast.core.ring import Ring

PAGE = 4096
LOG_BYTES = 0x1040000 // PAGE // 8  # AWKWARD's last page and a few more
BROADCAST, FILL = b"\xff" * 6, 0xA5
FIELDS = {"flags": 0, "idx": 2}


def pages(gpa: int, size: int) -> set[int]:
    return set(range(gpa // PAGE, (gpa + size - 1) // PAGE + 1)) if size else set()


@contextmanager
def log_file(size: int = LOG_BYTES, offset: int = 0) -> Iterator[tuple[Log, mmap.mmap]]:
    """A log, as a back-end maps it and as its front-end does."""
    fd = os.memfd_create("log")
    try:
        os.ftruncate(fd, offset + size)
        log, bits = Log(fd, size, offset), mmap.mmap(fd, offset + size)
    finally:
        os.close(fd)
    with bits:
        yield log, bits


def take(bits: mmap.mmap) -> set[int]:
    """The pages that are marked; none is afterwards."""
    marked = np.flatnonzero(np.unpackbits(np.frombuffer(bits[:], np.uint8), bitorder="little"))
    bits[:] = bytes(len(bits))
    return set(marked.tolist())


@dataclass
class Watched:
    """A guest whose rings mark in `log`; `marks_used`: their used rings too."""

    one: YardGuest
    log: Log
    bits: mmap.mmap
    marks_used: bool
    buffers: dict[int, list[tuple[int, int]]] = field(default_factory=dict)  # received, by head
    before: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for ring, vring in zip(self.one.rings, self.vrings, strict=True):
            ring.set_log(self.log, vring.used_gpa if self.marks_used else None)

    @property
    def vrings(self) -> tuple:
        return self.one.rx, self.one.tx

    def post(self, dice: Random, need: int) -> None:
        """A buffer of `need` bytes, in pieces that often end at, or around, a page's edge."""
        memory, pieces, sum_ = self.one.guest.memory, [], 0
        while sum_ < need:
            size = min(need - sum_, dice.choice([1, 11, 12, 200, 1500, 5000]) if len(pieces) < 4
                       else need)  # fmt: skip
            edge = -(-memory.position // PAGE + 1) * PAGE
            start = dice.choice([edge, edge - size % PAGE]) + dice.randint(-1, 1)
            memory.position = max(memory.position, start)
            pieces.append((self.one.guest.blank(size, fill=FILL), size))
            sum_ += size
        table = len(pieces) > 1 and dice.random() < 0.5
        head = self.one.rx.ring.add([(g, n, True) for g, n in pieces], indirect=table)
        self.buffers[head] = pieces

    def snapshot(self) -> None:
        assert take(self.bits) == set()
        memory = self.one.guest.memory
        self.before = {r.gpa: memory.read(r.gpa, r.size) for r in memory.regions}
        self.idx = [int(vring.ring.used["idx"]) for vring in self.vrings]

    def changed(self) -> set[int]:
        found: set[int] = set()
        for gpa, old in self.before.items():
            new = self.one.guest.memory.view(gpa, len(old))
            differ = np.flatnonzero(new != np.frombuffer(old, np.uint8))
            found |= set(((differ + gpa) // PAGE).tolist())
        return found

    def data_pages(self) -> set[int]:
        """Where the used elements since the snapshot say that something was written."""
        found: set[int] = set()
        used = self.one.rx.ring.used
        for index in range(self.idx[0], self.idx[0] + self._count(0)):
            head, left = map(int, used["ring"][index % self.one.shape.size])
            for gpa, size in self.buffers.pop(head):
                found |= pages(gpa, min(size, left))
                left -= min(size, left)
            assert left == 0
        return found

    def used_pages(self) -> set[int]:
        """The used rings' elements since the snapshot, and their used.idx where there are any."""
        found: set[int] = set()
        for ring, vring in enumerate(self.vrings):
            for index in range(self.idx[ring], self.idx[ring] + self._count(ring)):
                found |= pages(vring.used_gpa + 4 + 8 * (index % vring.size), 8)
                found |= pages(vring.used_gpa + 2, 2)
        return found

    def _count(self, ring: int) -> int:
        return (int(self.vrings[ring].ring.used["idx"]) - self.idx[ring]) & 0xFFFF

    def check(self) -> set[int]:
        """What the last step marked is what it wrote."""
        used_rings = set().union(*(pages(v.used_gpa, 6 + 8 * v.size) for v in self.vrings))
        marked, changed, data = take(self.bits), self.changed(), self.data_pages()
        if not self.marks_used:
            assert not marked & used_rings - data
            changed -= used_rings
        assert changed <= marked
        assert marked == data | (self.used_pages() if self.marks_used else set())
        assert self.log.beyond == 0
        for vring in self.vrings:
            vring.ring.take_all()
        return marked


def frame(dice: Random, size: int) -> bytes:
    target = dice.choice([BROADCAST, b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"])
    sender = dice.choice([b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"])
    return (target + sender + b"\x88\xb5" + bytes(dice.choices(range(128), k=size)))[:size]


WIDE = AWKWARD[-1:]  # where a ring of more than a page has room
SHAPES = (
    Shape(base=65530, event_idx=True),
    Shape(mergeable=False, header_size=10),
    Shape(mergeable=False, event_idx=True, size=64),
)


def turn(yard: Yard, _: Random) -> None:
    while yard.turn():
        pass


def announce(yard: Yard, dice: Random) -> None:
    yard.fabric.inject(yard.guests[dice.randrange(2)].port, frame(dice, 60))


def device(yard: Yard, dice: Random) -> None:
    """What a device in Python does."""
    for guest in yard.guests:
        guest.rings[1].receive()
        packets = [np.frombuffer(frame(dice, 60 + 2000 * i), np.uint8) for i in range(2)]
        assert guest.rings[0].send(packets)


@pytest.mark.parametrize("marks_used", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=["mergeable", "legacy", "large"])
@pytest.mark.parametrize("forward", ["patch", "learn", "loopback"])
def test_what_is_marked_is_what_was_written(forward, shape, marks_used):
    dice = Random(f"{forward} {shape} {marks_used}")
    level = dice.choice(levels())
    with log_file() as a, log_file() as b, Yard(forward, shapes=(shape,) * 2, level=level) as yard:
        sides = [
            Watched(guest, *log, marks_used)
            for guest, log in zip(yard.guests, (a, b), strict=True)
        ]  # fmt: skip
        found = 0
        for _ in range(40):
            for side in sides:
                while side.one.rx.ring.free_count >= 6 and len(side.buffers) < 6:
                    side.post(dice, 4200 if not shape.mergeable else dice.choice([300, 4200]))
                if side.one.tx.ring.free_count >= 4:
                    size, cuts = dice.choice([14, 60, 1500, 4100]), dice.choice([None, [5]])
                    side.one.send(frame(dice, size), cuts)
                side.snapshot()
            dice.choice([turn, turn, announce, device])(yard, dice)
            found += sum(len(side.check()) for side in sides)
        assert found > 60


def test_a_start_marks_what_it_stores():
    """used.flags, avail_event: what is stored before anything is sent."""
    for event_idx in (False, True):
        shape = Shape(size=512, event_idx=event_idx, regions=WIDE)
        with log_file() as (log, bits), Yard("drop", shapes=(shape,)) as yard:
            (guest,) = yard.guests
            addr, used = guest.rx.addresses(), guest.rx.used_gpa
            for used_log in (None, used, 0x5001):
                ring = Ring(0)
                ring.start(mapped(guest.guest), size=512, desc=addr.desc, used=addr.used,
                           avail=addr.avail, event_idx=event_idx, log=log,
                           used_log=used_log)  # fmt: skip
                expected = set()
                if used_log is not None:
                    expected = pages(used_log, 2)
                    expected |= pages(used_log + 4 + 8 * 512, 2) if event_idx else set()
                assert take(bits) == expected
                assert ring.used_log == used_log
                ring.stop()
                assert ring.log is None


@pytest.mark.parametrize("event_idx", [False, True])
def test_asking_for_kicks_is_marked(event_idx):
    shape = Shape(size=512, event_idx=event_idx, regions=WIDE)
    with log_file() as log, Yard("drop", shapes=(shape,)) as yard:
        (guest,) = yard.guests
        side = Watched(guest, *log, True)
        (ring, _), used = guest.rings, guest.rx.used_gpa
        page = pages(used + (4 + 8 * 512 if event_idx else 0), 2)
        for wanted, stored in ((True, True), (True, event_idx), (False, not event_idx)):
            ring.want_kicks(wanted)
            assert take(side.bits) == (page if stored else set())


def test_a_log_that_was_taken_away_gets_no_more_marks():
    dice = Random(1)
    with log_file() as old, log_file() as new, Yard("drop", guests=1) as yard:
        (guest,) = yard.guests
        side = Watched(guest, *old, True)
        side.post(dice, 300)
        side.snapshot()
        assert guest.rings[0].send([np.frombuffer(frame(dice, 60), np.uint8)]) == 1
        assert side.check()
        moved = Watched(guest, *new, True)
        moved.post(dice, 300)
        moved.snapshot()
        assert guest.rings[0].send([np.frombuffer(frame(dice, 60), np.uint8)]) == 1
        assert moved.check()
        for ring in guest.rings:
            ring.set_log(None, None)
        moved.post(dice, 300)
        assert guest.rings[0].send([np.frombuffer(frame(dice, 60), np.uint8)]) == 1
        assert take(old[1]) == take(new[1]) == set()


def test_the_log_begins_at_its_offset_and_ends_where_it_ends():
    with Yard("drop", guests=1) as yard:
        (guest,) = yard.guests
        memory, page = guest.guest.memory, AWKWARD[-1][0] // PAGE + 8
        for size, fits in ((page // 8 + 1, True), (page // 8, False)):
            with log_file(size, PAGE) as (log, bits):
                guest.rings[0].set_log(log, None)
                memory.position = page * PAGE
                guest.post(200)
                assert guest.rings[0].send([np.frombuffer(BROADCAST * 10, np.uint8)]) == 1
                assert log.page_count == 8 * size
                assert take(bits) == ({8 * PAGE + page} if fits else set())
                assert (log.beyond == 0) is fits


@pytest.mark.parametrize("size", [0, 1, 2, PAGE - 1, PAGE, PAGE + 1, PAGE + 2])
@pytest.mark.parametrize("gpa", [0, 1, PAGE - 1, PAGE, 64 * PAGE - 1])
def test_what_a_witness_adds_is_marked_to_the_byte(gpa, size):
    with log_file() as (log, bits):
        log.mark(gpa, size)
        assert take(bits) == pages(gpa, size)
