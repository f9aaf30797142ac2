"""Our own driver on DPDK's back-end as well as on ours: it is a fair front-end for both."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from dpdk_backends import Switch, Vhost

from vhostfast.driver import Frontend, GuestMemory, Load, Traffic, pair

pytestmark = [pytest.mark.peers, pytest.mark.slow]

PACKETS = 20_000  # of each queue pair of each guest
SIZES = (64, 1514, 60, 590, 1280, 65, 127, 900)
CASES = {
    "direct": (Load(sizes=SIZES), 1),
    "two pairs": (Load(sizes=SIZES), 2),
    "chained": (Load(sizes=SIZES, layout="chained"), 1),
    "indirect": (Load(sizes=SIZES, layout="indirect"), 1),
    "small buffers": (Load(sizes=SIZES, stride=320), 1),
    "lean": (Load("lean", sizes=(64,)), 1),
    "touch": (Load("touch", sizes=(1500,)), 1),
}


@pytest.mark.parametrize("back_end", [Switch, Vhost])
@pytest.mark.parametrize(("load", "queues"), CASES.values(), ids=CASES)
def test_all_that_was_sent_arrives(
    tmp_path: Path, back_end: type[Switch | Vhost], load: Load, queues: int
) -> None:
    sockets = [tmp_path / "0.sock", tmp_path / "1.sock"]
    with ExitStack() as stack:
        worker = stack.enter_context(back_end(tmp_path, sockets, queues=queues))
        worker.ready()
        guests = []
        for socket in sockets:
            memory = stack.enter_context(GuestMemory())
            guests.append(stack.enter_context(Frontend(socket, memory, queue_pairs=queues)))
        for guest in guests:
            guest.start()
        traffic = Traffic(pair(*guests, packets=PACKETS), load)
        traffic.run(linger_s=0.5)
        for guest in guests:
            guest.stop()
        traffic.finish()
    total = traffic.counters()
    assert total.sent == total.done == total.received == 2 * queues * PACKETS
    assert total.verified > 0
    assert (total.corrupt, total.foreign, total.missing, total.reordered, total.repeated) == (
        0,
    ) * 5
