"""The life of a migration log: it comes, is replaced and goes while rings run under traffic."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from host import BY_TABLE, Flow, Host, Vm, carry, closed, eventually, frame, readable
from logfile import LogFile, end, log_all

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.frontend import FEATURES, PROTOCOL_FEATURES
from vhostfast.errors import ProtocolError
from vhostfast.protocol.features import VirtioFeature
from vhostfast.protocol.message import Request, VringSize

FRAMES = [frame(i) for i in range(100)]
PAGE = 4096
WHILE_S = 0.05  # in which a worker could do thousands of things


def pages(gpa: int, size: int) -> set[int]:
    return set(range(gpa // PAGE, (gpa + size - 1) // PAGE + 1))


def used_ring(vm: Vm, index: int) -> set[int]:
    vring = vm.frontend.rings[index]
    return pages(vring.used_gpa, 6 + 8 * vring.size)


def buffers(vm: Vm) -> set[int]:
    """The pages of what is on offer to be filled."""
    spans = [(gpa, 2048) for (index, _), gpa in vm._slots.items() if index % 2 == 0]
    return {page for span in spans for page in pages(*span)}


@pytest.mark.hostile("log", "a log at an offset in its file", "delivered")
@pytest.mark.parametrize("offset", [0, PAGE, 3 * PAGE])
def test_a_log_that_begins_in_traffic(offset):
    """What was written is marked, from the log's first bit on, and nothing before its offset."""
    with Host() as host, LogFile(offset=offset) as log:
        a, b = host.vm(0), host.vm(1)
        with Flow(a, b) as flow:
            log.begin(b.frontend)
            flow.take(200)
        flow.assert_whole()
        host.settle()
        assert used_ring(b, 0) & log.pages()
        assert log.pages() <= used_ring(b, 0) | used_ring(b, 1) | buffers(b)
        assert len(log.pages() & buffers(b)) > 1
        assert not any(os.pread(log.fd, offset, 0))


@pytest.mark.hostile("log", "LOG_ALL without a log", "no effect: its rings wait")
def test_with_log_all_a_ring_waits_for_the_log():
    """A guest that restarts amid a migration: QEMU sends the log last."""
    with Host() as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1, features=FEATURES | VirtioFeature.LOG_ALL, fill=False)
        assert not host.ports[1].port.rings
        b.post(32)
        log.base(b.frontend)
        assert set(host.ports[1].port.rings) == {0, 1}
        a.send(FRAMES[:1])
        assert b.receive(1) == FRAMES[:1]
        assert log.pages() & buffers(b)


def test_without_the_used_ring_s_flag_only_data_is_marked():
    with Host() as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        log.base(b.frontend)
        log_all(b.frontend, True)
        assert carry(a, b, FRAMES) == FRAMES
        assert log.pages()
        assert not log.pages() & (used_ring(b, 0) | used_ring(b, 1))


def test_a_migration_that_is_cancelled_leaves_nothing():
    with Host() as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        log.begin(b.frontend)
        assert carry(a, b, FRAMES) == FRAMES
        end(b.frontend)
        log.clear()
        assert carry(a, b, FRAMES) == FRAMES
        assert not log.pages()
        closed()
        inode = os.fstat(log.fd).st_ino
        ours = [fd for fd in os.listdir("/proc/self/fd") if _inode(fd) == inode]
        assert ours == [str(log.fd)], "the log's file is still held"


def _inode(fd: str) -> int:
    try:
        return os.stat(f"/proc/self/fd/{fd}").st_ino
    except FileNotFoundError:
        return -1  # the directory that was being listed


@pytest.mark.hostile("log", "a log replaced in traffic", "delivered")
def test_a_log_replaced_in_traffic_loses_no_bit():
    """Each time a fresh file, as cloud-hypervisor does each round: all that was marked until the
    reply is in the old one, and nothing is added to it later. The witness holds every round against
    the kernel's record."""
    with Host(witness=True) as host:
        a, b = host.vm(0), host.vm(1)
        logs = [LogFile() for _ in range(20)]
        with Flow(a, b) as flow:
            logs[0].begin(b.frontend)
            for old, new in pairwise(logs):
                flow.take(100)  # more than may have been there before this log
                log = host.ports[1].port.rings[0].log
                new.base(b.frontend)
                before = old.bytes()
                assert before == bytes(log.marked)
                assert any(before)
                flow.take(50)
                assert old.bytes() == before
        flow.assert_whole()
        assert host.counters(1)["log_pages_missed"] == 0
        for log in logs:
            log.close()


@pytest.mark.parametrize("agreed", [BY_TABLE, PROTOCOL_FEATURES], ids=["table", "one by one"])
def test_memory_grows_while_it_is_logged(agreed):
    """Hot-plug: the larger log comes first, then the table or region; the rings run on."""
    regions = [(0, 4 << 20), (4 << 20, 4 << 20)]
    with Host(witness=True) as host, LogFile(128) as small, LogFile(256) as large:
        memory = GuestMemory(regions)
        grown = memory.regions, memory.fds
        a = host.vm(0)
        b = host.vm(1, memory=memory, fill=False, protocol_features=agreed, start=False)
        memory.regions, memory.fds = grown[0][:1], grown[1][:1]
        b.start(fill=False)
        small.begin(b.frontend)
        memory.regions, memory.fds = grown
        with pytest.raises(ProtocolError, match="refused"):
            b.frontend.tell_memory()
        b.post(32)
        assert carry(a, b, FRAMES[:20]) == FRAMES[:20]
        large.base(b.frontend)
        b.frontend.tell_memory()
        memory.position = regions[1][0]
        b.post(32)
        assert carry(a, b, FRAMES) == FRAMES
        assert set(range(1024, 1032)) & large.pages(), "nothing is marked in what was added"
        assert host.counters(1)["log_pages_missed"] == 0


