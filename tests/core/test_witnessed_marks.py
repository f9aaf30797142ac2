"""Marked is what was written and nothing else: the kernel's record of our maps is the oracle.

It knows pages, also those rewritten with the bytes that they had, and nothing of our marking code.
After each turn both are compared, page by page, for every guest.
"""

import os
from random import Random

import pytest
from yard import Shape, Yard, YardGuest

from vhostfast.backend.watch import Record
from vhostfast.core.fabric import levels
from vhostfast.core.memory import Log
from vhostfast.driver import mac

PAGE = 4096
LOG_SIZE = 1 << 10  # bytes: 32 MiB of guest memory


class Logged:
    """A guest of the yard whose rings mark a log."""

    def __init__(self, guest: YardGuest, *, used_rings: bool = True) -> None:
        self.guest = guest
        self.fd = os.memfd_create("log")
        os.ftruncate(self.fd, LOG_SIZE)
        self.log = Log(self.fd, LOG_SIZE, 0)
        for ring, vring in zip(guest.rings, (guest.rx, guest.tx), strict=True):
            ring.set_log(self.log, vring.used_gpa if used_rings else None)
        memory = guest.rings[0].memory
        assert memory is not None
        self._record = Record(memory)

    def marked(self) -> set[int]:
        """The pages marked since the last look."""
        bits = int.from_bytes(os.pread(self.fd, LOG_SIZE, 0), "little")
        os.pwrite(self.fd, bytes(LOG_SIZE), 0)
        return {page for page in range(8 * LOG_SIZE) if bits >> page & 1}

    def written(self) -> set[int]:
        """The pages written since the last look."""
        spans = zip(*self._record.take(), strict=True)
        return {page for first, last in spans for page in range(first, last + 1)}

    def check(self) -> set[int]:
        written = self.written()
        assert self.marked() == written
        assert self.log.beyond == 0
        return written

    def close(self) -> None:
        for ring in self.guest.rings:
            ring.set_log(None, None)
        self._record.close()
        os.close(self.fd)


