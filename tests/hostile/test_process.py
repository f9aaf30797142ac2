"""The switch as a process that lacks something: it says so and serves the rest."""

import os
import re
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from daemon import COMMAND, Daemon, daemon, ports, wait_listening
from host import Vm, carry, eventually, frame

from vhostfast.driver import GuestMemory
from vhostfast.errors import Disconnected, ProtocolError
from vhostfast.protocol.message import Request

FRAMES = [frame(number) for number in range(100)]


@contextmanager
def honest_pair(*paths: Path) -> Iterator[tuple[Vm, Vm]]:
    with ExitStack() as stack:
        made = []
        for path in paths:
            made.append(Vm(str(path)))
            stack.callback(made[-1].close)
        yield made[0], made[1]


@contextmanager
def four(folder: Path, *options: str) -> Iterator[tuple[Daemon, list[Path], Vm, Vm]]:
    """A switch of two patches: the second is honest and connected."""
    paths = [folder / name for name in "abcd"]
    with daemon(*ports(*paths), "--forward=patch", "--mode=interrupt", *options) as switch:
        wait_listening(paths[3])
        with honest_pair(*paths[2:]) as (c, d):
            assert carry(c, d, FRAMES) == FRAMES
            yield switch, paths, c, d


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_fds(switch: Daemon) -> int:
    return len(os.listdir(f"/proc/{switch.pid}/fd"))


@pytest.mark.hostile(
    "process", "no file descriptor left for a connection", "refused until there is"
)
def test_without_fds_nobody_is_accepted_and_nothing_spins(tmp_path: Path) -> None:
    with four(tmp_path) as (switch, paths, c, d):
        _, hard = resource.prlimit(switch.pid, resource.RLIMIT_NOFILE)
        most = max(int(fd) for fd in os.listdir(f"/proc/{switch.pid}/fd"))
        resource.prlimit(switch.pid, resource.RLIMIT_NOFILE, (most + 1, hard))
        with ExitStack() as stack:
            waiting = []
            free = most + 1 - open_fds(switch)
            for _ in range(free + 2):
                waiting.append(stack.enter_context(socket.socket(socket.AF_UNIX)))
                waiting[-1].connect(str(paths[len(waiting) % 2]))
            before = cpu_seconds(switch.pid)
            assert carry(c, d, FRAMES) == FRAMES
            c.frontend.fence()
            for _ in range(10):  # a second
                assert d.receive(1, timeout_s=0.1) == []
            assert cpu_seconds(switch.pid) - before < 0.5
        resource.prlimit(switch.pid, resource.RLIMIT_NOFILE, (hard, hard))
        with honest_pair(*paths[:2]) as (a, b):
            assert carry(a, b, FRAMES) == FRAMES
        assert carry(c, d, FRAMES) == FRAMES
        _, err = switch.end()
    assert re.search(r"vm[01]: cannot accept on .*: Too many open files", err)


