"""A ring of its own: where it lies, what a device in Python does with it, what it marks."""

import mmap
import os

import numpy as np
import pytest
from guest import AWKWARD, Guest
from yard import Shape, Yard, mapped

from vhostfast.core.memory import Log
from vhostfast.core.ring import Ring
from vhostfast.errors import ProtocolError

FRAME = np.frombuffer(b"\2\0\0\0\0\1\2\0\0\0\0\2\x88\xb5" + bytes(range(50)), np.uint8)


@pytest.fixture
def yard():
    with Yard("drop", guests=1) as yard:
        yield yard


def test_received_frames_are_private_copies_without_header(yard):
    (guest,) = yard.guests
    guest.send(FRAME.tobytes(), [5, 9])
    guest.send(b"short")
    (packet,) = guest.rings[1].receive()
    assert packet.tobytes() == FRAME.tobytes()
    packet[:] = 0
    assert len(guest.tx.ring.take_all()) == 2


def test_no_more_chains_are_taken_than_asked_for(yard):
    """Or a guest that offers what is no packet without end is never done with."""
    (guest,) = yard.guests
    for _ in range(5):
        guest.send(b"short")
    assert guest.rings[1].receive(3) == []
    assert guest.rings[1].malformed == len(guest.tx.ring.take_all()) == 3


def test_what_is_longer_than_the_mtu_is_not_for_the_guest():
    with Yard("drop", shapes=(Shape(frame_size_max=63),)) as yard:
        (guest,) = yard.guests
        guest.post(200)
        assert guest.rings[0].send([FRAME, FRAME[:63]]) == 2
        assert guest.rings[0].too_big == 1
        assert guest.received() == [FRAME[:63].tobytes()]


def test_no_more_is_received_than_asked_for(yard):
    (guest,) = yard.guests
    for _ in range(5):
        guest.send(FRAME.tobytes())
    assert [len(guest.rings[1].receive(limit)) for limit in (2, 2, 2)] == [2, 2, 1]


def test_frames_are_sent_as_far_as_there_are_buffers(yard):
    (guest,) = yard.guests
    guest.post(30)
    guest.post(60)
    guest.post(20, 100)
    assert guest.rings[0].send([FRAME, FRAME, FRAME]) == 2
    assert guest.received() == [FRAME.tobytes()] * 2


def test_a_ring_that_does_not_run_says_so():
    with pytest.raises(RuntimeError, match="ring 3 does not run"):
        Ring(3).receive()


def test_a_stopped_ring_says_where_it_goes_on():
    with Yard("drop", shapes=(Shape(base=65535),)) as yard:
        (guest,) = yard.guests
        guest.send(FRAME.tobytes())
        guest.send(FRAME.tobytes())
        guest.rings[1].receive()
        guest.port.detach(guest.rings[1])
        assert guest.rings[1].stop() == 1


@pytest.mark.parametrize("area", ["desc", "used", "avail"])
def test_an_area_that_does_not_lie_in_one_region_is_refused_by_name(yard, area):
    (guest,) = yard.guests
    addr = guest.rx.addresses()
    areas = {"desc": addr.desc, "used": addr.used, "avail": addr.avail}
    areas[area] = guest.guest.memory.uva(AWKWARD[1][0]) - 16
    with pytest.raises(ProtocolError, match=area):
        Ring(0).start(mapped(guest.guest), size=16, **areas)


def test_what_is_written_is_marked_and_nothing_else():
    """Pages: buffers that cross page and region edges, header apart, and the used ring's own."""
    with Yard("drop", shapes=(Shape(event_idx=True),)) as yard:
        (guest,) = yard.guests
        ring, memory = guest.rings[0], guest.guest.memory
        fd = os.memfd_create("log")
        os.ftruncate(fd, 2 * mmap.PAGESIZE)
        try:
            log = Log(fd, mmap.PAGESIZE, mmap.PAGESIZE)
            bits = mmap.mmap(fd, 2 * mmap.PAGESIZE)
        finally:
            os.close(fd)
        memory.position = 0x41FF0
        guest.post(12, 30, 9000)
        untouched = guest.post(9000)
        ring.set_log(log, guest.rx.used_gpa)
        before = {page: memory.read(page << 12, 4096) for page in range(0x40, 0x80)}
        ring.send([np.tile(FRAME, 100)])
        ring.want_kicks(True)
        marked = (
            np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little"))
            - 8 * mmap.PAGESIZE
        )
        changed = {page for page in before if memory.read(page << 12, 4096) != before[page]}
        used_ring = {guest.rx.used_gpa >> 12, (guest.rx.used_gpa + 4 + 8 * 16) >> 12}
        assert set(marked.tolist()) == changed | used_ring
        assert len(changed) >= 3
        assert untouched in guest.buffers
        assert log.beyond == 0
        del bits


