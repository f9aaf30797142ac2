"""Messages that break a rule, each on a running connection beside honest traffic: refused with a
reason, at nobody else's cost, and neither an fd nor a map is left of it."""

import os
import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import chain

import pytest
from host import PATIENCE_S, SMALL, Flow, Host, Vm, closed

from vhostfast.protocol.message import Flag, Region, Request

FOUR_KIB = Region(0, 4096, 1 << 40, 0)
FREE = sum(SMALL[-1])  # the first GPA beyond a guest's memory


def open_fds() -> int:
    closed()
    return len(os.listdir("/proc/self/fd"))


def maps() -> int:
    """How many maps of files this process has; those of the front-end's memory among them."""
    with open("/proc/self/maps") as file:
        return sum("memfd:" in line or "/memory" in line for line in file)


# --- What comes instead of the right kind of file

KINDS: dict[str, Callable[[ExitStack, str], int]] = {
    "eventfd": lambda _, __: os.eventfd(0),
    "memfd": lambda _, __: _memfd(1 << 20),
    "short memfd": lambda _, __: _memfd(4095),
    "pipe": lambda stack, _: _pipe(stack),
    "socket": lambda stack, _: _socket(stack),
    "directory": lambda _, folder: os.open(folder, os.O_RDONLY),
    "device": lambda _, __: os.open("/dev/zero", os.O_RDWR),
    "/dev/null": lambda _, __: os.open("/dev/null", os.O_RDWR),
    "proc": lambda _, __: os.open("/proc/self/comm", os.O_RDWR),
    "read-only": lambda _, folder: _read_only(folder),
}


def _memfd(size: int) -> int:
    fd = os.memfd_create("memory")
    os.ftruncate(fd, size)
    return fd


def _pipe(stack: ExitStack) -> int:
    other, fd = os.pipe()
    stack.callback(os.close, other)
    return fd


def _socket(stack: ExitStack) -> int:
    other, sock = socket.socketpair()
    stack.enter_context(other)
    return sock.detach()


def _read_only(folder: str) -> int:
    path = os.path.join(folder, "memory")
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    return os.open(path, os.O_RDONLY)


@dataclass(frozen=True)
class Bad:
    """A message that is to be refused, and words of the reason."""

    name: str
    data: bytes
    words: str
    fds: list[str] = field(default_factory=list)
    ends: bool = False  # though an acknowledgement was asked for: nothing can follow it


def raw(request: int, payload: bytes = b"", flags: int = 1, size: int | None = None) -> bytes:
    return struct.pack("=III", request, flags, len(payload) if size is None else size) + payload


def table(*regions: Region) -> bytes:
    body = struct.pack("=I4x", len(regions))
    return raw(Request.SET_MEM_TABLE, body + b"".join(region.pack() for region in regions))


def region(*numbers: int) -> bytes:
    """A table of one region, whatever its numbers."""
    return raw(Request.SET_MEM_TABLE, struct.pack("=I4x4Q", 1, *numbers))


def added(*numbers: int) -> bytes:
    return raw(Request.ADD_MEM_REG, struct.pack("=8x4Q", *numbers))


def log(size: int, offset: int = 0) -> bytes:
    return raw(Request.SET_LOG_BASE, struct.pack("=QQ", size, offset))


def state(request: Request, index: int, num: int) -> bytes:
    return raw(request, struct.pack("=II", index, num))


def u64(request: Request, value: int) -> bytes:
    return raw(request, struct.pack("=Q", value))


