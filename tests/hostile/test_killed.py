"""SIGKILL in full traffic: of the switch, whose successor takes up the same rings, and of a
front-end, whom nobody else misses.

A few times each; VHOSTFAST_KILLS=100 says how often.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import confined
import pytest
from daemon import Daemon, ports
from soak import Size
from yard import Yard

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.traffic import Counters, Load, Traffic, pair

KILLS = int(os.environ.get("VHOSTFAST_KILLS", "4"))
SENDER = Path(__file__).parent.parent / "sender.py"
MEMORY = ((0, 8 << 20),)
SIZES = (64, 300, 1500)
BURST = 128  # frames that a worker has in hand at most: who kills it has lost them
PATIENCE_S = 20.0


@contextmanager
def guests(paths: list[Path], sequence: str) -> Iterator[list[Frontend]]:
    with ExitStack() as stack:
        frontends = []
        for path in paths:
            memory = stack.enter_context(GuestMemory(MEMORY))
            frontends.append(stack.enter_context(Frontend(path, memory, sequence=sequence)))
            frontends[-1].start()
        yield frontends


def run(traffic: Traffic, errors: list[BaseException]) -> None:
    try:
        traffic.run(linger_s=0.5)
    except Exception as error:
        errors.append(error)


@contextmanager
def verified(frontends: list[Frontend], layout: str) -> Iterator[Traffic]:
    """Traffic both ways without end, every byte checked; what a ring's driver says is raised."""
    errors: list[BaseException] = []
    traffic = Traffic(pair(*frontends), Load(sizes=SIZES, layout=layout), idle="wait")
    thread = threading.Thread(target=run, args=(traffic, errors))
    thread.start()
    try:
        yield traffic
    finally:
        traffic.stop_sending()
        thread.join()
    if errors:
        raise errors[0]


def wait_more(traffic: Traffic, count: int = 500) -> None:
    """Until each guest has received so many more."""
    wanted = [traffic.counters(i).received + count for i in (0, 1)]
    deadline = time.monotonic() + PATIENCE_S
    while any(traffic.counters(i).received < wanted[i] for i in (0, 1)):
        assert time.monotonic() < deadline, "the traffic has not gone on"
        time.sleep(0.001)


def assert_each_at_most_once(counters: Counters) -> None:
    assert (counters.corrupt, counters.foreign) == (0, 0)
    assert (counters.repeated, counters.reordered) == (0, 0)


def drops(switch: Daemon) -> int:
    """What it has dropped by intent, for want of a receiver or of its buffers."""
    reasons = ("rx_dropped_no_receiver", "tx_dropped_full")
    return sum(port[reason] for port in switch.summary()["ports"].values() for reason in reasons)


@pytest.mark.hostile(
    "process",
    "the switch is killed in full traffic, its successor takes up the rings",
    "delivered: each frame once at most, in order",
)
@pytest.mark.parametrize(
    ("forward", "sequence", "layout", "cpus"),
    [
        ("patch", "qemu", "direct", "0"),
        ("patch", "virtio-user", "chained", "0,1"),
        ("learn", "qemu", "indirect", "0,1"),
    ],
)
def test_the_switch_is_killed(
    tmp_path: Path, forward: str, sequence: str, layout: str, cpus: str
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    options = [*ports(*paths), f"--forward={forward}", f"--cpus={cpus}", "--json"]
    chance, dropped = random.Random(1), 0
    switch = Daemon(*options)
    try:
        with guests(paths, sequence) as frontends:
            with verified(frontends, layout) as traffic:
                for _ in range(KILLS):
                    wait_more(traffic)
                    dropped += drops(switch)
                    time.sleep(chance.uniform(0, 0.02))
                    switch.kill()
                    switch = Daemon(*options)
                    for frontend, path in zip(frontends, paths, strict=True):
                        frontend.reconnect(path)
                wait_more(traffic)
            counters = traffic.counters()
            dropped += drops(switch)
        switch.end()
    finally:
        switch.kill()
    lost = counters.sent - counters.received - dropped
    print(f"{KILLS} kills: {dropped} dropped and counted, {lost} lost, {counters}")
    assert_each_at_most_once(counters)
    assert counters.done == counters.sent
    if forward == "patch":
        assert 0 <= lost <= KILLS * 2 * BURST


def test_who_sent_is_told_before_who_gets_it() -> None:
    """Killed as it calls the receiver, a worker has told both; so nobody sends it again."""
    but_one = confined.program([name for name in confined.numbers() if name != "io_submit"])
    with Yard("patch") as yard:
        a, b = yard.guests
        b.post(100)
        a.send(bytes(64))
        child = os.fork()
        if child == 0:
            confined.install(but_one)
            yard.turn()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGSYS
        assert (a.tx.ring.used["idx"], b.rx.ring.used["idx"]) == (1, 1)


@contextmanager
def sender(path: Path) -> Iterator[None]:
    """A guest in a process of its own that sends to the first of ours; killed at the end."""
    command = [sys.executable, str(SENDER), str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        yield
    finally:
        child.kill()
        child.communicate()


@pytest.mark.hostile("process", "a front-end is killed in full traffic", "port closes")
def test_a_front_end_is_killed(tmp_path: Path) -> None:
    """The others lose nothing, and nothing of it stays with the switch."""
    paths = [tmp_path / name for name in "abc"]
    options = [*ports(*paths), "--forward=learn", "--cpus=0,1", "--json"]
    switch = Daemon(*options, log=tmp_path / "log")
    sizes = []
    try:
        with guests(paths[:2], "qemu") as frontends, verified(frontends, "direct") as traffic:
            wait_more(traffic)
            before = Size.of(switch.pid)
            for _ in range(KILLS):
                with sender(paths[2]):
                    wait_more(traffic)
                wait_more(traffic)
                sizes.append(settled(switch, before))
        total, flows = traffic.counters(), [traffic.flow(0, 1), traffic.flow(1, 0)]
        counted = switch.summary()["ports"]
        switch.end()
    finally:
        switch.kill()
    print(f"{KILLS} kills: {flows} {sizes[0]} {sizes[-1]}")
    honest, dead = [counted["vm0"], counted["vm1"]], counted["vm2"]
    assert (total.corrupt, [flow[2:] for flow in flows]) == (0, [(0, 0)] * 2)
    assert sum(port["tx_packets"] for port in honest) == total.received + total.foreign
    assert sum(port["faults"] for port in honest) == 0
    assert [port["connections"] for port in (*honest, dead)] == [1, 1, KILLS]
    assert {(size.fds, size.threads) for size in sizes} == {(before.fds, before.threads)}
    assert sizes[-1].maps - sizes[0].maps < 8
    assert sizes[-1].anonymous - sizes[0].anonymous < 4 << 20  # beside other work 2.1 MiB, once


def settled(switch: Daemon, before: Size) -> Size:
    """What the switch holds once it has closed all that was a killed front-end's."""
    deadline = time.monotonic() + PATIENCE_S
    while not (size := Size.of(switch.pid)).within(before):
        assert time.monotonic() < deadline, f"{size}, before {before}"
        time.sleep(0.005)
    return size
