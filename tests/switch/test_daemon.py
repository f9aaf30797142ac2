"""The daemon with front-ends on its sockets: traffic, what is counted of it, and who comes back."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from daemon import Daemon, daemon, ports, wait_for

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.traffic import Counters, Load, Station, Traffic, mac, pair
from vhostfast.errors import UsageError
from vhostfast.protocol.features import Offer
from vhostfast.protocol.message import Request

MEMORY = ((0, 8 << 20),)
COUNT = 2000


@contextmanager
def front_ends(*paths: Path, server: bool = False) -> Iterator[list[Frontend]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Frontend(path, stack.enter_context(GuestMemory(MEMORY)), server=server)
            )
            for path in paths
        ]


def exchange(first: Frontend, second: Frontend, size: int = 300) -> Counters:
    """Both send COUNT frames; what came of it."""
    for frontend in (first, second):
        frontend.start()
    traffic = Traffic(pair(first, second, packets=COUNT), Load(sizes=(size,)), idle="wait")
    traffic.run()
    return traffic.counters()


def all_arrived(counters: Counters) -> bool:
    faults = (counters.corrupt, counters.missing, counters.reordered, counters.repeated)
    return counters.received == 2 * COUNT and faults == (0, 0, 0, 0)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_once_all_sockets_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    paths = [tmp_path / name for name in "abc"]
    name = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind("\0" + name if abstract else name)
        notify.settimeout(30)
        with daemon(*ports(*paths)) as switch:
            assert notify.recv(100) == b"READY=1"
            for path in paths:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect(str(path))
            switch.end()


def test_nobody_to_be_told_is_no_reason_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    with daemon(*ports(tmp_path / "a")) as switch:
        wait_for(tmp_path / "a")
        switch.wait_ready()
        _, said = switch.end()
    assert "NOTIFY_SOCKET cannot be told that the switch is ready" in said


@pytest.mark.parametrize("mode", ["poll", "interrupt", "adaptive"])
@pytest.mark.parametrize("server", [False, True], ids=["server", "client"])
def test_what_is_counted_is_what_was_sent(tmp_path: Path, mode: str, server: bool) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    options = ports(*paths, options=",client" if server else "")
    with daemon(*options, "--forward=patch", f"--mode={mode}", "--json") as switch:
        with front_ends(*paths, server=server) as both:
            assert all_arrived(exchange(*both))
            summary = switch.summary()
        last = json.loads(switch.end()[0])
    for name in ("vm0", "vm1"):
        counted = {key: value for key, value in summary["ports"][name].items() if value}
        assert counted == {
            "rx_packets": COUNT, "rx_bytes": COUNT * 300,
            "tx_packets": COUNT, "tx_bytes": COUNT * 300,
            "connections": 1,
        }  # fmt: skip
    assert summary["packets"] == 2 * COUNT
    assert summary["busy_cycles"] > 0
    assert last["ports"] == summary["ports"]


def test_each_port_offers_what_it_was_told_to(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    *options, last = ports(*paths)
    options += [last + ",offloads=off", "--forward=patch"]
    with daemon(*options), front_ends(*paths) as both:
        offered = [frontend.ask(Request.GET_FEATURES) for frontend in both]
    assert offered == [Offer.net().features, Offer.net(offloads=False).features]


def test_front_ends_come_and_go(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    with daemon(*ports(*paths), "--forward=patch", "--json") as switch:
        for _ in range(5):
            with front_ends(*paths) as both:
                assert all_arrived(exchange(*both))
        counters = json.loads(switch.end()[0])["ports"]["vm0"]
    assert counters["connections"] == 5
    assert counters["rx_packets"] == 5 * COUNT


def test_front_ends_that_listen_see_a_killed_switch_come_back(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    options = [*ports(*paths, options=",client"), "--forward=patch"]
    for _ in range(2):
        with daemon(*options), front_ends(*paths, server=True) as both:
            assert all_arrived(exchange(*both))


def test_no_receiver_is_a_reason(tmp_path: Path) -> None:
    """Frames for a port without a guest are dropped, and the summary's line says why."""
    paths = [tmp_path / "a", tmp_path / "b"]
    with daemon(*ports(*paths), "--forward=learn") as switch:
        with front_ends(paths[0]) as (alone,):
            alone.start()
            station = Station(alone, mac(1), mac(2), flow=0, packets=COUNT)
            traffic = Traffic([station], Load(), idle="wait")
            traffic.run()
            assert traffic.counters().done == COUNT
        out, _ = switch.end()
    assert f"vm0: received {COUNT} packets" in out
    assert f"rx_dropped_no_receiver {COUNT}" in out


@contextmanager
def flood(first: Frontend, second: Frontend) -> Iterator[None]:
    """Traffic both ways for as long as the block takes."""
    for frontend in (first, second):
        frontend.start()
    traffic = Traffic(pair(first, second), Load(), idle="wait")
    thread = threading.Thread(target=traffic.run)
    thread.start()
    deadline = time.monotonic() + 10
    while not traffic.counters().received:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield
    finally:
        traffic.stop()
        thread.join()


def stops_in_time(switch: Daemon) -> dict[str, dict[str, int]]:
    began = time.monotonic()
    out, _ = switch.end()
    assert time.monotonic() - began < 4  # one second promised, on a machine at rest
    summary: dict[str, dict[str, dict[str, int]]] = json.loads(out)
    return summary["ports"]


@pytest.mark.hostile("process", "SIGTERM amid traffic", "exits with 0, its sockets removed")
def test_ends_under_load(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    with (
        daemon(*ports(*paths), "--forward=patch", "--json") as switch,
        front_ends(*paths) as both,
        flood(*both),
    ):
        counters = stops_in_time(switch)
    assert counters["vm0"]["tx_packets"] > 0
    assert os.listdir(tmp_path) == []


def test_queues_of_a_port_are_lowered(tmp_path: Path) -> None:
    options = [*ports(tmp_path / "a", options=",queues=2"), "--forward=loopback"]
    with daemon(*options), GuestMemory(MEMORY) as memory:
        with Frontend(tmp_path / "a", memory, queue_pairs=2) as two:
            two.start()
        with pytest.raises(UsageError, match="the back-end has 2"):
            Frontend(tmp_path / "a", memory, queue_pairs=3)


def test_as_many_queues_as_the_front_end_brings(tmp_path: Path) -> None:
    with (
        daemon(*ports(tmp_path / "a"), "--forward=loopback"),
        GuestMemory(MEMORY) as memory,
        Frontend(tmp_path / "a", memory, queue_pairs=9, ring_size=16) as nine,
    ):
        nine.start()


def test_poll_never_sleeps(tmp_path: Path) -> None:
    """With a guest that is silent; how much of a CPU it gets is up to others."""
    with daemon(*ports(tmp_path / "a"), "--forward=loopback", "--mode=poll") as switch:
        with front_ends(tmp_path / "a") as (guest,):
            guest.start()
            before = cpu_seconds(switch.pid)
            time.sleep(1.0)
            assert cpu_seconds(switch.pid) - before > 0.1
        switch.end()


def test_idle_costs_nothing(tmp_path: Path) -> None:
    """Interrupt mode with guests that are silent: under 1 % of a core."""
    paths = [tmp_path / "a", tmp_path / "b"]
    with daemon(*ports(*paths), "--forward=patch", "--mode=interrupt", "--json") as switch:
        wait_for(*paths)
        with front_ends(*paths) as both:
            assert all_arrived(exchange(*both))
            before = cpu_seconds(switch.pid)
            time.sleep(2.0)
            used = cpu_seconds(switch.pid) - before
        switch.end()
    assert used <= 0.02


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
