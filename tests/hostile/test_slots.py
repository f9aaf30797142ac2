"""Regions of memory that come and go one by one (CONFIGURE_MEM_SLOTS), beside honest traffic: what
is unlawful is refused, and neither an fd nor a map is left of what went."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from host import BY_TABLE, Flow, Host, Vm, carry, closed, eventually, frame
from logfile import LogFile

from vhostfast.driver import GuestMemory
from vhostfast.driver.memory import UVA_OFFSET
from vhostfast.errors import ProtocolError
from vhostfast.protocol.features import MEMORY_SLOTS_MAX
from vhostfast.protocol.message import U64, OneRegion, Region, RegionKey, Request

HOSTILE, PEER = 0, 1
PAGE, PLACE = 4096, 16 << 20  # of regions that come: behind all others
FRAMES = [frame(i) for i in range(100)]


def open_fds() -> int:
    closed()
    return len(os.listdir("/proc/self/fd"))


def maps() -> int:
    with open("/proc/self/maps") as lines:
        return sum("memfd:" in line for line in lines)


def add(vm: Vm, region: Region, fd: int) -> None:
    vm.frontend.request(Request.ADD_MEM_REG, OneRegion(region), [fd], ack=True)
    vm.frontend.fence()  # what is not needed is closed after the answer


def remove(vm: Vm, region: Region, *fds: int) -> None:
    vm.frontend.request(Request.REM_MEM_REG, RegionKey.of(region), fds, ack=True)
    vm.frontend.fence()


def page(number: int) -> Region:
    """A region of a page; no two are neighbours."""
    gpa = PLACE + 2 * PAGE * number
    return Region(gpa, PAGE, gpa + UVA_OFFSET, PAGE * number)


@contextmanager
def file(pages: int) -> Iterator[int]:
    fd = os.memfd_create("more-memory")
    os.ftruncate(fd, pages * PAGE)
    yield fd
    os.close(fd)


@contextmanager
def honest(host: Host) -> Iterator[None]:
    """Two more guests, whose frames arrive before and after."""
    c, d = host.vm(2), host.vm(3)
    assert carry(c, d, FRAMES) == FRAMES
    yield
    assert carry(c, d, FRAMES) == FRAMES
    assert host.counters(2)["messages_refused"] == 0


@pytest.mark.hostile("memory", "a region added twice, amid traffic", "delivered")
@pytest.mark.hostile("memory", "a region removed twice, amid traffic", "delivered")
@pytest.mark.hostile("memory", "a region removed that never was, with an fd", "no effect")
def test_again_and_again():
    """QEMU 7.2 says everything again for each queue pair."""
    with Host() as host, file(4) as fd, LogFile() as log:
        a, b = host.vm(HOSTILE), host.vm(PEER)
        for vm in (a, b):
            vm.frontend.fence()
        idle = open_fds(), maps()
        with Flow(a, b) as flow:
            for logged in (False, True):
                if logged:
                    log.begin(a.frontend)
                for number in range(20):
                    flow.take(10)
                    region = page(number % 4)
                    for _ in range(3):
                        add(a, region, fd)
                        assert maps() == idle[1] + 1 + logged
                        assert open_fds() == idle[0] + 1 + logged
                    for _ in range(3):
                        remove(a, region)
                    remove(a, page(99), fd)
                    assert (open_fds(), maps()) == tuple(n + logged for n in idle)
        flow.assert_whole()
        assert host.counters(HOSTILE)["messages_refused"] == 0


@pytest.mark.hostile("memory", "509 regions", "delivered")
@pytest.mark.hostile("memory", "a 510th region", "refused")
@pytest.mark.hostile("memory", "an address behind the last of 509 regions", "port closes")
def test_as_many_regions_as_there_are_slots():
    """The last of them is memory like the first."""
    regions = [(0, 1 << 20), *((page(number).gpa, PAGE) for number in range(MEMORY_SLOTS_MAX - 1))]
    with Host(ports=4) as host, honest(host):
        a, b = host.vm(HOSTILE), host.vm(PEER, regions=regions, fill=False)
        for vm in (a, b):
            vm.frontend.fence()
        before = open_fds(), maps()
        assert b.frontend.request(Request.GET_MAX_MEM_SLOTS) == U64(MEMORY_SLOTS_MAX)
        with pytest.raises(ProtocolError, match="refused"):
            add(b, page(MEMORY_SLOTS_MAX), b.memory.fds[0])
        b.memory.position = regions[-32][0]
        b.post(16)
        assert carry(a, b, FRAMES[:16]) == FRAMES[:16]
        assert host.counters(PEER)["messages_refused"] == 1
        last = b.memory.regions[-1]
        remove(b, last)
        add(b, last, b.memory.fds[0])
        assert (open_fds(), maps()) == before
        b.sender().ring.add([(last.gpa + 2 * last.size, 200, False)])
        b.sender().ring.kick()
        assert "a buffer outside of guest memory" in host.reason(PEER)


@pytest.mark.hostile("memory", "a region removed in which rings lie", "no effect: they stop")
def test_rings_stop_while_their_region_is_gone():
    """And go on where they stood when it is there again."""
    with Host(ports=4) as host, honest(host):
        a, b = host.vm(HOSTILE, regions=((0, 1 << 20),)), host.vm(PEER)
        port = host.ports[HOSTILE].port
        assert carry(a, b, FRAMES) == FRAMES
        (rings,) = a.memory.regions
        remove(a, rings)
        assert port.rings == {}
        a.send(FRAMES[:20])
        add(a, rings, a.memory.fds[0])
        assert set(port.rings) == {0, 1}
        assert b.receive(20) == FRAMES[:20]
        assert carry(b, a, FRAMES) == FRAMES


@pytest.mark.hostile("memory", "a region removed in which buffers are on offer", "port closes")
def test_buffers_in_a_region_that_is_gone():
    regions = ((0, 1 << 20), (PLACE, 1 << 20))
    with Host(ports=4) as host, honest(host):
        a, b = host.vm(HOSTILE, regions=regions, fill=False), host.vm(PEER)
        a.memory.position = PLACE
        a.post(16)
        remove(a, a.memory.regions[1])
        b.send(FRAMES[:1])
        assert "a buffer outside of guest memory" in host.reason(HOSTILE)


@pytest.mark.hostile("memory", "the same region of another file", "refused")
def test_a_region_comes_with_its_own_file():
    """Or a front-end would believe that we see what it has put there."""
    with Host(ports=4) as host, honest(host), file(1) as first, file(1) as second:
        a = host.vm(HOSTILE)
        add(a, page(0), first)
        before = open_fds(), maps()
        with pytest.raises(ProtocolError, match="refused"):
            add(a, page(0), second)
        same = os.open(f"/proc/self/fd/{first}", os.O_RDWR)  # another description of the first
        add(a, page(0), same)
        os.close(same)
        assert (open_fds(), maps()) == before


@pytest.mark.hostile("messages", "ADD_MEM_REG, REM_MEM_REG, not agreed on", "refused")
def test_slots_that_were_not_agreed_on():
    with Host(ports=4) as host, honest(host), file(1) as fd:
        a = host.vm(HOSTILE, protocol_features=BY_TABLE)
        for ask in (lambda: add(a, page(0), fd), lambda: remove(a, a.memory.regions[0], fd)):
            with pytest.raises(ProtocolError, match="refused"):
                ask()
        assert set(host.ports[HOSTILE].port.rings) == {0, 1}


@pytest.mark.hostile("log", "a region beyond the log, amid traffic", "refused")
def test_a_region_beyond_the_log():
    """The larger log comes first; then what is written there is marked."""
    with Host(witness=True) as host, LogFile(104) as small, LogFile(1024) as large:
        a, b = host.vm(HOSTILE), host.vm(PEER, fill=False)
        with GuestMemory(((PLACE, 1 << 20),)) as more, Flow(b, a) as flow:
            flow.take(1)
            small.begin(b.frontend)
            with pytest.raises(ProtocolError, match="refused"):
                add(b, more.regions[0], more.fds[0])
            large.base(b.frontend)
            add(b, more.regions[0], more.fds[0])
            ring = b.receiver().ring
            for number in range(16):
                ring.add([(PLACE + PAGE * number, 2048, True)])
            ring.kick()
            a.send(FRAMES[:16])
            taken: list[tuple[int, int]] = []
            eventually(lambda: taken.extend(ring.take_all()) or len(taken) == 16)
            flow.take(10)
        flow.assert_whole()
        host.settle()
        assert {PLACE // PAGE + number for number in range(16)} <= large.pages()
        assert host.counters(PEER)["log_pages_missed"] == 0