@pytest.mark.hostile(
    "process", "no file descriptor left for a socket to connect with", "refused until there is"
)
def test_a_client_without_fds_waits_for_one(tmp_path: Path) -> None:
    paths, late = [tmp_path / "a", tmp_path / "b"], tmp_path / "late"
    client = f"--port=vm2=vhost-user:{late},client"
    options = ("--forward=learn", "--mode=interrupt")
    with daemon(*ports(*paths), client, *options) as switch, honest_pair(*paths) as (a, b):
        assert carry(a, b, FRAMES) == FRAMES
        limits = resource.prlimit(switch.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(switch.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
        assert b.receive(1, timeout_s=2.5) == []  # it tries every 2 s
        assert carry(a, b, FRAMES) == FRAMES
        resource.prlimit(switch.pid, resource.RLIMIT_NOFILE, limits)
        c = Vm(str(late), server=True)
        c.send([frame(1, to=2, sender=3)])
        assert b.receive(1) == [frame(1, to=2, sender=3)]
        c.close()
        _, err = switch.end()
    assert f"vm2: waiting for {late}: Too many open files" in err


@pytest.mark.hostile("fds", "a kick whose file's name forges a line of the log", "port closes")
def test_the_name_of_a_file_is_one_line_of_the_log(tmp_path: Path) -> None:
    with four(tmp_path) as (switch, paths, c, d), honest_pair(*paths[:2]) as (a, _):
        fd = os.memfd_create("x\n2026-01-01 00:00:00,000 ERROR vm3: forged\x1b[2J\udcff")
        with suppress(Disconnected, ProtocolError):
            a.frontend.tell_file(Request.SET_VRING_KICK, 0, fd)
            a.frontend.fence()
        os.close(fd)
        assert carry(c, d, FRAMES) == FRAMES
        _, err = switch.end()
    assert "\x1b" not in err
    assert not any(line.startswith("2026-01-01") for line in err.splitlines())
    named = r"/memfd:x\n2026-01-01 00:00:00,000 ERROR vm3: forged\x1b[2J\udcff (deleted)"
    assert f"vm0: refused: SET_VRING_KICK: fd is {named}, must be an eventfd" in err


@pytest.mark.hostile("process", "no address space left for a front-end's memory", "port closes")
def test_without_address_space_a_map_is_refused(tmp_path: Path) -> None:
    with four(tmp_path, "--json") as (switch, paths, c, d):
        status = Path(f"/proc/{switch.pid}/status").read_text()
        used = int(status.partition("VmSize:")[2].split()[0]) << 10
        resource.prlimit(switch.pid, resource.RLIMIT_AS, (used + (32 << 20), -1))
        large = GuestMemory(((0, 256 << 20),))
        vm = Vm(str(paths[0]), memory=large, start=False)
        with pytest.raises(ProtocolError, match=r"ADD_MEM_REG.*refused"):
            vm.start()
        vm.close()
        assert carry(c, d, FRAMES) == FRAMES
        with honest_pair(*paths[:2]) as (a, b):
            assert carry(a, b, FRAMES) == FRAMES
        _, err = switch.end()
    assert "vm0: refused: guest memory: mmap is Cannot allocate memory" in err


@pytest.mark.hostile("process", "no room on the disk for the log", "no effect")
@pytest.mark.hostile("process", "no room on the disk for summaries", "no effect")
def test_a_full_disk_costs_what_would_be_written_and_nothing_else(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    with open("/dev/full", "w") as full:
        command = [*COMMAND, *ports(*paths), "--forward=patch", "--json"]
        process = subprocess.Popen(command, stdout=full, stderr=full)
    try:
        wait_listening(paths[1])
        with honest_pair(*paths) as (a, b):
            assert carry(a, b, FRAMES) == FRAMES
            process.send_signal(signal.SIGUSR1)
            assert carry(a, b, FRAMES) == FRAMES
            a.frontend.fence()
        process.send_signal(signal.SIGUSR1)
        with honest_pair(*paths) as (a, b):
            assert carry(a, b, FRAMES) == FRAMES
            assert process.poll() is None
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert os.listdir(tmp_path) == []


def test_a_summary_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [*COMMAND, *ports(tmp_path / "a")]
        process = subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True)
    wait_listening(tmp_path / "a")
    process.terminate()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "the summary cannot be written: No space left on device" in err
    assert "Traceback" not in err


@pytest.mark.hostile(
    "process", "a front-end that is refused without end", "refused, its lines counted"
)
def test_a_port_fills_only_its_share_of_the_log(tmp_path: Path) -> None:
    with four(tmp_path, "--json") as (switch, paths, c, d):
        for _ in range(200):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(paths[0]))
                sock.sendall(b"\xff" * 12)
                assert sock.recv(1) == b""
        eventually(lambda: switch.summary()["ports"]["vm0"]["messages_refused"] == 200)
        assert carry(c, d, FRAMES) == FRAMES
        _, err = switch.end()
    told = sum(map(int, re.findall(r'vm0: … and (\d+) more .*"refused: %s"', err)))
    written = err.count("vm0: refused: ")
    assert written + told == 200
    assert told > 0
    assert written % 20 == 0  # a period's, and there may be a second


def fill(pipe: int) -> None:
    """The pipe that `pipe` reads from, to the last byte."""
    fd = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(fd, b"x")
    os.close(fd)


@pytest.mark.hostile("process", "summaries that nobody reads, their pipe full", "no effect")
def test_summaries_that_nobody_reads(tmp_path: Path) -> None:
    """The switch serves whoever connects and ends when it should, and says what it could not."""
    with four(tmp_path) as (switch, paths, c, d):
        assert switch.process.stdout
        assert switch.process.stderr
        fill(switch.process.stdout.fileno())
        switch.process.send_signal(signal.SIGUSR1)
        with honest_pair(*paths[:2]) as (a, b):
            assert carry(a, b, FRAMES) == FRAMES
            assert carry(c, d, FRAMES) == FRAMES
        switch.process.terminate()
        assert switch.process.wait(10) == 0
        err = switch.process.stderr.read()
    assert err.endswith(" ERROR the summary cannot be written: nobody reads it\n")


@pytest.mark.parametrize("read_again", [True, False])
@pytest.mark.hostile("process", "a log that nobody reads, its pipe full", "no effect on others")
def test_a_log_that_nobody_reads(tmp_path: Path, read_again: bool) -> None:
    """Who connects is served, who is connected goes on, and the switch ends when it should."""
    with four(tmp_path) as (switch, paths, c, d):
        assert switch.process.stderr
        fill(switch.process.stderr.fileno())
        with honest_pair(*paths[:2]) as (a, b):
            assert carry(a, b, FRAMES) == FRAMES
            assert carry(c, d, FRAMES) == FRAMES
        if read_again:
            _, said = switch.end()
            assert said.count("vring 1 stopped") == 4
        else:
            switch.process.terminate()
            assert switch.process.wait(10) == 0
