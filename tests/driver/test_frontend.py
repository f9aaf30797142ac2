"""The front-end and its traffic against our own daemon, a process of its own."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dpdk_backends import Switch
from host import BY_TABLE

from vhostfast.driver import FEATURES, Frontend, GuestMemory, Load, Traffic, pair
from vhostfast.driver.frontend import PROTOCOL_FEATURES
from vhostfast.driver.wire import Wire
from vhostfast.errors import Disconnected, EnvironmentLacks, ProtocolError, UsageError
from vhostfast.protocol.features import ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import U64, Request

CUT = ((0, 0x10_0000), (0x10_0000, 0x4_1235), (0x14_1235, 0x10_0001), (0x100_0000, 64 << 20))


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folder = tmp_path_factory.mktemp("switch")
    paths = [folder / "s0", folder / "s1"]
    with Switch(folder, paths, queues=2) as backend:
        backend.ready()
        yield paths


@contextmanager
def two_frontends(sockets: list[Path], **options: Any) -> Iterator[list[Frontend]]:
    with ExitStack() as stack:
        frontends = []
        for path in sockets:
            memory = stack.enter_context(GuestMemory(CUT))
            frontends.append(stack.enter_context(Frontend(path, memory, **options)))
        yield frontends


def exchange(frontends: list[Frontend], load: Load, packets: int, **options: str) -> Traffic:
    for frontend in frontends:
        frontend.start(65500)
    traffic = Traffic(pair(*frontends, packets=packets), load, **options)
    sent = packets * frontends[0].enabled_pairs
    traffic.run(20, linger_s=10, expected=2 * sent)
    bases = [frontend.stop() for frontend in frontends]
    traffic.finish()
    for number in range(2):
        got = traffic.counters(number)
        assert (got.sent, got.done, got.received) == (sent, sent, sent)
        assert (got.corrupt, got.foreign, got.lost(sent)) == (0, 0, 0)
        assert (got.missing, got.reordered, got.repeated) == (0, 0, 0)
        assert [base % 65536 for base in bases[number][1::2]] == [
            vring.ring.used_index for vring in frontends[number].rings[1::2]
        ]
    return traffic


@pytest.mark.parametrize("sequence", ["qemu", "virtio-user"])
@pytest.mark.parametrize("queue_pairs", [1, 2])
def test_two_guests_exchange_verified_packets(
    sockets: list[Path], sequence: str, queue_pairs: int
) -> None:
    with two_frontends(sockets, sequence=sequence, queue_pairs=queue_pairs) as frontends:
        exchange(frontends, Load(sizes=(64, 1500)), 2000)


@pytest.mark.parametrize("kind", ["touch", "lean"])
def test_the_other_loads(sockets: list[Path], kind: str) -> None:
    with two_frontends(sockets) as frontends:
        traffic = exchange(frontends, Load(kind, (512,)), 5000)
        assert traffic.counters().verified > 0
        assert min(traffic.cycles()) > 0


def test_the_driver_sleeps_until_it_is_called(sockets: list[Path]) -> None:
    with two_frontends(sockets) as frontends:
        exchange(frontends, Load(), 2000, idle="wait")
        assert sum(frontend.receive_ring().ring.calls for frontend in frontends) > 0


def test_counters_grow_while_it_runs_and_it_can_be_stopped(sockets: list[Path]) -> None:
    with two_frontends(sockets) as frontends:
        for frontend in frontends:
            frontend.start()
        traffic = Traffic(pair(*frontends), Load())
        running = threading.Thread(target=traffic.run)
        running.start()
        deadline = time.monotonic() + 10
        while traffic.counters(0).received < 1000:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        traffic.stop_sending()
        running.join(10)
        assert not running.is_alive()
        got = traffic.counters()
        assert got.received == got.sent == got.done


def test_one_way_only(sockets: list[Path]) -> None:
    with two_frontends(sockets) as frontends:
        for frontend in frontends:
            frontend.start()
        stations = pair(*frontends, packets=500)
        stations[0].receives = stations[1].sends = False
        traffic = Traffic(stations, Load())
        traffic.run(20, linger_s=10, expected=500)
        assert (traffic.counters(0).sent, traffic.counters(1).received) == (500, 500)


def test_features_are_what_both_know(sockets: list[Path]) -> None:
    with GuestMemory() as memory, Frontend(sockets[0], memory) as frontend:
        assert VirtioFeature.EVENT_IDX in frontend.features
        assert VirtioFeature.MQ not in frontend.features  # one pair
        assert ProtocolFeature.CONFIG not in frontend.protocol_features  # not offered
    with (
        GuestMemory() as memory,
        Frontend(sockets[0], memory, features=FEATURES & ~VirtioFeature.EVENT_IDX) as frontend,
    ):
        assert VirtioFeature.EVENT_IDX not in frontend.features
        assert not frontend.rings[0].event_idx
        frontend.start()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests about memory that front-ends have sent."""
    requests, send = [], Wire.send

    def tell(self: Wire, request: int, *given: Any, **options: Any) -> None:
        if "_MEM_" in Request(request).name:
            requests.append(Request(request).name)
        send(self, request, *given, **options)

    monkeypatch.setattr(Wire, "send", tell)
    return requests


