"""The copy without checks, ring to ring, and the line between two CPUs."""

import os
import threading
import time
from collections.abc import Callable

import pytest
from guest import Guest
from yard import mapped

from vhostfast.core.limit import Bare, Distance
from vhostfast.core.ring import Ring
from vhostfast.driver.vring import Vring

HEADER = bytes(12)


def ring_of(guest: Guest, vring: Vring) -> Ring:
    addr = vring.addresses()
    ring = Ring(vring.index)
    places = {"desc": addr.desc, "used": addr.used, "avail": addr.avail}
    ring.start(mapped(guest), size=vring.size, **places)
    return ring


@pytest.mark.parametrize("null", [False, True])
def test_a_lane(null: bool) -> None:
    """Rings of 4: the first 8 packets are copied; from there on null gives back buffers as they
    were."""
    with Guest(((0, 1 << 20),)) as guest:
        rx, tx = (guest.vring(4, index=index, base=65533) for index in range(2))
        bare = Bare([(ring_of(guest, tx), ring_of(guest, rx))], null=null)
        thread = threading.Thread(target=bare.run)
        thread.start()
        gpa = guest.memory.take(4096)
        arrived = []
        for number in range(12):
            frame = bytes([number]) * 60
            guest.memory.write(gpa, HEADER + frame)
            guest.memory.write(gpa + 2048, bytes(72))
            rx.ring.add([(gpa + 2048, 2048, True)])
            tx.ring.add([(gpa, 12, False), (gpa + 12, 60, False)], indirect=number % 3 == 0)
            deadline = time.monotonic() + 10
            while (used := rx.ring.take()) is None or tx.ring.take() is None:
                assert time.monotonic() < deadline
            assert null or used[1] == 72
            arrived.append(guest.memory.read(gpa + 2048, 72) == HEADER[:10] + b"\1\0" + frame)
        bare.stop()
        thread.join(10)
        assert not thread.is_alive()
    assert arrived == [number < 8 or not null for number in range(12)]


def test_bare_takes_rings_that_run_alone() -> None:
    with pytest.raises(ValueError, match="doesn't run"):
        Bare([(Ring(0), Ring(1))])
    with pytest.raises(ValueError, match="1025 lanes, must be 1024 at most"):
        Bare([(Ring(0), Ring(1))] * 1025)


def test_the_line_goes_to_and_fro() -> None:
    """Each thread on a CPU of its own, or a round would take as long as the scheduler pleases."""
    cpus, distance = sorted(os.sched_getaffinity(0)), Distance(30)
    told: list[object] = []

    def part(cpu: int, go: Callable[[], object]) -> None:
        os.sched_setaffinity(0, {cpu})
        told.append(go())

    sides = ((cpus[0], distance.answer), (cpus[-1], distance.ask))
    threads = [threading.Thread(target=part, args=side) for side in sides]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True in told
    assert all(isinstance(one, bool) or one > 0 for one in told)


@pytest.mark.slow
def test_patience_ends() -> None:
    assert Distance(0.05).ask() is None
    assert Distance(0.05).answer() is False
