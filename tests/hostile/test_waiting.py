"""A front-end that sends files behind which somebody doesn't answer: only its own port waits."""

import os
import socket
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from daemon import daemon, ports, wait_for
from host import PATIENCE_S, Host, carry, eventually, frame
from soak import Size
from waiting import (
    KINDS,
    Waiting,
    close,
    closing_takes,
    held,
    held_epoll,
    lingering,
    unanswered,
)

from vhostfast.backend import closing
from vhostfast.device.endpoint import Listener
from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.memory import UVA_OFFSET
from vhostfast.protocol.message import (
    U64,
    LogBase,
    LogFile,
    MemoryTable,
    OneRegion,
    Payload,
    Region,
    Request,
    VringFile,
    encode,
)

R = Request
HOSTILE, C, D = 0, 2, 3
FRAMES = [frame(i) for i in range(40)]
CONNECTIONS = 200

KICK = encode(R.SET_VRING_KICK, VringFile(0, True))
NONSENSE = b"\xff" * 12


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_to_close_it_waits(kind: Waiting) -> None:
    """So that the tests below say something."""
    assert closing_takes(kind, 0.1)


@contextmanager
def others() -> Iterator[tuple[Host, Callable[[], None]]]:
    """A switch, and what asserts that its other ports go on."""
    with Host("patch", ports=4) as host:
        c, d = host.vm(C), host.vm(D)

        def go_on() -> None:
            c.frontend.fence()
            assert carry(c, d, FRAMES) == FRAMES
            assert carry(d, c, FRAMES) == FRAMES
            assert host.connected(C)
            assert host.connected(D)

        go_on()
        yield host, go_on
        go_on()


Parts = Sequence[tuple[bytes, int, int]]  # bytes, fds beside them, flags


@contextmanager
def asleep(host: Host) -> Iterator[None]:
    """The control plane sees nothing of what is done inside before it is all done."""
    gate, waits = threading.Event(), threading.Event()

    def wait() -> None:
        waits.set()
        gate.wait(PATIENCE_S)

    host.loop.call_soon_threadsafe(wait)
    assert waits.wait(PATIENCE_S)
    yield
    gate.set()


def send(host: Host, sock: socket.socket, parts: Parts, fd: int) -> None:
    """Send the parts; the fd's last reference is in the queue when the other end looks."""
    with asleep(host):
        for data, count, flags in parts:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd] * count))
            sock.sendmsg([data], [rights] if count else [], flags)
        let_go(fd)


def let_go(fd: int) -> None:
    """Without waiting, though a flush may."""
    threading.Thread(target=close, args=(fd,), daemon=True).start()
    eventually(lambda: not os.path.lexists(f"/proc/self/fd/{fd}"))


def peer_sees_the_end(sock: socket.socket) -> None:
    sock.settimeout(PATIENCE_S)
    with suppress(ConnectionResetError):
        while sock.recv(4096):
            pass


WAYS: dict[str, Parts] = {
    "as kick": [(KICK, 1, 0), (NONSENSE, 0, 0)],
    "beside half a message": [(KICK[:5], 1, 0)],
    "nine times": [(KICK, 9, 0)],
    "253 times": [(KICK, 253, 0)],
    "with the payload": [(KICK[:12], 0, 0), (KICK[12:], 1, 0)],
    "unread when its port closes": [(NONSENSE, 0, 0), (KICK, 1, 0)],
    "beside a byte out of band": [(KICK[:1], 1, socket.MSG_OOB), (NONSENSE, 0, 0)],
}


def sent(kind: str, way: str) -> object:
    mark = pytest.mark.hostile("fds", f"{kind}, {way}", "port closes, no effect on others")
    return pytest.param(KINDS[kind], WAYS[way], marks=mark, id=f"{kind} {way}")


@pytest.mark.parametrize(("kind", "parts"), [sent(kind, way) for kind in KINDS for way in WAYS])
def test_a_file_that_cannot_be_closed(kind: Waiting, parts: Parts) -> None:
    with others() as (host, go_on):
        sock = host.plug(HOSTILE)
        with sock, kind() as fd:
            send(host, sock, parts, fd)
            sock.shutdown(socket.SHUT_WR)
            peer_sees_the_end(sock)
            go_on()
        host.reason(HOSTILE)
        host.vm(HOSTILE).frontend.fence()


@pytest.mark.hostile("fds", "a kick whose close waits, replaced over and over", "no effect")
def test_a_kick_that_cannot_be_closed_is_replaced() -> None:
    """Its messages wait when too many fds do, and are answered when these are closed."""
    kicks = [os.eventfd(0) for _ in range(2 * closing.WAITING_MAX)]
    with others() as (host, go_on), host.plug(HOSTILE) as sock:
        with held() as fd:
            send(host, sock, [(KICK, 1, 0)], fd)
            socket.send_fds(sock, [KICK], kicks[:1])
            assert answered(sock, PATIENCE_S)
            for kick in kicks:
                socket.send_fds(sock, [KICK], [kick])
            assert not answered(sock, 0.3)
            go_on()
        assert answered(sock, PATIENCE_S)
        sock.close()
        host.reason(HOSTILE)
    closing.close_fds(kicks)


