"""The life of a port's socket, on real unix sockets; only a connection's work is stood in for."""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import resource
import socket
import stat
import subprocess
import sys
import tempfile
import time
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from vhostfast.device import endpoint
from vhostfast.device.endpoint import Connector, Listener
from vhostfast.errors import EnvironmentLacks

LISTEN_ON = (
    "import socket,sys,time; s=socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen()"
)


class Echo:
    """Serves by sending back what comes, and remembers; `serve` ends when the peer leaves."""

    def __init__(self) -> None:
        self.count = 0
        self.connected = asyncio.Event()

    async def __call__(self, sock: socket.socket) -> str:
        loop = asyncio.get_running_loop()
        self.count += 1
        self.connected.set()
        while data := await loop.sock_recv(sock, 100):
            await loop.sock_sendall(sock, data)
        return "the peer has left"


def run(
    port: Listener | Connector,
    body: Callable[[Echo], Awaitable[None]],
    serve: Callable[[socket.socket], Awaitable[str]] | None = None,
) -> None:
    """Run `body` while the port runs; the port must still be running at its end."""

    async def both() -> None:
        echo = Echo()
        task = asyncio.create_task(port.run(serve or echo))
        await asyncio.wait_for(body(echo), 10)
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with port:
        asyncio.run(both())


async def connect(path: Path | str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    sock.connect(str(path))
    return sock


async def talk(sock: socket.socket, data: bytes = b"hello") -> bytes:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(BrokenPipeError):
        await loop.sock_sendall(sock, data)
    try:
        return await loop.sock_recv(sock, 100)
    except ConnectionResetError:
        return b""


# --- server


def test_listener_makes_a_private_socket_and_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Listener("vm0", str(path)):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000])
def test_mode_is_exact_whatever_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with Listener("vm0", str(tmp_path / "s"), mode=mode):
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == mode
        assert os.umask(umask) == umask
    finally:
        os.umask(before)


def test_mode_and_group_hold_before_anyone_can_connect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    listen = socket.socket.listen

    def spy(sock: socket.socket, backlog: int) -> None:
        status = os.stat(sock.getsockname())
        seen.append((stat.S_IMODE(status.st_mode), status.st_gid))
        listen(sock, backlog)

    monkeypatch.setattr(socket.socket, "listen", spy)
    with Listener("vm0", str(tmp_path / "s"), mode=0o660, group=os.getgid()):
        assert seen == [(0o660, os.getgid())]


def test_accepts_again_after_the_front_end_left(tmp_path: Path) -> None:
    async def body(echo: Echo) -> None:
        for count in range(1, 20):
            sock = await connect(tmp_path / "s")
            assert await talk(sock) == b"hello"
            assert echo.count == count
            sock.close()  # and come back at once, before the switch can have noticed

    run(Listener("vm0", str(tmp_path / "s")), body)


@pytest.mark.hostile("process", "a second front-end while one is connected", "refused")
def test_second_front_end_is_refused_at_once_and_the_first_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(echo: Echo) -> None:
        first = await connect(tmp_path / "s")
        assert await talk(first) == b"hello"
        began = time.monotonic()
        for _ in range(3):
            second = await connect(tmp_path / "s")
            assert await talk(second) == b""
            second.close()
        assert time.monotonic() - began < 0.5
        assert await talk(first, b"still here") == b"still here"
        assert echo.count == 1
        first.close()

    run(Listener("vm0", str(tmp_path / "s")), body)
    assert f"vm0: refused pid {os.getpid()}" in caplog.text


def test_successor_waits_until_its_predecessor_is_torn_down(tmp_path: Path) -> None:
    log: list[str] = []

    async def slow_to_leave(sock: socket.socket) -> str:
        log.append("begin")
        while await asyncio.get_running_loop().sock_recv(sock, 100):
            pass
        sock.close()
        await asyncio.sleep(0.05)
        log.append("end")
        return "left"

    async def body(_: Echo) -> None:
        for _ in range(2):
            sock = await connect(tmp_path / "s")
            await asyncio.sleep(0.01)
            sock.close()
        while len(log) < 4:
            await asyncio.sleep(0.01)

    run(Listener("vm0", str(tmp_path / "s")), body, slow_to_leave)
    assert log == ["begin", "end", "begin", "end"]


