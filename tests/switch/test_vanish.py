"""The switch as its user sees it when one guest of three takes its memory away: that port says why
and can be used again; the switch, and what the others carry, go on."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from daemon import daemon, ports

from vhostfast.driver import Frontend, GuestMemory
from vhostfast.driver.traffic import Load, Station, Traffic, mac, pair
from vhostfast.errors import Disconnected

MEMORY = ((0, 8 << 20),)
PATIENCE_S = 20.0  # for what takes milliseconds on a machine that has nothing else to do
LINGER_S = 2.0  # a worker that gets no CPU for 0.2 s would leave a ring of frames uncounted


@contextmanager
def front_end(path: Path) -> Iterator[Frontend]:
    with GuestMemory(MEMORY, sealed=False) as memory, Frontend(path, memory) as frontend:
        frontend.start()
        yield frontend


@contextmanager
def verified(first: Frontend, second: Frontend) -> Iterator[Traffic]:
    """Traffic both ways, every byte of it checked, for as long as the block takes."""
    traffic = Traffic(pair(first, second), Load(sizes=(64, 300, 1500)), idle="wait")
    thread = threading.Thread(target=lambda: traffic.run(linger_s=LINGER_S))
    thread.start()
    more(traffic)
    try:
        yield traffic
        more(traffic)
    finally:
        traffic.stop_sending()
        thread.join()


def wait_for_the_end(frontend: Frontend) -> None:
    """Ask on until the switch has closed the connection: raises Disconnected."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        frontend.fence()
        time.sleep(0.005)


def more(traffic: Traffic, count: int = 1000) -> None:
    """Wait until so many more have come."""
    wanted, deadline = traffic.counters().received + count, time.monotonic() + PATIENCE_S
    while traffic.counters().received < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("cpus", ["0", "0,1"])
@pytest.mark.parametrize("times", [1, 5])
def test_one_guest_of_three_vanishes(tmp_path: Path, cpus: str, times: int) -> None:
    paths = [tmp_path / name for name in "abc"]
    with daemon(*ports(*paths), f"--cpus={cpus}", "--json") as switch, ExitStack() as stack:
        a, b = (stack.enter_context(front_end(path)) for path in paths[:2])
        with verified(a, b) as traffic:
            for number in range(times):
                with front_end(paths[2]) as c:
                    station = Station(c, mac(9), mac(8), flow=10 + number, packets=500)
                    hostile = Traffic([station], Load(), idle="wait")
                    hostile.run()
                    assert hostile.counters().done == 500
                    os.ftruncate(c.memory.fds[0], 0)
                    os.eventfd_write(c.transmit_ring().kick_fd, 1)
                    with pytest.raises(Disconnected):
                        wait_for_the_end(c)
                more(traffic)
        counters = traffic.counters()
        counted = switch.summary()["ports"]
        out, err = switch.end()
    assert (counters.corrupt, counters.reordered, counters.repeated, counters.foreign) == (0,) * 4
    honest = [counted["vm0"], counted["vm1"]]
    assert counters.sent == sum(port["rx_packets"] for port in honest)
    assert counters.received == sum(port["tx_packets"] for port in honest)
    dropped = sum(port["tx_dropped_full"] for port in honest)
    assert counters.sent + 2 * 500 * times == counters.received + dropped
    assert counted["vm2"]["faults"] == times
    assert counted["vm0"]["faults"] == counted["vm1"]["faults"] == 0
    assert counted["vm2"]["rx_packets"] == 500 * times
    assert err.count("vm2: guest memory is gone: its file was cut short") == times
    assert "Traceback" not in err
    assert json.loads(out)["ports"]["vm0"]["rx_packets"] > 1000
