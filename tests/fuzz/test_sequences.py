"""Whole sequences of messages on a real back-end: any, in any order, with any files, to a port
whose memory is poked and cut short meanwhile. Nothing but refusals comes of it, and nothing stays.

FUZZ_EXAMPLES=1000 looks longer.
"""

import gc
import os
import socket
from contextlib import ExitStack, suppress
from struct import pack, unpack

import pytest
from host import PATIENCE_S, Host, frame
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from messages import FEATURES, NET, messages

from vhostfast.backend import connection
from vhostfast.backend.reconcile import World
from vhostfast.protocol.message import (
    HEADER_SIZE,
    SPEC,
    U64,
    LogBase,
    MemoryTable,
    OneRegion,
    Region,
    RegionKey,
    Request,
    VringAddr,
    VringFile,
    VringState,
    encode,
)
from vhostfast.protocol.session import Session

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "12"))
STEPS = 25
MEMORY_SIZE, LOG_SIZE, UVA = 1 << 20, 1 << 12, 0x10000
KINDS = ("right", "right", "right", "right", "eventfd", "memory", "short", "pipe", "socket", "zero")
OF_A_FILE = (Request.SET_MEM_TABLE, Request.ADD_MEM_REG, Request.SET_LOG_BASE)
MEMORY = Region(UVA, 0x10000, UVA, 0)
BESIDE = [Region(UVA + at, 0x1000, UVA + at, 0x20000 + at) for at in (-0x1000, 0x10000)]
# In the file: avail.idx and entries of the rings that `begun` starts, their descriptors, anywhere.
PLACES = st.sampled_from([0x402, 0x404, 0x1402, 0x1404, 0, 0x1000]) | st.integers(0, 0x4000)