def test_bug_in_a_connection_costs_that_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(sock: socket.socket) -> str:
        raise ZeroDivisionError

    async def body(_: Echo) -> None:
        for _ in range(2):
            sock = await connect(tmp_path / "s")
            assert await talk(sock) == b""
            sock.close()

    run(Listener("vm0", str(tmp_path / "s")), body, broken)
    assert caplog.text.count("vm0: connection closed by a bug") == 2
    assert "ZeroDivisionError" in caplog.text


def test_cancel_closes_the_connection(tmp_path: Path) -> None:
    left: list[socket.socket] = []

    async def body(echo: Echo) -> None:
        left.append(await connect(tmp_path / "s"))
        await echo.connected.wait()

    run(Listener("vm0", str(tmp_path / "s")), body)
    with left[0] as sock:
        sock.settimeout(1)
        assert sock.recv(1) == b""


def test_lack_of_fds_is_waited_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(echo: Echo) -> None:
        sock = await connect(tmp_path / "s")
        # Take every fd there is, so that accept() fails; the front-end must be served later.
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        await asyncio.sleep(0.05)
        assert echo.count == 0
        for fd in taken:
            os.close(fd)
        assert await talk(sock) == b"hello"
        sock.close()

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        run(Listener("vm0", str(tmp_path / "s")), body)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "vm0: cannot accept" in caplog.text


def test_no_room_to_wait_for_who_connects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The user's other processes have all epoll watches (max_user_watches): later there may be."""
    monkeypatch.setattr(endpoint, "ACCEPT_PAUSE_S", 0.01)
    add_reader, refusals = BaseSelectorEventLoop.add_reader, iter(range(2))

    def scarce(loop: BaseSelectorEventLoop, fd: object, *rest: object) -> None:
        if isinstance(fd, socket.socket) and next(refusals, None) is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add_reader(loop, fd, *rest)

    monkeypatch.setattr(BaseSelectorEventLoop, "add_reader", scarce)
    path = tmp_path / "s"
    run(Listener("vm0", str(path)), lambda _: _hello(path))
    assert caplog.text.count("vm0: cannot accept") == 2


def test_a_listener_closes_though_no_thread_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Callable[[], None]] = []

    def none(work: Callable[[], None]) -> None:
        left.append(work)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(endpoint, "aside", none)
    path = tmp_path / "s"
    listener = Listener("vm0", str(path))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        listener.close()
    assert list(tmp_path.iterdir()) == []
    left[0]()


# --- who else wants the path


def refused(path: Path | str, says: str) -> None:
    with pytest.raises(EnvironmentLacks) as caught:
        Listener("vm0", str(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    subprocess.run([sys.executable, "-c", LISTEN_ON, path], check=True)  # left by the dead
    assert path.exists()
    run(Listener("vm0", str(path)), lambda _: _hello(path))
    assert not path.exists()


async def _hello(path: Path) -> None:
    with await connect(path) as sock:
        assert await talk(sock) == b"hello"


def test_stale_lock_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "s.lock").write_text("4294967295 and more\n")
    with Listener("vm0", str(tmp_path / "s")):
        assert (tmp_path / "s.lock").read_text() == f"{os.getpid()}\n"


def test_live_socket_of_another_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(0)
        refused(path, f"in use by pid {os.getpid()}")
        with contextlib.ExitStack() as filled:  # a full backlog is a sign of life as well
            for _ in range(2):
                sock = filled.enter_context(socket.socket(socket.AF_UNIX))
                sock.setblocking(False)
                sock.connect_ex(str(path))
            refused(path, "in use by another process")
    assert os.listdir(tmp_path) == ["s"]


def test_datagram_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(tmp_path / "s"))
        refused(tmp_path / "s", "in use by another process")


def test_socket_of_another_switch_is_refused_by_its_lock(tmp_path: Path) -> None:
    with Listener("vm0", str(tmp_path / "s")) as first:
        refused(tmp_path / "s", f"another vhostfast process (pid {os.getpid()})")
        run(first, lambda _: _hello(tmp_path / "s"))
    with Listener("vm0", str(tmp_path / "s")):
        pass


