"""A front-end that takes its memory, or its log, away while rings run: its port closes with a
reason, and what the others say to each other arrives, each frame once and in order."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import pytest
from host import Host, Vm, carry, eventually, frame, mac, number_of
from logfile import LogFile

from vhostfast.driver import GuestMemory
from vhostfast.protocol.message import U64, Request

MEMORY = "guest memory is gone: its file was cut short, or there was no huge page left for it"
LOG = "the migration log is gone: its file was cut short"
HONEST, PEER, HOSTILE = 0, 1, 2


class Traffic(threading.Thread):
    """Frames from one guest to another, as many under way as there are buffers for: in a switch
    that learns, more would be dropped. `with` it; each must come once, in order."""

    def __init__(self, source: Vm, target: Vm) -> None:
        super().__init__()
        self.count = 0
        self.got: list[bytes] = []
        self._ends = (source, target)
        self._stop_now = threading.Event()

    def run(self) -> None:
        while not self._stop_now.is_set():
            frames = [frame(number) for number in range(self.count, self.count + 32)]
            self.count += len(frames)
            self.got += carry(*self._ends, frames)

    def take(self, count: int) -> None:
        """Wait for so many more."""
        wanted = len(self.got) + count
        eventually(lambda: len(self.got) >= wanted)

    def __enter__(self) -> Self:
        self.start()
        self.take(50)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_now.set()
        self.join()
        mine = [data for data in self.got if data[6:12] == mac(1)]
        assert [number_of(data) for data in mine] == list(range(self.count))


RINGS, BUFFERS = (0, 0x10000), (0x100000, 0x100000)  # regions, each with a file of its own


def hostile(host: Host, **options: object) -> Vm:
    """A front-end whose rings and buffers are in files of their own."""
    memory = GuestMemory((RINGS, BUFFERS), separate=True, sealed=False)
    vm = host.vm(HOSTILE, memory=memory, start=False, **options)
    vm.start(fill=False)
    memory.position = BUFFERS[0]
    vm.post(vm.frontend.ring_size)
    return vm


def cut_buffers(vm: Vm, _: LogFile | None) -> None:
    os.ftruncate(vm.memory.fds[1], 0)


def cut_rings(vm: Vm, _: LogFile | None) -> None:
    os.ftruncate(vm.memory.fds[0], 0)


def cut_all(vm: Vm, log: LogFile | None) -> None:
    cut_buffers(vm, log)
    cut_rings(vm, log)


def cut_log(_: Vm, log: LogFile) -> None:
    os.ftruncate(log.fd, 0)


CUTS = {"buffers": cut_buffers, "rings": cut_rings, "all": cut_all, "log": cut_log}
LAYOUTS = {"one worker": None, "two workers": sorted(os.sched_getaffinity(0))[:2]}


@contextmanager
def three(mode: str = "adaptive", cpus: list[int] | None = None) -> Iterator[tuple[Host, Vm, Vm]]:
    """Two honest guests that know each other, and room for a third."""
    with Host("learn", ports=3, mode=mode, cpus=cpus) as host:
        a, b = host.vm(HONEST), host.vm(PEER)
        b.send([frame(0, to=1, sender=2)])
        assert a.receive(1) == [frame(0, to=1, sender=2)]
        yield host, a, b


def flooded(number: int) -> bytes:
    """A frame that goes to all: nobody knows who that is."""
    return frame(number, to=99, sender=2)


def assert_only_it_has_gone(host: Host, reason: str) -> None:
    assert host.reason(HOSTILE) == reason
    assert host.counters(HOSTILE)["faults"] == 1
    for port in (HONEST, PEER):
        assert host.connected(port)
        assert host.counters(port)["faults"] == host.counters(port)["tx_dropped_full"] == 0


def assert_usable_again(host: Host, peer: Vm) -> None:
    back = host.vm(HOSTILE)
    back.send([frame(1, to=2, sender=3)])
    assert frame(1, to=2, sender=3) in peer.receive(1)
    peer.send([frame(2, to=3, sender=2)])
    assert back.receive(1)[-1] == frame(2, to=3, sender=2)


@pytest.mark.hostile("memory", "a receiver's file cut short in traffic", "port closes")
@pytest.mark.hostile("log", "the log's file cut short in traffic", "port closes")
@pytest.mark.parametrize("cpus", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_receiver_vanishes_in_traffic(
    cut: Callable[[Vm, LogFile], None], cpus: list[int] | None
) -> None:
    with three(cpus=cpus) as (host, a, b), LogFile() as log:
        c = hostile(host)
        log.begin(c.frontend)
        with Traffic(a, b) as traffic:
            b.send(flooded(number) for number in range(8))
            cut(c, log)
            b.send(flooded(number) for number in range(8, 16))
            assert_only_it_has_gone(host, LOG if cut is cut_log else MEMORY)
            assert a.receive(16) == [flooded(number) for number in range(16)]
            traffic.take(50)
        assert_usable_again(host, b)


@pytest.mark.hostile("memory", "a sender's file cut short in traffic", "port closes")
@pytest.mark.parametrize("cpus", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("target", [2, 99], ids=["to one", "to all"])
@pytest.mark.parametrize("cut", [cut_buffers, cut_rings, cut_all])
def test_a_sender_vanishes_in_traffic(
    cut: Callable[[Vm, LogFile], None], target: int, cpus: list[int] | None
) -> None:
    with three(cpus=cpus) as (host, a, b), LogFile() as log:
        c = hostile(host)
        c.send([frame(0, to=2, sender=3)])
        assert b.receive(1) == [frame(0, to=2, sender=3)]
        with Traffic(a, b) as traffic:
            data = bytes(12) + frame(0, to=target, sender=3)
            gpa = c.memory.take(len(data))
            c.memory.write(gpa, data)
            for _ in range(8):
                c.sender().ring.add([(gpa, len(data), False)], publish=False)
            cut(c, log)
            if cut is cut_buffers:
                c.sender().ring.publish()
            os.eventfd_write(c.sender().kick_fd, 1)
            assert_only_it_has_gone(host, MEMORY)
            traffic.take(50)
        assert_usable_again(host, b)


@pytest.mark.parametrize("mode", ["poll", "interrupt"])
def test_who_waits_for_a_receiver_that_vanishes_waits_no_longer(mode: str) -> None:
    """In a patch a full receiver holds its sender up; once it has gone, frames are dropped."""
    with Host("patch", mode=mode) as host:
        memory = GuestMemory((RINGS, BUFFERS), separate=True, sealed=False)
        a, c = host.vm(0), host.vm(1, memory=memory, start=False)
        c.start(fill=False)
        a.send(frame(number) for number in range(40))
        os.ftruncate(memory.fds[0], 0)
        os.eventfd_write(c.receiver().kick_fd, 1)
        assert host.reason(1) == MEMORY
        a.all_sent()
        assert host.connected(0)
        eventually(lambda: host.counters(0)["rx_packets"] == 40)
        assert host.counters(0)["rx_dropped_no_receiver"] == 40


def test_a_ring_that_starts_where_no_memory_is() -> None:
    with three() as (host, a, b):
        c = hostile(host)
        c.frontend.stop()
        os.ftruncate(c.memory.fds[0], 0)
        c.frontend.tell_file(Request.SET_VRING_KICK, 0, c.receiver().kick_fd)
        gone = "vring 0: memory is gone, must be there for as long as it is shared"
        assert host.reason(HOSTILE) == gone
        assert carry(a, b, [frame(1)]) == [frame(1)]
        assert_usable_again(host, b)


def test_an_announcement_goes_to_those_that_are_there() -> None:
    """SEND_RARP, while the workers rest: the one whose memory has gone is closed, the others hear
    of it once."""
    with three("interrupt") as (host, a, b):
        c = hostile(host)
        cut_all(c, None)
        request = int.from_bytes(mac(7) + bytes(2), "little")
        a.frontend.request(Request.SEND_RARP, U64(request), ack=True)
        assert_only_it_has_gone(host, MEMORY)
        (heard,) = b.receive(1)
        assert heard[:12] == b"\xff" * 6 + mac(7)
        assert carry(a, b, [frame(1)]) == [frame(1)]