def open_fds() -> dict[str, str]:
    """What is open, by name; the directory that is listed has gone when it is looked at."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def begun(index: int, logged: bool):
    """What starts ring `index`, each message with its number of fds."""
    area = UVA + 0x1000 * index
    yield Request.SET_FEATURES, U64(FEATURES[2 if logged else 1]), 0
    yield Request.SET_PROTOCOL_FEATURES, U64(int(NET.protocol_features)), 0
    yield Request.SET_MEM_TABLE, MemoryTable((MEMORY,)), 1
    yield Request.SET_VRING_NUM, VringState(index, 16), 0
    yield Request.SET_VRING_BASE, VringState(index, 0), 0
    yield Request.SET_VRING_ADDR, VringAddr(index, 0, area, area + 0x800, area + 0x400, area), 0
    yield Request.SET_VRING_CALL, VringFile(index, True), 1
    yield Request.SET_VRING_KICK, VringFile(index, True), 1
    yield Request.SET_VRING_ENABLE, VringState(index, 1), 0
    if logged:
        yield Request.SET_LOG_BASE, LogBase(LOG_SIZE, 0), 1


class Thorough(World):
    """Of a message about one vring that one is looked at, of one about memory that is the same
    none: had all been, it would be the same."""

    def reconcile(self, session: Session, of: tuple[int, ...] | None = None) -> None:
        super().reconcile(session, of)
        before = self.told()
        super().reconcile(session)
        assert self.told() == before

    def told(self) -> dict[int, tuple[object, ...]]:
        return {
            index: (shape, ring, ring.call_fd, ring.memory, ring.log, ring.used_log)
            for index, (shape, ring) in self._rings.items()
        }


class Sequences(RuleBasedStateMachine):
    """Port 0 is attacked, ports 2 and 3 talk to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        patch = pytest.MonkeyPatch()
        self.stack.callback(patch.undo)
        patch.setattr(connection, "World", Thorough)
        self.host = self.stack.enter_context(Host("patch", ports=4, offer=NET))
        self.honest = self.host.vm(2), self.host.vm(3)
        self.count = 0
        self.sock: socket.socket | None = None
        self.files = {"memory": self.file(MEMORY_SIZE), "short": self.file(100)}
        self.files["eventfd"] = self.keep(os.eventfd(0, os.EFD_NONBLOCK))
        self.files["zero"] = self.keep(os.open("/dev/zero", os.O_RDWR))
        self.files["pipe"], other = os.pipe()
        self.files["socket"] = socket.socket().detach()
        for fd in (self.files["pipe"], other, self.files["socket"]):
            self.keep(fd)
        self.a_frame_arrives()
        self.idle = open_fds()

    def keep(self, fd: int) -> int:
        self.stack.callback(os.close, fd)
        return fd

    def file(self, size: int) -> int:
        fd = self.keep(os.memfd_create("fuzz"))
        os.ftruncate(fd, size)
        return fd

    # --- What is done

    def send(self, header: bytes, payload: bytes, fds: list[int]) -> None:
        """A message, and one that is always answered: behind its answer the first has been served.
        None comes where the first was the end."""
        if self.sock is None:
            self.sock = self.host.plug(0)
            self.sock.settimeout(PATIENCE_S)
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self.sock, [header + payload], fds)
            self.sock.sendall(pack("=III", Request.GET_FEATURES, 1, 0))
        if not self.answered():
            self.leave()

    def answered(self) -> bool:
        assert self.sock is not None
        while True:
            try:
                header = self.sock.recv(HEADER_SIZE, socket.MSG_WAITALL)
            except ConnectionResetError:
                return False
            if len(header) < HEADER_SIZE:
                return False
            request, _, size = unpack("=III", header)
            self.sock.recv(size, socket.MSG_WAITALL)
            if request == Request.GET_FEATURES:
                return True

    def chosen(self, request: int, kind: str) -> int:
        if kind == "right":
            kind = "memory" if request in OF_A_FILE else "eventfd"
        return self.files[kind]

    @initialize(index=st.integers(0, 1), logged=st.booleans())
    def bring_up(self, index: int, logged: bool) -> None:
        self.begin(index, logged)

    @rule(index=st.integers(0, 3), logged=st.booleans())
    def begin(self, index: int, logged: bool) -> None:
        runs = self.sock is not None
        for request, payload, fd_count in begun(index, logged):
            if runs and request == Request.SET_FEATURES:
                continue  # it is refused while rings run
            data = encode(request, payload)
            fds = [self.chosen(request, "right")] * fd_count
            self.send(data[:HEADER_SIZE], data[HEADER_SIZE:], fds)

    @rule(raw=messages(), kinds=st.lists(st.sampled_from(KINDS), min_size=9, max_size=9))
    def any_message(self, raw: tuple[bytes, bytes, int], kinds: list[str]) -> None:
        header, payload, fd_count = raw
        request, _, size = unpack("=III", header)
        if size != len(payload) or request == Request.GET_FEATURES:
            return  # of streams that don't keep in step: tests/fuzz/test_decode.py
        self.send(header, payload, [self.chosen(request, kind) for kind in kinds[:fd_count]])

    @rule(request=st.sampled_from(list(SPEC)), index=st.integers(0, 3))
    def of_a_ring(self, request: Request, index: int) -> None:
        if SPEC[request].payload is VringState:
            data = encode(request, VringState(index, 16))
            self.send(data[:HEADER_SIZE], data[HEADER_SIZE:], [])

    @rule(
        request=st.sampled_from([Request.ADD_MEM_REG, Request.REM_MEM_REG]),
        region=st.sampled_from([MEMORY, *BESIDE]),
        kind=st.sampled_from(["memory", "memory", "short"]),
    )
    def of_a_region(self, request: Request, region: Region, kind: str) -> None:
        """That of the rings, or one beside it, once more or no more."""
        adds = request == Request.ADD_MEM_REG
        data = encode(request, OneRegion(region) if adds else RegionKey.of(region))
        self.send(data[:HEADER_SIZE], data[HEADER_SIZE:], [self.files[kind]] * adds)

    @rule(at=PLACES, data=st.binary(min_size=1, max_size=40))
    def poke(self, at: int, data: bytes) -> None:
        """The guest stores to its rings, and kicks."""
        os.pwrite(self.files["memory"], data, at)
        with suppress(BlockingIOError):
            os.eventfd_write(self.files["eventfd"], 1)

    @rule(size=st.sampled_from([0, 0x1000, 0x8000]))
    def cut_short(self, size: int) -> None:
        """The file of memory and log ends earlier, for a while."""
        os.ftruncate(self.files["memory"], size)
        os.eventfd_write(self.files["eventfd"], 1)
        self.a_frame_arrives()
        os.ftruncate(self.files["memory"], MEMORY_SIZE)

    @rule()
    def leave(self) -> None:
        """The connection ends with a reason, whatever went before; an exception would come out
        here. Nothing of it is left."""
        if self.sock is None:
            return
        self.sock.close()
        self.sock = None
        assert isinstance(self.host.reason(0), str)
        assert self.host.ports[0].port.rings == {}
        assert open_fds() == self.idle, "an fd was kept"
        with open("/proc/self/maps") as maps:
            assert "memfd:fuzz" not in maps.read()

    # --- What holds

    @invariant()
    def a_frame_arrives(self) -> None:
        self.count += 1
        a, b = self.honest
        a.send([frame(self.count)])
        assert b.receive(1) == [frame(self.count)]

    def teardown(self) -> None:
        self.leave()
        self.a_frame_arrives()
        self.stack.close()
        gc.collect()  # a fabric, its ports and its workers know each other


Sequences.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.hostile(
    "messages", "any messages, in any order, with any files, on rings that change",
    "refused, or the port closes",
)  # fmt: skip
class TestSequences(Sequences.TestCase):
    """By Hypothesis."""
