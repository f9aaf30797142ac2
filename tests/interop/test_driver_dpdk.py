"""Our front-end and guest against DPDK's own back-end: that they are fair, and right on their own.

testpmd joins two net_vhost ports and waits where a guest is full, so nothing may get lost.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dpdk_backends import Vhost

from vhostfast.driver import FEATURES, Counters, Frontend, GuestMemory, Load, Traffic, pair
from vhostfast.protocol.features import VirtioFeature

pytestmark = [pytest.mark.peers, pytest.mark.slow]

# Cut in the middle of pages and buffers; DPDK wants each ring in one piece.
CUT = ((0, 0x10_0000), (0x10_0000, 0x4_1235), (0x14_1235, 0x10_0001), (0x100_0000, 64 << 20))
MERGEABLE, EVENT_IDX, INDIRECT, VERSION_1 = (
    VirtioFeature.MRG_RXBUF,
    VirtioFeature.EVENT_IDX,
    VirtioFeature.INDIRECT_DESC,
    VirtioFeature.VERSION_1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dpdk")


@pytest.fixture(scope="module")
def sockets(folder: Path) -> Iterator[list[Path]]:
    paths = [folder / "s0", folder / "s1"]
    with Vhost(folder, paths) as backend:
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


def exchange(
    frontends: list[Frontend], load: Load, packets: int = 5000, base: int = 0
) -> list[Counters]:
    """Both send `packets`; what became of it, each checked to be whole and in order."""
    for frontend in frontends:
        frontend.start(base)
    traffic = Traffic(pair(*frontends, packets=packets), load)
    sent = packets * frontends[0].enabled_pairs
    traffic.run(20, linger_s=10, expected=2 * sent)
    for frontend in frontends:
        frontend.stop()
    traffic.finish()
    results = [traffic.counters(station) for station in range(2)]
    for got in results:
        assert (got.sent, got.done, got.received) == (sent, sent, sent)
        assert (got.corrupt, got.foreign, got.lost(sent)) == (0, 0, 0)
        assert (got.missing, got.reordered, got.repeated) == (0, 0, 0)
        assert got.verified == sent if load.kind == "full" else got.verified > 0
    return results


@pytest.mark.parametrize("kind", ["full", "touch", "lean"])
@pytest.mark.parametrize("layout", ["direct", "chained", "indirect"])
@pytest.mark.parametrize("sizes", [(64,), (1500,), (60, 61, 594, 1514)])
def test_every_load_in_every_layout(
    sockets: list[Path], kind: str, layout: str, sizes: tuple[int, ...]
) -> None:
    with two_frontends(sockets) as frontends:
        exchange(frontends, Load(kind, sizes, layout))


@pytest.mark.parametrize("kind", ["full", "touch", "lean"])
@pytest.mark.parametrize("layout", ["direct", "chained"])
def test_packets_over_several_small_buffers(sockets: list[Path], kind: str, layout: str) -> None:
    with two_frontends(sockets, ring_size=1024) as frontends:
        exchange(frontends, Load(kind, (1500,), layout, stride=333))


@pytest.mark.parametrize("sequence", ["qemu", "virtio-user"])
@pytest.mark.parametrize("base", [0, 65535, 65400])
def test_both_sequences_and_the_wrap(sockets: list[Path], sequence: str, base: int) -> None:
    with two_frontends(sockets, sequence=sequence) as frontends:
        exchange(frontends, Load(), base=base)


@pytest.mark.parametrize(
    "without",
    [EVENT_IDX, MERGEABLE, INDIRECT, EVENT_IDX | MERGEABLE | INDIRECT, VERSION_1,
     MERGEABLE | VERSION_1],
)  # fmt: skip
def test_features_left_out(sockets: list[Path], without: VirtioFeature) -> None:
    with two_frontends(sockets, features=FEATURES & ~without) as frontends:
        assert not frontends[0].features & without
        assert frontends[0].header_size == (10 if without == MERGEABLE | VERSION_1 else 12)
        exchange(frontends, Load(layout="chained"))


@pytest.mark.parametrize("ring_size", [64, 1024, 4096])
def test_ring_sizes(sockets: list[Path], ring_size: int) -> None:
    with two_frontends(sockets, ring_size=ring_size) as frontends:
        exchange(frontends, Load(), packets=3 * ring_size + 5000)


def test_a_pause_keeps_what_is_on_the_rings(sockets: list[Path]) -> None:
    with two_frontends(sockets) as (first, second):
        first.start(65530)
        second.start(65530)
        rx, tx = second.receive_ring().ring, first.transmit_ring().ring
        gpa = second.memory.take(16 * 2048)
        heads = {rx.add([(gpa + n * 2048, 2048, True)]): gpa + n * 2048 for n in range(16)}
        for number in range(16):
            if number == 8:
                bases = second.stop()
                assert bases == [(65530 + 8) % 65536, 65530]
                second.resume()
            packet = first.memory.take(100)
            first.memory.write(packet, bytes(12) + bytes([number]) * 88)
            tx.add([(packet, 30, False), (packet + 30, 70, False)], indirect=number % 2 == 1)
            tx.kick()
            deadline = time.monotonic() + 10
            while (used := rx.take()) is None:
                assert time.monotonic() < deadline
            head, size = used
            assert second.memory.read(heads[head], size)[12:] == bytes([number]) * 88


def test_two_queue_pairs_as_client_and_server(folder: Path) -> None:
    paths = [folder / "c0", folder / "c1"]
    with ExitStack() as stack:
        frontends: dict[Path, Frontend] = {}

        def listen(path: Path) -> None:
            memory = stack.enter_context(GuestMemory(CUT))
            frontends[path] = Frontend(path, memory, server=True, queue_pairs=2, timeout_s=40)

        waiting = [threading.Thread(target=listen, args=[path]) for path in paths]
        for thread in waiting:
            thread.start()
        backend = stack.enter_context(Vhost(folder, paths, client=True, queues=2))
        backend.ready()
        for thread in waiting:
            thread.join()
        for path in paths:
            stack.enter_context(frontends[path])
        exchange([frontends[path] for path in paths], Load())


def test_a_driver_that_waits_for_calls_loses_nothing(sockets: list[Path]) -> None:
    with two_frontends(sockets) as frontends:
        for frontend in frontends:
            frontend.start()
        traffic = Traffic(pair(*frontends, packets=5000), Load(), idle="wait")
        traffic.run(20, linger_s=10, expected=10000)
        assert traffic.counters().received == 10000