BAD = {
    # those that can't be told apart from the next message end the connection
    "stream": [
        Bad("version 2", raw(Request.SET_OWNER, flags=2), "version", ends=True),
        Bad("a reply", raw(Request.SET_OWNER, flags=1 | Flag.REPLY), "REPLY", ends=True),
        Bad("unknown flags", raw(Request.SET_OWNER, flags=1 | 16), "flags", ends=True),
        Bad("size over the limit", raw(Request.SET_OWNER, size=4097), "size is 4097", ends=True),
        Bad("request 0", raw(0), "request is 0"),
        Bad("unknown request", raw(99, b"12345678"), "request is 99"),
        Bad("too long", raw(Request.SET_OWNER, bytes(8)), "SET_OWNER: size is 8"),
        Bad("too short", raw(Request.SET_FEATURES, bytes(4)), "size is 4, must be 8"),
    ],
    "messages": [
        Bad("features", u64(Request.SET_FEATURES, 1 << 10), "not offered"),
        Bad("protocol features", u64(Request.SET_PROTOCOL_FEATURES, 1 << 8), "not offered"),
        Bad("vring 256", state(Request.SET_VRING_NUM, 256, 64), "vring index is 256"),
        Bad("vring 2^31", state(Request.GET_VRING_BASE, 2**31 - 1, 0), "vring index", ends=True),
        Bad("vring of 2^32 - 1", state(Request.SET_VRING_BASE, 2**32 - 1, 0), "vring index"),
        Bad(
            "high bits beside a kick's index", u64(Request.SET_VRING_KICK, 1 << 63), "bits 9 to 63"
        ),
        Bad("high bits beside a call's index", u64(Request.SET_VRING_CALL, 1 << 9), "bits 9 to 63"),
        Bad("features while rings run", u64(Request.SET_FEATURES, 1 << 30), "while rings run"),
        Bad("base while it runs", state(Request.SET_VRING_BASE, 1, 7), "running ring"),
        Bad("GET_INFLIGHT_FD, not offered", raw(31, bytes(20)), "request is 31"),
        Bad("SET_INFLIGHT_FD, not offered", raw(32, b"\xff" * 20), "request is 32", ["memfd"]),
        Bad("GET_MAX_MEM_SLOTS too long", raw(36, bytes(8)), "size is 8, must be 0", ends=True),
        Bad("ADD_MEM_REG too short", raw(37, bytes(32)), "size is 32, must be 40", ["memfd"]),
        Bad("REM_MEM_REG too long", raw(38, bytes(48)), "size is 48, must be 40"),
        Bad("size 0", state(Request.SET_VRING_NUM, 0, 0), "size is 0"),
        Bad("size 3", state(Request.SET_VRING_NUM, 0, 3), "power of two"),
        Bad("size 65536", state(Request.SET_VRING_NUM, 0, 65536), "32768"),
        Bad("size while it runs", state(Request.SET_VRING_NUM, 0, 128), "while the ring runs"),
        Bad("base 65536", state(Request.SET_VRING_BASE, 4, 65536), "65535"),
        Bad("enable 2", state(Request.SET_VRING_ENABLE, 0, 2), "0 or 1"),
        Bad("mtu 67", u64(Request.NET_SET_MTU, 67), "mtu is 67"),
        Bad("mtu 65536", u64(Request.NET_SET_MTU, 65536), "mtu is 65536"),
        Bad("mtu 2^64 - 1", u64(Request.NET_SET_MTU, 2**64 - 1), "mtu is 18446744073709551615"),
        Bad("SEND_RARP of nobody", raw(Request.SEND_RARP, bytes(8)), "one station"),
        Bad("SEND_RARP of a group", raw(Request.SEND_RARP, b"\1\0\0\0\0\1\0\0"), "one station"),
        Bad(
            "addr not aligned",
            raw(Request.SET_VRING_ADDR, struct.pack("=IIQQQQ", 4, 0, 8, 0, 0, 0)),
            "multiple of 16",
        ),
    ],
    "fds": [
        Bad("surplus fd", raw(Request.SET_OWNER), "number of fds is 1", ["eventfd"]),
        Bad("two kicks", u64(Request.SET_VRING_KICK, 4), "number of fds is 2", ["eventfd"] * 2),
        Bad("no kick", u64(Request.SET_VRING_KICK, 4), "number of fds is 0"),
        Bad("NOFD with fd", u64(Request.SET_VRING_CALL, 4 | 256), "fds is 1", ["eventfd"]),
        Bad("eight fds on SET_OWNER", raw(Request.SET_OWNER), "fds is 8", ["eventfd"] * 8),
        Bad("253 fds", raw(Request.SET_OWNER), "number of fds", ["eventfd"] * 253, ends=True),
        Bad("nine fds", raw(Request.SET_OWNER), "number of fds", ["eventfd"] * 9, ends=True),
        Bad("200 fds", raw(Request.SET_OWNER), "number of fds", ["eventfd"] * 200, ends=True),
        *(
            Bad(
                f"{kind} as {request.name.removeprefix('SET_VRING_')}",
                u64(request, 4),
                "must be an eventfd",
                [kind],
            )
            for request in (
                Request.SET_LOG_FD,
                Request.SET_VRING_KICK,
                Request.SET_VRING_CALL,
                Request.SET_VRING_ERR,
            )
            for kind in ("memfd", "pipe", "socket", "directory", "device", "/dev/null")
        ),
    ],
    "memory": [
        Bad("a region of 2^46 bytes", table(Region(0, 1 << 46, 0, 0)), "address space", ["memfd"]),
        Bad("a region of size 0", region(0, 0, 0, 0), "size is 0", ["memfd"]),
        Bad("a gpa that wraps", region(2**64 - 4096, 8192, 0, 0), "gpa is", ["memfd"]),
        Bad("a uva that wraps", region(0, 8192, 2**64 - 4096, 0), "uva is", ["memfd"]),
        Bad("an offset that wraps", region(0, 8192, 0, 2**64 - 4096), "mmap_offset is", ["memfd"]),
        Bad(
            "a gpa and a size of 2^64 - 1", region(2**64 - 1, 2**64 - 1, 0, 0), "gpa is", ["memfd"]
        ),
        Bad("a file whose pages may not come", table(FOUR_KIB), "file system", ["proc"], ends=True),
        Bad("no region", table(), "number of regions is 0"),
        Bad("nine regions", table(*[FOUR_KIB] * 9), "size", ["memfd"] * 8),
        Bad("overlap", table(FOUR_KIB, FOUR_KIB), "overlap", ["memfd"] * 2),
        Bad("too few memfds", table(FOUR_KIB, Region(4096, 4096, 0, 0)), "fds is 1", ["memfd"]),
        Bad("short file", table(FOUR_KIB), "file's size, 4095", ["short memfd"], ends=True),
        Bad(
            "offset past the file",
            table(Region(0, 4096, 0, 1 << 20)),
            "file's size",
            ["memfd"],
            ends=True,
        ),
        Bad(
            "a table whose second file is bad",
            table(FOUR_KIB, Region(4096, 4096, 0, 0)),
            "regular file",
            ["memfd", "pipe"],
            ends=True,
        ),
        *(
            Bad(f"{kind} as memory", table(FOUR_KIB), "regular file", [kind], ends=True)
            for kind in ("eventfd", "pipe", "socket", "directory", "device", "/dev/null")
        ),
        Bad("a region added without an fd", added(FREE, 4096, 0, 0), "number of fds is 0"),
        Bad("a region added with two fds", added(FREE, 4096, 0, 0), "fds is 2", ["memfd"] * 2),
        Bad("a region removed with two fds", raw(38, bytes(40)), "fds is 2", ["memfd"] * 2),
        Bad("a region added of size 0", added(FREE, 0, 0, 0), "size is 0", ["memfd"]),
        Bad("an added gpa that wraps", added(2**64 - 4096, 8192, 0, 0), "gpa is", ["memfd"]),
        Bad("an added uva that wraps", added(FREE, 8192, 2**64 - 4096, 0), "uva is", ["memfd"]),
        Bad(
            "an added offset that wraps",
            added(FREE, 8192, 0, 2**64 - 4096),
            "mmap_offset is",
            ["memfd"],
        ),
        Bad("an added region that overlaps", added(FREE - 1, 2, 0, 0), "overlap", ["memfd"]),
        Bad("an added region round all", added(0, 1 << 40, 0, 0), "overlap", ["memfd"]),
        Bad("an added region of 2^46 bytes", added(FREE, 1 << 46, 0, 0), "space", ["memfd"]),
        Bad(
            "an added region past its file",
            added(FREE, 4096, 0, 1 << 20),
            "guest memory: its end in the file",
            ["memfd"],
            ends=True,
        ),
        Bad("a pipe as added memory", added(FREE, 4096, 0, 0), "regular file", ["pipe"], ends=True),
        Bad("read-only memory", table(FOUR_KIB), "Permission denied", ["read-only"], ends=True),
    ],
    "log": [  # its own reply can't say no
        Bad("log without fd", log(104), "number of fds is 0, must be 1", ends=True),
        Bad("two logs", log(104), "number of fds is 2, must be 1", ["memfd"] * 2, ends=True),
        Bad("log of over 8 GiB", log((1 << 33) + 8), "at most 0x200000000", ["memfd"], ends=True),
        Bad("log of size 0", log(0), "log's size is 0, must be over 0", ["memfd"], ends=True),
        Bad(
            "log too small",
            log(103),
            "end of logged memory is 0x340000, must be at most 0x338000 by the log's size",
            ["memfd"],
            ends=True,
        ),
        Bad(
            "log past its file", log(4096), "4096, must be at most the", ["short memfd"], ends=True
        ),
        Bad("log at 512", log(104, 512), "log's offset is 512", ["memfd"], ends=True),
        Bad("log past its file by offset", log(104, 1 << 20), "file's size", ["memfd"], ends=True),
        Bad(
            "log that wraps",
            log(2**64 - 4096, 8192),
            "log's offset is 0x2000",
            ["memfd"],
            ends=True,
        ),
        *(
            Bad(f"{kind} as log", log(104), "regular file", [kind], ends=True)
            for kind in ("eventfd", "pipe", "socket", "directory", "device", "/dev/null")
        ),
        Bad("read-only log", log(104), "Permission denied", ["read-only"], ends=True),
    ],
}