@pytest.mark.hostile("log", "memory or a used ring beyond the log", "refused")
def test_what_lies_beyond_the_log_is_refused_when_it_comes():
    with Host() as host, LogFile(104) as log:
        b = host.vm(1)
        log.begin(b.frontend)
        end_of_log = 104 * 8 * PAGE
        for gpa in (end_of_log - 6 - 8 * 64 + 4, end_of_log, (1 << 64) - 4):
            addr = replace(b.frontend.rings[0].addresses(log=True), log=gpa)
            with pytest.raises(ProtocolError, match="refused"):
                b.frontend.request(Request.SET_VRING_ADDR, addr, ack=True)
        last = replace(b.frontend.rings[1].addresses(log=True), log=end_of_log - 6 - 8 * 64)
        b.frontend.request(Request.SET_VRING_ADDR, last, ack=True)
        b.frontend.stop_ring(b.frontend.rings[1])
        with pytest.raises(ProtocolError, match="refused"):
            b.frontend.request(Request.SET_VRING_NUM, VringSize(1, 128), ack=True)
        assert host.counters(1)["messages_refused"] == 4


def stop(frontend: Frontend) -> None:
    for vring in frontend.rings:
        frontend.stop_ring(vring)


def reset(frontend: Frontend) -> None:
    frontend.request(Request.RESET_OWNER, ack=True)


@pytest.mark.parametrize("how", [stop, reset])
def test_after_the_answer_not_a_byte_or_bit_follows(how: Callable[[Frontend], None]):
    with Host() as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        log.begin(b.frontend)
        a.send(FRAMES[:50])
        assert b.receive(1)
        how(b.frontend)
        memory, bits = b.picture(), log.bytes()
        a.send(FRAMES[:10])
        a.sender().ring.kick(force=True)
        b.receiver().ring.kick(force=True)
        time.sleep(WHILE_S)
        assert (b.picture(), log.bytes()) == (memory, bits)
        assert any(bits)


@pytest.mark.parametrize("mode", ["poll", "interrupt", "adaptive"])
def test_the_log_s_eventfd_is_told(mode):
    """SET_LOG_FD: once a slice at most, and again only when there are new bits."""
    event_fd = os.eventfd(0, os.EFD_NONBLOCK)
    with Host(mode=mode) as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        b.frontend.request(Request.SET_LOG_FD, fds=[event_fd], ack=True)
        assert carry(a, b, FRAMES) == FRAMES
        assert not readable(event_fd, WHILE_S), "told without a log"
        log.begin(b.frontend)
        a.send(FRAMES[:32])
        assert b.receive(32) == FRAMES[:32]
        assert readable(event_fd, 5)
        host.settle()
        assert 1 <= os.eventfd_read(event_fd) <= 32 + 2
        end(b.frontend)
        if readable(event_fd):
            os.eventfd_read(event_fd)
        assert carry(a, b, FRAMES) == FRAMES
        assert not readable(event_fd, WHILE_S), "told after the log has gone"
    os.close(event_fd)


def test_the_log_s_eventfd_is_replaced_in_traffic():
    event_fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(5)]
    with Host() as host, LogFile() as log:
        a, b = host.vm(0), host.vm(1)
        with Flow(a, b) as flow:
            log.begin(b.frontend)
            for fd in event_fds:
                b.frontend.request(Request.SET_LOG_FD, fds=[fd], ack=True)
                flow.take(50)
                assert readable(fd, 5)
        flow.assert_whole()
        host.settle()
        for fd in event_fds[:-1]:
            os.eventfd_read(fd)
        a.send(FRAMES[:1])
        assert b.receive(1)
        host.settle()
        assert not any(readable(fd) for fd in event_fds[:-1])
    for fd in event_fds:
        os.close(fd)


def test_two_queue_pairs_share_the_log():
    with Host() as host, LogFile() as log:
        a, b = (host.vm(port, queue_pairs=2) for port in (0, 1))
        log.begin(b.frontend)
        for pair in (0, 1):
            a.send(FRAMES[:20], pair)
            assert b.receive(20, pair) == FRAMES[:20]
            b.send(FRAMES[:20], pair)
            eventually(lambda p=pair: b.sender(p).ring.used["idx"] == 20)
        host.settle()
        for index in range(4):
            assert used_ring(b, index) & log.pages(), index


@pytest.mark.parametrize("told", [True, False])
def test_rings_that_start_under_a_log_mark_their_used_rings_if_told(told):
    with Host() as host, LogFile() as log:
        features = FEATURES | VirtioFeature.LOG_ALL
        vm = host.vm(0, features=features, queue_pairs=2, fill=False)
        rings = vm.frontend.rings
        for vring in rings:
            addr = vring.addresses(log=told)
            vm.frontend.request(Request.SET_VRING_ADDR, addr, ack=True)
        assert not host.ports[0].port.rings
        log.base(vm.frontend)
        assert len(host.ports[0].port.rings) == len(rings) == 4
        begin = {vring.used_gpa // PAGE for vring in rings}
        all_used = set().union(*(used_ring(vm, index) for index in range(4)))
        assert begin <= log.pages() <= all_used if told else not log.pages()