def test_lock_that_its_owner_removed_is_not_mistaken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our open() and flock() the owner may leave: a lock on its removed file is none."""
    lock = tmp_path / "s.lock"
    lock.touch()
    flock = fcntl.flock
    once = iter([True])

    def owner_leaves_first(fd: int, operation: int) -> None:
        if next(once, False):
            lock.unlink()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", owner_leaves_first)
    with Listener("vm0", str(tmp_path / "s")):
        refused(tmp_path / "s", "another vhostfast process")


@pytest.mark.hostile("process", "a plain file where a socket is due", "exits")
def test_plain_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    refused(tmp_path / "s", "is not a socket")
    assert (tmp_path / "s").read_text() == "precious"
    (tmp_path / "link").symlink_to(tmp_path / "s")
    refused(tmp_path / "link", "is not a socket")


def test_file_that_took_our_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Listener("vm0", str(path)):
        path.unlink()
        path.write_text("someone else's")
    assert path.read_text() == "someone else's"


@pytest.mark.hostile("process", "no folder for a socket", "exits")
def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none" / "s", f"there is no folder {tmp_path}/none: create it")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "s", "there is no folder")


@pytest.mark.hostile("process", "no permission for a socket's folder", "exits")
def test_without_permission() -> None:
    """Played by a user who is not root; tmp_path is no place for one, its parents are 0700."""
    code = (
        "import os, sys; from vhostfast.device.endpoint import Listener\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "Listener('vm0', *eval(sys.argv[1]))"
    )

    def said(*arguments: object) -> str:
        command = [sys.executable, "-c", code, repr(arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stderr.splitlines()[-1]

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        assert f"no permission for {folder}/s.lock" in said(f"{folder}/s")
        os.chmod(folder, 0o777)
        assert "cannot be given to group 0" in said(f"{folder}/s", 0o660, 0)
        assert os.listdir(folder) == []


def test_of_users_only_those_named_are_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where we listen and where we connect; each that is turned away is counted."""
    path, other = tmp_path / "s", frozenset({os.getuid() + 1})
    refused: list[None] = []

    async def turned_away(port: Listener | Connector) -> None:
        task = asyncio.create_task(port.run(Echo(), lambda: refused.append(None)))
        with contextlib.suppress(ConnectionError):
            sock = await connect(path)
            assert await talk(sock) == b""
            sock.close()
        while not refused:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    with Listener("vm0", str(path), uids=other) as listener:
        asyncio.run(turned_away(listener))
    refused.clear()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        async def serve_nobody() -> None:
            task = asyncio.create_task(
                Connector("vm1", str(path), other).run(Echo(), lambda: refused.append(None))
            )
            while not refused:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(serve_nobody())
    for name in ("vm0", "vm1"):
        assert (
            f"{name}: refused pid {os.getpid()} (uid {os.getuid()}): of users only" in caplog.text
        )


# --- client


def test_connector_waits_for_the_socket_and_comes_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "s"

    async def body(echo: Echo) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0.25)
        for count in (1, 2):
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
                server.listen()
                server.setblocking(False)
                peer, _ = await asyncio.wait_for(loop.sock_accept(server), 3)
                assert await talk(peer) == b"hello"
                assert echo.count == count
                peer.close()
            path.unlink()

    run(Connector("vm0", str(path)), body)
    assert caplog.text.count("No such file or directory") <= 2  # once an outage


def test_connector_is_never_blocked_by_a_full_backlog(tmp_path: Path) -> None:
    path = tmp_path / "s"

    async def body(echo: Echo) -> None:
        worst, before = 0.0, time.monotonic()
        for _ in range(30):  # the loop goes on turning while nobody accepts
            await asyncio.sleep(0.01)
            worst, before = max(worst, time.monotonic() - before), time.monotonic()
        assert worst < 0.2
        assert echo.count == 0
        server.accept()[0].close()  # the one that filled the queue
        await asyncio.wait_for(echo.connected.wait(), 3)

    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as filler:
        server.bind(str(path))
        server.listen(0)
        filler.connect(str(path))
        run(Connector("vm0", str(path)), body)


def test_retries_back_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 s doubling to 2 s; a connection that ends at once doesn't start the count anew."""
    delays: list[float] = []
    sleep = asyncio.sleep

    async def note(delay: float) -> None:
        delays.append(delay)
        await sleep(0)
        if len(delays) == 7:
            raise asyncio.CancelledError

    async def ends_at_once(_: socket.socket) -> str:
        return "refused"

    path = tmp_path / "s"
    monkeypatch.setattr(asyncio, "sleep", note)
    for server in (None, socket.socket(socket.AF_UNIX)):
        if server:
            server.bind(str(path))
            server.listen()
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(Connector("vm0", str(path)).run(ends_at_once))
        assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
        delays.clear()
        if server:
            server.close()