def rows(test: Callable[..., None]) -> Callable[..., None]:
    """A row of docs/security.md for each of BAD."""
    for area, bads in BAD.items():
        for bad in bads:
            test = pytest.mark.hostile(area, bad.name, "port closes" if bad.ends else "refused")(
                test
            )
    return test


def send_with(sock: socket.socket, bad: Bad, flags: int, folder: str) -> None:
    request, own_flags, size = struct.unpack_from("=III", bad.data)
    data = struct.pack("=III", request, own_flags | flags, size) + bad.data[12:]
    with ExitStack() as stack:
        fds = []
        for kind in bad.fds:
            fds.append(KINDS[kind](stack, folder))
            stack.callback(os.close, fds[-1])
        socket.send_fds(sock, [data], fds)


@rows
@pytest.mark.parametrize("asked", [True, False], ids=["asked", "unasked"])
def test_bad_messages(asked, caplog, tmp_path):
    """Each is refused with a non-zero acknowledgement where one was asked for, else it is the end;
    with a reason, a count, no fd left, and nobody else notices."""
    with Host(ports=4) as host:
        a, b = host.vm(2), host.vm(3)
        for vm in (a, b):
            vm.frontend.fence()
        idle = open_fds(), maps()
        with Flow(a, b) as flow:
            for number, bad in enumerate(chain(*BAD.values()), 1):
                caplog.clear()
                vm = host.vm(0, fill=False, ring_size=16)
                refuse(host, vm, bad, asked, str(tmp_path))
                vm.close()
                host.reason(0)
                assert host.ports[0].port.rings == {}
                assert host.counters(0)["messages_refused"] == number, bad.name
                refused = [message for message in caplog.messages if "refused" in message]
                assert len(refused) == 1, bad.name
                assert refused[0].startswith("port0: refused: "), bad.name
                assert bad.words in refused[0], bad.name
                fds, mapped = idle
                assert (open_fds(), maps()) == (fds, mapped + number), bad.name  # the guests' own
                flow.take(1)
        flow.assert_whole()
        assert host.counters(2)["messages_refused"] == 0


def refuse(host: Host, vm: Vm, bad: Bad, asked: bool, folder: str) -> None:
    vm.frontend.fence()
    before = open_fds(), maps()
    with socket.socket(fileno=os.dup(vm.frontend.wire.fileno())) as sock:
        sock.settimeout(PATIENCE_S)
        send_with(sock, bad, Flag.NEED_REPLY if asked else 0, folder)
        if asked and not bad.ends:
            request = struct.unpack_from("=I", bad.data)[0]
            assert sock.recv(100) == struct.pack("=IIIQ", request, 5, 8, 1), bad.name
            vm.frontend.fence()
            assert host.connected(0), bad.name
            left = open_fds() - 1, maps()  # this socket's
            assert left == before, f"{bad.name}: an fd or a map was kept"
        else:
            assert bad.words in host.reason(0), bad.name
            with suppress(ConnectionResetError):
                assert len(sock.recv(100)) in (0, 20), bad.name
