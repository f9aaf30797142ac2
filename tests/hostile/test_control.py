"""The control plane and a front-end that is odd, hostile or gone: what becomes of it, and that the
others' frames are carried. Messages that are refused each by each: test_bad_messages.py."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from host import PATIENCE_S, SMALL, Flow, Host, Vm, carry, closed, eventually, frame
from logfile import LogFile

from vhostfast.backend import connection
from vhostfast.core.ring import Ring
from vhostfast.driver import GuestMemory
from vhostfast.driver.wire import Wire
from vhostfast.errors import Disconnected
from vhostfast.protocol.message import (
    EMPTY,
    SPEC,
    U64,
    LogBase,
    Mac,
    MemoryTable,
    OneRegion,
    Payload,
    Region,
    RegionKey,
    Request,
    VringAddr,
    VringBase,
    VringEnable,
    VringFile,
    VringSize,
    VringState,
    encode,
)
from vhostfast.protocol.message import LogFile as LogFilePayload

R = Request
FRAMES = [frame(i) for i in range(40)]
HOSTILE, PEER, C, D = range(4)


def fds() -> int:
    closed()
    return len(os.listdir("/proc/self/fd"))


def maps() -> int:
    with open("/proc/self/maps") as file:
        return sum("memfd:" in line for line in file)


@contextmanager
def four(**options: Any) -> Iterator[tuple[Host, Vm, Vm]]:
    """A switch of two patches whose second carries frames, before and after."""
    with Host("patch", ports=4, **options) as host:
        c, d = host.vm(C), host.vm(D)
        for vm in (c, d):
            vm.frontend.fence()
        yield host, c, d
        assert carry(c, d, FRAMES) == FRAMES
        assert carry(d, c, FRAMES) == FRAMES
        c.frontend.fence()


# --- The stream -----------------------------------------------------------------------------------

# Each request once, lawful, with the number of its fds.
TABLE = MemoryTable((Region(0, 4096, 1 << 40, 0), Region(4096, 4096, (1 << 40) + 4096, 4096)))
PAYLOADS: dict[Request, Payload] = {
    **dict.fromkeys(SPEC, EMPTY),
    R.SET_FEATURES: U64(0),
    R.SET_PROTOCOL_FEATURES: U64(0),
    R.SET_MEM_TABLE: TABLE,
    R.ADD_MEM_REG: OneRegion(TABLE.regions[0]),
    R.REM_MEM_REG: RegionKey.of(TABLE.regions[0]),
    R.SET_LOG_BASE: LogBase(4096, 0),
    R.SET_LOG_FD: LogFilePayload(),
    R.SET_VRING_NUM: VringSize(0, 64),
    R.SET_VRING_ADDR: VringAddr(0, 0, 1 << 40, (1 << 40) + 4, 1 << 40, 0),
    R.SET_VRING_BASE: VringBase(0, 0),
    R.GET_VRING_BASE: VringState(0, 0),
    R.SET_VRING_KICK: VringFile(0, True),
    R.SET_VRING_CALL: VringFile(0, True),
    R.SET_VRING_ERR: VringFile(0, True),
    R.SET_VRING_ENABLE: VringEnable(0, 1),
    R.SEND_RARP: Mac(b"\2\0\0\0\0\7"),
    R.NET_SET_MTU: U64(1500),
    R.SET_STATUS: U64(0),
}


def fd_count(request: Request) -> int:
    announced = PAYLOADS[request].fd_count()
    return SPEC[request].fds[0] if announced is None else announced


@pytest.mark.hostile("stream", "each message cut at every byte, and the socket closed", "no effect")
def test_every_message_cut_at_every_byte() -> None:
    with four() as (host, _, _):
        before = fds(), maps()
        for request, payload in PAYLOADS.items():
            data = encode(request, payload)
            sent = [os.memfd_create("cut") for _ in range(fd_count(request))]
            for cut in range(1, len(data)):
                sock = host.plug(HOSTILE)
                socket.send_fds(sock, [data[:cut]], sent)
                sock.close()
                assert "in the middle of a message" in host.reason(HOSTILE)
            for fd in sent:
                os.close(fd)
        assert (fds(), maps()) == before
        assert host.counters(HOSTILE)["messages_refused"] == 0


def trickle(self: Wire, data: bytes, fds: Any = ()) -> None:
    for at in range(len(data)):
        socket.send_fds(self._sock, [data[at : at + 1]], fds if at == 0 else [])


@pytest.mark.hostile("stream", "a whole start trickled byte by byte", "delivered")
def test_a_start_byte_by_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    with four() as (host, _, _):
        b = host.vm(PEER)
        with monkeypatch.context() as patch:
            patch.setattr(Wire, "send_bytes", trickle)
            a = host.vm(HOSTILE)
        assert carry(a, b, FRAMES) == FRAMES


@pytest.mark.hostile("stream", "messages joined in one segment", "delivered")
def test_messages_in_one_segment() -> None:
    """What is said after what waits for an answer is answered after it."""
    with four() as (host, _, _):
        sock = host.plug(HOSTILE)
        sock.settimeout(PATIENCE_S)
        asked = [R.GET_FEATURES, R.GET_PROTOCOL_FEATURES, R.GET_FEATURES]
        sock.send(b"".join(encode(request) for request in (R.SET_OWNER, *asked)))
        answers = _read(sock, 60)
        assert [answers[at] for at in (0, 20, 40)] == [int(request) for request in asked]
        sock.close()
        host.reason(HOSTILE)


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data))
    return data


@pytest.mark.hostile("stream", "fds on a byte of the payload", "port closes")
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "with the next message"])
def test_fds_that_come_amid_a_message_are_nobody_s(joined: bool) -> None:
    """They came with a byte that begins no message, whatever begins later in the same segment."""
    with four() as (host, _, _):
        before = fds()
        sock, fd = host.plug(HOSTILE), os.eventfd(0)
        first = encode(R.SET_FEATURES, U64(0))
        sock.send(first[:15])
        host.fence()
        second = encode(R.SET_VRING_CALL, VringFile(0, True)) if joined else b""
        socket.send_fds(sock, [first[15:] + second], [fd])
        assert "number of fds is too large, must be at most 8 with the header" in host.reason(0)
        sock.close()
        os.close(fd)
        assert fds() == before


@pytest.mark.hostile("stream", "half a message, and then nothing", "port closes")
def test_a_message_that_stops_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED_S", 0.05)
    with four() as (host, _, _):
        sock = host.plug(HOSTILE)
        whole = encode(R.SET_FEATURES, U64(0))
        sock.send(whole[:7])
        assert host.reason(HOSTILE) == "a message is not whole 0 s after it began"
        sock.close()


@pytest.mark.hostile("stream", "silence between messages, for long", "delivered")
def test_between_messages_a_front_end_may_be_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED_S", 0.02)
    with four() as (host, _, d):
        a = host.vm(HOSTILE, start=False)
        assert d.receive(1, timeout_s=0.2) == []  # ten times that
        a.start()
        assert host.connected(HOSTILE)


# --- fds ------------------------------------------------------------------------------------------


@pytest.mark.hostile("fds", "one eventfd as kick, call and err of all rings", "delivered")
def test_one_eventfd_for_everything() -> None:
    with four() as (host, _, _):
        a, b = host.vm(HOSTILE), host.vm(PEER)
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        for index in (0, 1):
            for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
                a.frontend.tell_file(request, index, fd)
        a.frontend.fence()
        gpa = a.memory.take(76)
        a.memory.write(gpa, bytes(12) + FRAMES[0])
        a.sender().ring.add([(gpa, 76, False)])
        os.eventfd_write(fd, 1)
        assert b.receive(1) == FRAMES[:1]
        os.close(fd)


@pytest.mark.hostile("fds", "call and err fds that nobody reads, and their peer gone", "no effect")
def test_calls_that_are_full() -> None:
    with four() as (host, _, _):
        a, b = host.vm(HOSTILE), host.vm(PEER)
        fd = os.eventfd(0)
        os.eventfd_write(fd, 2**64 - 2)
        a.frontend.tell_file(R.SET_VRING_CALL, 0, fd)
        a.frontend.fence()
        assert not os.get_blocking(fd)
        os.close(fd)
        b.send(FRAMES[:1])
        b.all_sent()


# --- Rings ----------------------------------------------------------------------------------------


def tell_size(vm: Vm, index: int, size: int) -> None:
    vm.frontend.request(R.SET_VRING_NUM, VringSize(index, size), ack=True)


def tell_base(vm: Vm, index: int, base: int) -> None:
    vm.frontend.request(R.SET_VRING_BASE, VringBase(index, base), ack=True)


def again(vm: Vm) -> None:
    """Stop and start the transmit ring, told twice what it is."""
    vring = vm.sender()
    vm.frontend.stop_ring(vring)
    for _ in range(2):
        vm.frontend.tell_ring(vring)
    vm.frontend.tell_file(R.SET_VRING_CALL, 1, vring.call_fd)
    vm.frontend.tell_file(R.SET_VRING_KICK, 1, vring.kick_fd)


def wrong_base(base: int) -> Callable[[Vm], None]:
    def play(vm: Vm) -> None:
        vring = vm.sender()
        vm.frontend.stop_ring(vring)
        tell_base(vm, 1, base)
        vm.frontend.tell_file(R.SET_VRING_CALL, 1, vring.call_fd)
        vm.frontend.tell_file(R.SET_VRING_KICK, 1, vring.kick_fd)

    return play


def unknown_ring(vm: Vm) -> None:
    for _ in range(2):
        assert vm.frontend.request(R.GET_VRING_BASE, VringState(201, 0)) == VringState(201, 0)


def stop_twice(vm: Vm) -> None:
    vring = vm.sender()
    assert vm.frontend.stop_ring(vring) == vm.frontend.stop_ring(vring)
    vm.frontend.tell_file(R.SET_VRING_CALL, 1, vring.call_fd)
    vm.frontend.tell_file(R.SET_VRING_KICK, 1, vring.kick_fd)


def same_memory(vm: Vm) -> None:
    for _ in range(20):
        vm.frontend.tell_memory()


def flips(vm: Vm) -> None:
    for _ in range(50):
        vm.frontend.enable(0, False)
        vm.frontend.enable(0, True)


def err_fds(vm: Vm) -> None:
    for _ in range(50):
        vm.frontend.tell_file(R.SET_VRING_ERR, 200, vm.sender().err_fd)
    vm.frontend.tell_file(R.SET_VRING_ERR, 200, -1)


def largest_ring(vm: Vm) -> None:
    for size in (1, 32768, 2, 32768, 1):
        tell_size(vm, 7, size)


def lawful(case: str, outcome: str, play: Callable[[Vm], None]) -> Any:
    return pytest.param(play, id=case, marks=pytest.mark.hostile("messages", case, outcome))


@pytest.mark.parametrize(
    "play",
    [
        lawful("a ring told twice before it starts", "delivered", again),
        lawful("a base beyond the ring's size: used.idx counts", "delivered", wrong_base(200)),
        lawful("a base of 65535: used.idx counts", "delivered", wrong_base(65535)),
        lawful("GET_VRING_BASE of a ring never named, twice", "no effect", unknown_ring),
        lawful("GET_VRING_BASE twice", "delivered", stop_twice),
        lawful("the same memory table 20 times", "delivered", same_memory),
        lawful("SET_VRING_ENABLE 0 and 1, 50 times", "delivered", flips),
        lawful("SET_VRING_ERR 50 times, and for a ring never named", "no effect", err_fds),
        lawful("SET_VRING_NUM repeated, 1 to 32768", "no effect", largest_ring),
    ],
)
def test_what_is_odd_and_lawful(play: Callable[[Vm], None]) -> None:
    with four() as (host, _, _):
        a, b = host.vm(HOSTILE), host.vm(PEER)
        assert carry(a, b, FRAMES) == FRAMES
        a.frontend.fence()
        before = fds()
        play(a)
        a.frontend.fence()
        assert fds() - before in (0, 1), "an err fd at most"
        assert carry(a, b, FRAMES) == FRAMES


def ring_at(**places: int) -> Callable[[Vm], VringAddr]:
    def make(vm: Vm) -> VringAddr:
        return replace(vm.sender().addresses(), **places)

    return make


def overlapping(vm: Vm) -> VringAddr:
    told = vm.sender().addresses()
    return replace(told, used=told.desc, avail=told.desc)


def in_the_gap(vm: Vm) -> VringAddr:
    return replace(vm.sender().addresses(), used=vm.memory.regions[-1].uva - 16)


@pytest.mark.parametrize(
    ("make", "runs"),
    [
        pytest.param(
            overlapping,
            True,
            marks=pytest.mark.hostile("rings", "areas that overlap", "no effect on others"),
        ),
        pytest.param(
            in_the_gap,
            False,
            marks=pytest.mark.hostile("rings", "areas in a gap of memory", "no effect: it waits"),
        ),
        pytest.param(
            ring_at(desc=0),
            False,
            marks=pytest.mark.hostile("rings", "an area at address 0", "no effect: it waits"),
        ),
        pytest.param(
            ring_at(desc=2**64 - 16),
            False,
            marks=pytest.mark.hostile("rings", "an area that wraps", "no effect: it waits"),
        ),
    ],
)
def test_where_a_ring_may_lie(make: Callable[[Vm], VringAddr], runs: bool) -> None:
    with four() as (host, _, _):
        a = host.vm(HOSTILE)
        vring = a.sender()
        a.frontend.stop_ring(vring)
        a.frontend.request(R.SET_VRING_ADDR, make(a), ack=True)
        a.frontend.tell_file(R.SET_VRING_KICK, 1, vring.kick_fd)
        with suppress(ConnectionError):
            a.frontend.fence()
        if host.connected(HOSTILE):
            assert (1 in host.ports[HOSTILE].port.rings) == runs


@pytest.mark.hostile("messages", "rings described before their memory", "delivered")
def test_rings_before_memory() -> None:
    with four() as (host, _, _):
        a, b = host.vm(HOSTILE, start=False), host.vm(PEER)
        a.frontend.reset()
        a.frontend.request(R.SET_FEATURES, U64(a.frontend.features), ack=True)
        for vring in a.frontend.rings:
            a.frontend.tell_ring(vring)
            a.frontend.tell_file(R.SET_VRING_CALL, vring.index, vring.call_fd)
            a.frontend.tell_file(R.SET_VRING_KICK, vring.index, vring.kick_fd)
        a.frontend.enable(0)
        assert host.ports[HOSTILE].port.rings == {}
        a.frontend.tell_memory()
        assert carry(a, b, FRAMES) == FRAMES


# --- Memory ---------------------------------------------------------------------------------------


@pytest.mark.hostile("memory", "regions that touch, cut inside of pages and words", "delivered")
@pytest.mark.hostile("memory", "regions of one file, given once each", "delivered")
def test_regions_that_touch_are_one_span() -> None:
    """A frame in one descriptor that lies across the cut of two regions."""
    assert SMALL[0][0] + SMALL[0][1] == SMALL[1][0]
    with four() as (host, _, _):
        a, b = host.vm(HOSTILE), host.vm(PEER)
        cut = SMALL[1][0]
        for before in (1, 12, 13, 40, 75):
            data = frame(before)
            whole = bytes(12) + data
            a.memory.write(cut - before, whole)
            a.sender().ring.add([(cut - before, len(whole), False)])
            a.sender().ring.kick()
            assert b.receive(1) == [data]


# --- Reset, and leaving ---------------------------------------------------------------------------


@pytest.mark.hostile("messages", "RESET_OWNER amid traffic", "no effect: its rings stop")
@pytest.mark.hostile("messages", "RESET_DEVICE amid traffic", "no effect: its rings stop")
@pytest.mark.parametrize("request_", [R.RESET_OWNER, R.RESET_DEVICE])
def test_reset_amid_traffic(request_: Request) -> None:
    with four() as (host, _, _):
        a, b = host.vm(HOSTILE), host.vm(PEER)
        with Flow(b):
            assert a.receive(20)
            a.frontend.request(request_, ack=True)
            a.frontend.fence()
            assert host.ports[HOSTILE].port.rings == {}
        a.close()
        host.reason(HOSTILE)
        back = host.vm(HOSTILE)
        assert carry(back, b, FRAMES) == FRAMES


@pytest.mark.hostile("process", "a front-end that leaves with rings running", "delivered to others")
def test_nothing_is_left_of_who_has_left() -> None:
    """Memory, log, rings, fds; its patch stays connected, and its port can be used again."""
    with four() as (host, _, _):
        b = host.vm(PEER)
        memory = GuestMemory(((0, 1 << 20), (1 << 20, 1 << 20)), separate=True)
        b.frontend.fence()
        before = fds(), maps()
        with LogFile() as log:
            a = Vm(host.plug(HOSTILE), memory=memory, fill=False)
            log.begin(a.frontend)
            a.send(FRAMES[:8])
            assert b.receive(8) == FRAMES[:8]
            a.frontend.close()
            host.reason(HOSTILE)
        assert (fds(), maps()) == before
        assert host.ports[HOSTILE].port.rings == {}
        memory.close()
        assert host.connected(PEER)
        back = host.vm(HOSTILE)
        assert carry(b, back, FRAMES) == FRAMES


# --- What the kernel lacks ------------------------------------------------------------------------


@pytest.mark.hostile("process", "no room in epoll for a kick fd", "port closes")
@pytest.mark.parametrize("mode", ["poll", "interrupt"])
def test_a_kick_that_cannot_be_waited_for(mode: str, tmp_path: Any) -> None:
    """As if the kernel had no room: it takes no plain file, which the kick is exchanged for."""
    with four(mode=mode) as (host, _, _):
        b, port = host.vm(PEER), host.ports[HOSTILE]
        plain = os.open(tmp_path, os.O_RDONLY)

        def attach(ring: Ring) -> None:
            os.dup2(plain, ring.kick_fd, inheritable=False)
            port.port.attach(ring)

        port.attach = attach
        a = host.vm(HOSTILE, start=False)
        with suppress(Disconnected):
            a.start()
        reason = "the kernel has no room to wait for its kicks: free memory or raise"
        assert host.reason(HOSTILE).startswith(reason)
        os.close(plain)
        port.attach = port.port.attach
        back = host.vm(HOSTILE)
        assert carry(back, b, FRAMES) == FRAMES
        eventually(lambda: host.counters(HOSTILE)["faults"] == 1)