def pages(gpa: int, size: int) -> set[int]:
    return set(range(gpa // PAGE, (gpa + size - 1) // PAGE + 1))


def frame(dice: Random, sender: int, receiver: int, size: int) -> bytes:
    return (mac(receiver) + mac(sender) + b"\x88\xb5" + dice.randbytes(size))[:size]


def random_cuts(dice: Random) -> list[int]:
    return [dice.choice((0, 1, 5, 11, 12, 13, 40, 200)) for _ in range(dice.choice((0, 0, 1, 3)))]


def random_pieces(dice: Random, shape: Shape) -> list[int]:
    """A receive buffer: whole pages and more, or pieces, with MRG_RXBUF small ones."""
    if not shape.mergeable or dice.random() < 0.4:
        return [dice.choice((1600, 2048, 9000))]
    first = dice.choice((shape.header_size, 64, 300, 4096))
    return [first, *(dice.choice((1, 50, 700)) for _ in range(dice.choice((0, 0, 2))))]


def random_shape(dice: Random) -> Shape:
    mergeable = dice.random() < 0.7
    return Shape(
        size=dice.choice((16, 64)),
        base=dice.choice((0, 65530)),
        event_idx=dice.random() < 0.5,
        indirect=dice.random() < 0.7,
        mergeable=mergeable,
        header_size=12 if mergeable else dice.choice((10, 12)),
    )


@pytest.mark.parametrize("forward", ["patch", "learn", "loopback", "drop"])
@pytest.mark.parametrize("seed", range(10))
def test_every_turn_marks_what_it_writes(forward, seed):
    dice = Random(seed)
    shapes = tuple(random_shape(dice) for _ in range(2 if forward == "patch" else 3))
    with Yard(forward, shapes=shapes, level=dice.choice(levels())) as yard:
        logged = [Logged(guest) for guest in yard.guests]
        touched = 0
        for _ in range(12):
            for number, guest in enumerate(yard.guests):
                for _ in range(dice.randrange(6)):
                    indirect = guest.shape.indirect and dice.random() < 0.4
                    pieces = random_pieces(dice, guest.shape)
                    if guest.rx.ring.free_count >= len(pieces):
                        guest.post(*pieces, indirect=indirect)
                for _ in range(dice.randrange(4)):
                    size = dice.choice((14, 60, 500, 1514))
                    data = frame(dice, number, dice.randrange(4), size)
                    indirect = guest.shape.indirect and dice.random() < 0.4
                    cuts = random_cuts(dice)
                    if guest.tx.ring.free_count > len(cuts):
                        guest.send(data, cuts, indirect)
            yard.turn()
            touched += sum(len(one.check()) for one in logged)
            for guest in yard.guests:
                guest.received()
                guest.tx.ring.take_all()
        assert touched
        for one in logged:
            one.close()


def test_a_used_ring_that_is_not_logged_is_not_marked():
    with Yard("patch") as yard:
        sender, receiver = yard.guests
        logged = Logged(receiver, used_rings=False)
        receiver.post(2000)
        buffer = next(iter(receiver.buffers.values()))[0][0]
        sender.send(frame(Random(0), 0, 1, 1000))
        yard.turn()
        assert logged.marked() == pages(buffer, 1012)
        assert logged.written() == pages(buffer, 1012) | pages(receiver.rx.used_gpa, 12)
        logged.close()


def test_what_is_sent_is_only_read():
    """The sender's buffers are not marked; its used ring is."""
    with Yard("patch") as yard:
        sender, receiver = yard.guests
        logged = Logged(sender)
        receiver.post(9000)
        sender.send(frame(Random(0), 0, 1, 5000))
        yard.turn()
        assert logged.check() == pages(sender.tx.used_gpa, 12)
        logged.close()


@pytest.mark.parametrize("event_idx", [False, True])
def test_asking_for_kicks_is_a_write(event_idx):
    with Yard("patch", shapes=(Shape(event_idx=event_idx),) * 2) as yard:
        guest = yard.guests[1]
        logged = Logged(guest)
        guest.rings[0].want_kicks(True)
        offset = 4 + 8 * guest.shape.size if event_idx else 0
        asked = logged.check()
        guest.rings[0].want_kicks(False)
        assert (asked | logged.check()) == pages(guest.rx.used_gpa + offset, 2)
        logged.close()


def test_a_ring_that_starts_writes_its_used_ring():
    with Yard("patch") as yard:
        guest = yard.guests[1]
        logged = Logged(guest)
        ring, vring = guest.rings[0], guest.rx
        memory, addr = ring.memory, vring.addresses()
        ring.stop()
        ring.start(
            memory, size=vring.size, desc=addr.desc, used=addr.used, avail=addr.avail,
            log=logged.log, used_log=vring.used_gpa,
        )  # fmt: skip
        assert logged.check() == pages(vring.used_gpa, 4)
        logged.close()


def test_a_device_in_python_marks_what_it_sends():
    with Yard("drop") as yard:
        guest = yard.guests[0]
        logged = Logged(guest)
        guest.post(20, 100)
        guest.post(9000)
        guest.send(frame(Random(0), 0, 1, 5000))
        assert len(guest.rings[1].receive()) == 1
        assert logged.check() == pages(guest.tx.used_gpa, 12)
        spaces = [piece for pieces in guest.buffers.values() for piece in pieces]
        assert guest.rings[0].send([bytearray(60), bytearray(8000)]) == 2
        expected = pages(guest.rx.used_gpa, 4 + 16) | pages(spaces[2][0], 8012)
        assert logged.check() == expected | pages(*spaces[0]) | pages(spaces[1][0], 52)
        logged.close()


def test_a_frame_of_our_own_is_marked():
    with Yard("learn") as yard:
        logged = [Logged(guest) for guest in yard.guests]
        yard.guests[1].post(2000)
        yard.fabric.inject(yard.guests[0].port, bytearray(60))
        assert logged[0].check() == set()
        assert logged[1].check()
        for one in logged:
            one.close()