def answered(sock: socket.socket, timeout_s: float) -> bool:
    sock.settimeout(timeout_s)
    sock.send(encode(R.GET_FEATURES))
    with suppress(TimeoutError):
        return len(sock.recv(20)) == 20
    return False


# --- Files that may not even be looked at

FIRST = Region(0, 4096, UVA_OFFSET, 0)
MEMORY = Region(16 << 20, 4096, (16 << 20) + UVA_OFFSET, 0)


FUSE, EPOLL = "a file on FUSE that isn't answered", "an epoll that is held"


def asking(
    request: Request, payload: Payload, outcome: str, name: str = "", what: str = FUSE
) -> object:
    case, closes = f"{what}, in {name or request.name}", outcome == "port closes"
    kind = held_epoll if what == EPOLL else unanswered
    mark = pytest.mark.hostile("memory", case, f"{outcome}, no effect on others")
    return pytest.param(request, payload, closes, kind, marks=mark, id=case)


@pytest.mark.parametrize(
    ("request_", "payload", "closes", "kind"),
    [
        asking(R.SET_MEM_TABLE, MemoryTable((MEMORY,)), "port closes"),
        asking(R.ADD_MEM_REG, OneRegion(MEMORY), "port closes"),
        asking(R.ADD_MEM_REG, OneRegion(FIRST), "refused", "ADD_MEM_REG once more"),
        asking(R.SET_LOG_BASE, LogBase(4096, 0), "port closes"),
        asking(R.SET_LOG_FD, LogFile(), "refused"),
        asking(R.SET_VRING_CALL, VringFile(0, True), "refused"),
        asking(R.SET_VRING_ERR, VringFile(0, True), "refused"),
        asking(R.SET_MEM_TABLE, MemoryTable((MEMORY,)), "port closes", what=EPOLL),
        asking(R.ADD_MEM_REG, OneRegion(FIRST), "refused", "ADD_MEM_REG once more", what=EPOLL),
        asking(R.SET_LOG_BASE, LogBase(4096, 0), "port closes", what=EPOLL),
    ],
)
def test_a_file_that_asks_its_server(
    request_: Request, payload: Payload, closes: bool, kind: Waiting
) -> None:
    with others() as (host, go_on):
        vm = host.vm(HOSTILE, regions=((FIRST.gpa, FIRST.size), (1 << 20, 1 << 20)))
        with kind() as fd, socket.socket(fileno=os.dup(vm.frontend.wire.fileno())) as sock:
            send(host, sock, [(encode(request_, payload, need_reply=True), 1, 0)], fd)
            go_on()
            if closes:
                peer_sees_the_end(sock)
            else:
                sock.settimeout(PATIENCE_S)
                assert sock.recv(20) == encode(request_, U64(1), reply=True)
                vm.frontend.fence()


# --- Who isn't served, and who comes without end


@pytest.mark.hostile(
    "process", "a second front-end whose fds can't be closed", "refused, no effect on others"
)
def test_a_second_front_end_s_fds(tmp_path: Path) -> None:
    with Host(ports=2) as host, ExitStack() as stack:
        path, _ = host.listen(tmp_path)
        wait_for(path)
        first = Frontend(path, stack.enter_context(GuestMemory(((0, 1 << 20),))))
        stack.callback(first.close)
        first.fence()
        with lingering() as fd, socket.socket(socket.AF_UNIX) as sock:
            with asleep(host):
                connect_and_send(sock, path, fd)
            peer_sees_the_end(sock)
            first.fence()
        first.reconnect(path)
        first.fence()


def connect_and_send(sock: socket.socket, path: Path, fd: int) -> None:
    sock.connect(str(path))
    socket.send_fds(sock, [KICK], [fd])
    let_go(fd)


@pytest.mark.hostile("process", "fds of who was never accepted can't be closed", "no effect")
def test_a_listener_closes_without_those_who_wait(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with lingering() as fd, socket.socket(socket.AF_UNIX) as sock:
        listener = Listener("port", str(path))
        connect_and_send(sock, path, fd)
        thread = threading.Thread(target=listener.close)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert not path.exists()
        peer_sees_the_end(sock)


@pytest.mark.hostile(
    "process", "200 front-ends whose fds can't be closed", "port closes, no effect on others"
)
def test_a_port_has_one_thread_and_few_fds(tmp_path: Path) -> None:
    """And the switch ends when it is told to."""
    paths = [tmp_path / "a", tmp_path / "b"]
    with daemon(*ports(*paths), log=tmp_path / "log") as switch, ExitStack() as stack:
        wait_for(*paths)
        other = Frontend(paths[1], stack.enter_context(GuestMemory(((0, 1 << 20),))))
        stack.callback(other.close)
        other.fence()
        before = Size.of(switch.pid)
        for _ in range(CONNECTIONS):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                with suppress(BlockingIOError):  # as many wait as may
                    sock.connect(str(paths[0]))
                    fd = stack.enter_context(lingering())
                    socket.send_fds(sock, [KICK[:12]], [fd])
                    let_go(fd)
            other.fence()
        eventually(lambda: "doesn't let us close it" in (tmp_path / "log").read_text())
        now = Size.of(switch.pid)
        assert now.threads <= before.threads + 1
        assert now.fds <= before.fds + 4
        switch.end()
    said = (tmp_path / "log").read_text()
    assert said.count("doesn't let us close it") == 1