def test_regions_are_told_one_by_one_and_only_what_has_changed(
    sockets: list[Path], told: list[str]
) -> None:
    """As QEMU does: on one connection nothing twice, on a new one everything."""
    with GuestMemory(CUT) as memory, Frontend(sockets[0], memory, queue_pairs=2) as frontend:
        assert told == ["GET_MAX_MEM_SLOTS"] * 2  # for each pair
        told.clear()
        frontend.start()
        assert told == ["ADD_MEM_REG"] * len(CUT)
        frontend.stop()
        told.clear()
        frontend.start()
        assert told == []
        whole = memory.regions, memory.fds
        memory.regions, memory.fds = whole[0][:-1], whole[1][:-1]
        frontend.tell_memory()
        memory.regions, memory.fds = whole
        frontend.tell_memory()
        assert told == ["REM_MEM_REG", "ADD_MEM_REG"]
        told.clear()
        frontend.reconnect(sockets[0])
        assert told == ["GET_MAX_MEM_SLOTS"] * 2 + ["ADD_MEM_REG"] * len(CUT)


@pytest.mark.parametrize("sequence", ["qemu", "virtio-user"])
def test_without_slots_there_is_a_table(
    sockets: list[Path], told: list[str], sequence: str
) -> None:
    """virtio-user knows nothing of slots."""
    agreed = BY_TABLE if sequence == "qemu" else PROTOCOL_FEATURES
    with (
        GuestMemory(CUT) as memory,
        Frontend(sockets[0], memory, sequence=sequence, protocol_features=agreed) as frontend,
    ):
        frontend.start()
        frontend.tell_memory()
        assert told == ["SET_MEM_TABLE"] * 2


@pytest.mark.parametrize(
    ("count", "agreed", "says"),
    [
        (9, BY_TABLE, "9 regions: the back-end takes 8, for it does not offer CONFIGURE_MEM_SLOTS"),
        (510, PROTOCOL_FEATURES, "510 regions: the back-end takes 509: give as many, or fewer"),
    ],
)
def test_more_regions_than_the_back_end_takes(
    sockets: list[Path], count: int, agreed: ProtocolFeature, says: str
) -> None:
    regions = [(8192 * number, 4096) for number in range(count)]
    with GuestMemory(regions) as memory, pytest.raises(UsageError, match=says):
        Frontend(sockets[0], memory, protocol_features=agreed)


def test_a_refused_request_says_so(sockets: list[Path]) -> None:
    with GuestMemory() as memory, Frontend(sockets[0], memory) as frontend:
        with pytest.raises(ProtocolError, match="SET_FEATURES: acknowledgement is 1, must be 0"):
            frontend.request(Request.SET_FEATURES, U64(1 << 34), ack=True)
        frontend.fence()
        frontend.wire.send_bytes(b"\xff" * 12)
        with pytest.raises(Disconnected, match="back-end"):
            frontend.fence()


def test_what_cannot_be_is_a_sentence(sockets: list[Path], tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with GuestMemory() as memory:
        with pytest.raises(EnvironmentLacks, match="nobody serves"):
            Frontend(tmp_path / "none", memory, timeout_s=0.02)
        with pytest.raises(EnvironmentLacks, match="no back-end has connected"):
            Frontend(tmp_path / "none", memory, timeout_s=0.02, server=True)
        with pytest.raises(UsageError, match="queue_pairs=3: the back-end has 2"):
            Frontend(sockets[0], memory, queue_pairs=3)
        with pytest.raises(UsageError, match="sequence=xen: give one of qemu, virtio-user"):
            Frontend(sockets[0], memory, sequence="xen")
    assert os.listdir("/proc/self/fd") == before
    for wrong in ({"kind": "half"}, {"layout": "packed"}, {"sizes": (39,)}, {"sizes": ()}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Load(**wrong)


def test_a_back_end_that_dies_is_missed(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    with Switch(tmp_path, [socket, tmp_path / "t"]) as backend, GuestMemory() as memory:
        backend.ready()
        with Frontend(socket, memory) as frontend:
            frontend.start()
            backend.kill()
            with pytest.raises(Disconnected):
                frontend.stop()