def test_a_page_beyond_the_log_is_counted_and_harms_nothing(yard):
    (guest,) = yard.guests
    fd = os.memfd_create("log")
    os.ftruncate(fd, 1)
    try:
        log = Log(fd, 1, 0)
    finally:
        os.close(fd)
    guest.rings[0].set_log(log, None)
    guest.guest.memory.position = 0x41000
    guest.post(200)
    assert guest.rings[0].send([FRAME]) == 1
    assert log.beyond == 1  # header and frame, side by side


def test_what_was_sent_before_a_packet_that_is_none_is_published_and_marked(yard):
    guest = yard.guests[0]
    fd = os.memfd_create("log")
    os.ftruncate(fd, mmap.PAGESIZE)
    guest.rings[0].set_log(Log(fd, mmap.PAGESIZE, 0), guest.rx.used_gpa)
    guest.post(100)
    with pytest.raises(TypeError):
        guest.rings[0].send([bytearray(60), object()])
    assert guest.received() == [bytes(60)]
    assert any(os.pread(fd, mmap.PAGESIZE, 0))
    guest.rings[0].set_log(None, None)
    guest.rings[0].want_kicks(True)  # nothing is left to be marked
    os.close(fd)


@pytest.mark.parametrize("gone", ["guest memory", "the migration log"])
def test_a_device_is_told_what_has_vanished(gone):
    regions = ((0, 0x10000), (0x100000, 0x10000))
    with Guest(regions, separate=True, sealed=False) as guest:
        vring, ring, fd = guest.vring(16), Ring(0), os.memfd_create("log")
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            addr, log = vring.addresses(), Log(fd, mmap.PAGESIZE, 0)
            ring.start(mapped(guest), size=16, desc=addr.desc, used=addr.used, avail=addr.avail,
                       log=log)  # fmt: skip
            guest.memory.position = regions[1][0]
            vring.ring.add([(guest.blank(200), 200, True)])
            os.ftruncate(guest.memory.fds[1] if gone == "guest memory" else fd, 0)
        finally:
            os.close(fd)
        ring.send([FRAME])
        assert ring.fault.startswith(f"{gone} is gone")


@pytest.mark.hostile("memory", "a device's packet vanishes behind others", "port closes")
def test_what_a_device_received_before_memory_vanished_is_received_once():
    regions = ((0, 0x10000), (0x100000, 0x10000), (0x200000, 0x10000))
    with Guest(regions, separate=True, sealed=False) as guest:
        vring = guest.vring(16, index=1)
        addr = vring.addresses()
        areas = {"size": 16, "desc": addr.desc, "used": addr.used, "avail": addr.avail}
        for gpa, _ in regions[1:]:
            guest.memory.position = gpa
            vring.ring.add([(guest.store(bytes(12) + FRAME.tobytes()), 12 + FRAME.size, False)])
        ring = Ring(1)
        ring.start(mapped(guest), **areas)
        os.ftruncate(guest.memory.fds[2], 0)
        assert [packet.tobytes() for packet in ring.receive()] == [FRAME.tobytes()]
        assert ring.fault.startswith("guest memory is gone")
        assert len(vring.ring.take_all()) == 1
        assert ring.receive() == []
        ring.stop()
        os.ftruncate(guest.memory.fds[2], regions[2][1])  # there again, but empty
        successor = Ring(1)
        successor.start(mapped(guest), **areas)
        assert [packet.tobytes() for packet in successor.receive()] == [bytes(FRAME.size)]
        successor.stop()
