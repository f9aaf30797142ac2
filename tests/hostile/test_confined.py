"""The whole switch with no more rights than it needs: an ordinary user's, and what the systemd unit
leaves it; and whose front-ends it serves."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import confined
import pytest
from daemon import Daemon, daemon, ports, wait_for

from vhostfast.driver import Frontend, GuestMemory, Migration
from vhostfast.driver.traffic import Load, Traffic, pair
from vhostfast.errors import Disconnected
from vhostfast.protocol.message import Request

MEMORY = ((0, 8 << 20),)
COUNT = 3000


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the ordinary user may write to, if we are root; and sockets that he may use."""
    before = os.umask(0)
    with tempfile.TemporaryDirectory() as name:
        if os.getuid() == 0:
            os.chown(name, confined.NOBODY, confined.NOBODY)
        os.chmod(name, 0o755)
        yield Path(name)
    os.umask(before)


@contextmanager
def front_ends(*paths: Path, **how: object) -> Iterator[list[Frontend]]:
    with ExitStack() as stack:
        memories = [stack.enter_context(GuestMemory(MEMORY, sealed=False)) for _ in paths]
        yield [
            stack.enter_context(Frontend(path, memory, **how))
            for path, memory in zip(paths, memories, strict=True)
        ]


def exchange(a: Frontend, b: Frontend) -> None:
    """Traffic both ways, with a migration of `a` amid it; all of it arrives."""
    for frontend in (a, b):
        frontend.start()
    load = Load(sizes=(64, 300, 1500))
    traffic = Traffic(pair(a, b, packets=COUNT), load, idle="wait")
    thread = threading.Thread(target=traffic.run, kwargs={"expected": 2 * COUNT})
    with Migration(a) as migration:
        migration.begin()
        thread.start()
        marked = migration.replace().size
        thread.join()
        a.stop()
        assert marked + migration.take().size
    b.stop()
    counters = traffic.counters()
    assert (counters.received, counters.corrupt, counters.repeated) == (2 * COUNT, 0, 0)


def ask_on(frontend: Frontend, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        frontend.fence()


def lose_memory(frontend: Frontend) -> None:
    """A fault, which ends the connection."""
    frontend.start()
    os.ftruncate(frontend.memory.fds[0], 0)
    os.eventfd_write(frontend.transmit_ring().kick_fd, 1)
    with pytest.raises(Disconnected):
        ask_on(frontend)


def work(switch: Daemon, paths: list[Path]) -> str:
    """What a switch does in its life, to its end; what it has logged."""
    wait_for(*paths[:3])
    for _ in range(2):  # they come, and come again
        with front_ends(*paths[:2]) as both:
            exchange(*both)
    with front_ends(paths[2]) as (hostile,):
        lose_memory(hostile)
    with front_ends(paths[3], server=True) as (listening,):
        listening.start()
        listening.stop()
    assert switch.summary()["ports"]["vm2"]["faults"] == 1
    _, err = switch.end()
    assert not any(path.exists() for path in paths)
    return err


def options(paths: list[Path]) -> list[str]:
    last = ports(*paths)[3] + ",client"
    return [*ports(*paths[:3]), last, "--forward=patch", "--json"]


@pytest.mark.parametrize("mode", ["adaptive", "interrupt"])
@pytest.mark.parametrize("how", ["uid", "unit"])
def test_the_whole_switch_with_less(folder: Path, how: str, mode: str) -> None:
    paths = [folder / name for name in "abcd"]
    before = [sys.executable, confined.__file__, how]
    with daemon(*options(paths), f"--mode={mode}", "--cpus=0,1", before=before) as switch:
        wait_for(*paths[:3])
        status = Path(f"/proc/{switch.pid}/status").read_text()
        if how == "uid":
            assert "\nUid:\t0\t" not in status
            assert "\nCapEff:\t0000000000000000\n" in status
        else:
            assert "\nSeccomp:\t2\n" in status
            assert "\nNoNewPrivs:\t1\n" in status
        said = work(switch, paths)
    assert "forbidden" not in said


def test_the_filter_ends_who_does_anything_else() -> None:
    """So that the test above says something."""
    ask = "import os; os.sched_getscheduler(0)"
    command = [sys.executable, confined.__file__, "unit", sys.executable, "-c", ask]
    assert "sched_getscheduler" not in confined.settings("SystemCallFilter")
    assert subprocess.run(command, check=False).returncode == -signal.SIGSYS


def ask(path: Path, tell: int) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(path))
        os.write(tell, b"connected ")
        with suppress(ConnectionError):
            sock.send(array("I", [Request.GET_FEATURES, 1, 0]).tobytes())
            os.write(tell, sock.recv(100))


def connect_as(uid: int, path: Path) -> bytes:
    """What somebody is told who connects and asks for the features."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(uid)
            ask(path, tell)
        finally:  # nothing of the parent's is this child's to end
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer.startswith(b"connected ")
    return answer.removeprefix(b"connected ")


@pytest.mark.hostile("process", "a front-end of a user who is not among --allow-uid", "refused")
def test_only_those_who_may_are_served(folder: Path) -> None:
    """By their uid, whatever the socket's mode says; who is connected goes on."""
    mine, other = os.getuid(), os.getuid() + 1
    paths = [folder / name for name in "abcd"]
    told = [*ports(*paths), "--forward=patch", "--json", "--socket-mode=0666"]
    with daemon(*told, f"--allow-uid={mine}") as switch:
        with front_ends(*paths[:2]) as both:
            exchange(*both)
            if mine == 0:  # who else could be somebody else?
                assert connect_as(other, paths[2]) == b""
            assert len(connect_as(mine, paths[2])) == 20
            exchange(*both)
        counted = switch.summary()["ports"]["vm2"]
        _, said = switch.end()
    assert counted["connections_refused"] == (mine == 0)
    assert counted["connections"] == 1
    assert "vm0: pid " in said
    if mine == 0:
        assert f"(uid {other}): of users only {mine} may (--allow-uid)" in said


def test_nobody_is_served_who_may_not(folder: Path) -> None:
    """As the above, for whoever can't be somebody else: it is we who may not."""
    path = folder / "a"
    other = os.getuid() + 1
    with daemon(*ports(path), "--json", f"--allow-uid={other}", "--allow-uid=65534") as switch:
        wait_for(path)
        for count in (1, 2):
            with pytest.raises(Disconnected), front_ends(path):
                pass
            assert switch.summary()["ports"]["vm0"]["connections_refused"] == count
        _, said = switch.end()
    users = ", ".join(str(uid) for uid in sorted((other, 65534)))
    assert said.count(f"(uid {os.getuid()}): of users only {users} may (--allow-uid)") == 2
