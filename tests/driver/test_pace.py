"""Packets on a schedule: each is counted from when it was due, whatever the back-end does."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from daemon import Daemon, daemon, ports, wait_for

from vhostfast.driver import Frontend, GuestMemory, Load, Station, mac, pair
from vhostfast.driver.pace import Paced, Schedule
from vhostfast.errors import UsageError

TOUCH = Load("touch", (64,))
MPPS, STOPPED_S = 0.01, 0.1
ALWAYS = 1 << 40  # packets
pytestmark = pytest.mark.slow


@contextmanager
def guests(folder: Path, count: int, forward: str) -> Iterator[tuple[Daemon, list[Frontend]]]:
    paths = [folder / f"{number}" for number in range(count)]
    with daemon(*ports(*paths), f"--forward={forward}", "--mode=adaptive") as switch:
        wait_for(*paths)
        with GuestMemory() as first, GuestMemory() as second:
            frontends = [
                Frontend(path, memory) for path, memory in zip(paths, (first, second), strict=False)
            ]
            for frontend in frontends:
                frontend.start()
            yield switch, frontends
            for frontend in frontends:
                frontend.close()


def stations(frontends: list[Frontend], *, one_way: bool = False) -> list[Station]:
    if len(frontends) == 1:
        return [Station(frontends[0], mac(1), mac(1), flow=0)]
    both = pair(*frontends)
    if one_way:
        both[0].receives = both[1].sends = False
    return both


@pytest.mark.parametrize(
    ("count", "forward", "one_way"),
    [(1, "loopback", False), (2, "patch", False), (2, "patch", True)],
)
def test_all_arrive_and_are_counted(
    tmp_path: Path, count: int, forward: str, one_way: bool
) -> None:
    with guests(tmp_path, count, forward) as (_, frontends):
        schedule = Schedule(0.05, 3000, warm_up=1000)
        paced = Paced(stations(frontends, one_way=one_way), TOUCH, schedule)
        paced.run(30, linger_s=10)
        for frontend in frontends:
            frontend.stop()
        paced.finish()
        times = paced.times()
        assert paced.noted == times.count == 2000
        assert paced.counters(0).sent == paced.counters(0).done == 3000
        last = paced.counters(count - 1)
        assert last.received == last.verified == 3000
        assert paced.counters().corrupt == paced.counters().missing == 0
        if not one_way and count == 2:  # the second answers each
            assert paced.counters(1).sent == paced.counters(0).received == 3000
        quantiles = [times.quantile(share) for share in (0.5, 0.99, 0.999, 1.0)]
        assert 0 < quantiles[0] <= quantiles[1] <= quantiles[2] <= quantiles[3] <= times.max_ns
        assert paced.seconds >= (3000 - 1) / 0.05e6


def test_what_is_due_while_the_back_end_stands_still_is_counted_from_then(tmp_path: Path) -> None:
    """Stopped for 100 ms, at ten packets a millisecond: a thousand wait, evenly from 100 ms down,
    though the ring has room for 256 of them alone."""
    with guests(tmp_path, 1, "loopback") as (switch, frontends):
        paced = Paced(stations(frontends), TOUCH, Schedule(MPPS, ALWAYS))
        thread = threading.Thread(target=paced.run)
        began = time.monotonic()
        thread.start()
        wait_until(lambda: paced.noted > 100)
        os.kill(switch.pid, signal.SIGSTOP)
        wait_until(lambda: stopped(switch.pid))
        since = time.monotonic()
        time.sleep(STOPPED_S)
        stood = time.monotonic() - since
        os.kill(switch.pid, signal.SIGCONT)
        due = (time.monotonic() - began) * MPPS * 1e6
        wait_until(lambda: paced.noted > due)
        paced.stop()
        thread.join()
        times = paced.times()
    assert times.max_ns >= stood * 1e9
    for waited_s in (0.01, 0.03, 0.05, 0.07, 0.09):
        assert times.longer_than(waited_s * 1e9) >= (stood - waited_s) * MPPS * 1e6 - 2
    assert paced.held >= stood * MPPS * 1e6 - 256 - 2


def stopped(pid: int) -> bool:
    """All threads of it."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "T" for task in tasks)


def wait_until(happened: object, seconds: float = 60) -> None:
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_it_ends_when_too_many_are_held_up(tmp_path: Path) -> None:
    with guests(tmp_path, 1, "loopback") as (switch, frontends):
        os.kill(switch.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, switch.pid, os.WSTOPPED | os.WNOWAIT)  # all its threads stand still
        try:
            paced = Paced(stations(frontends), TOUCH, Schedule(1, ALWAYS, held_most=1000))
            paced.run()
        finally:
            os.kill(switch.pid, signal.SIGCONT)
        assert paced.held > 1000
        assert paced.counters().sent == 256


def test_what_never_comes_is_waited_for_and_then_lost(tmp_path: Path) -> None:
    with guests(tmp_path, 1, "drop") as (_, frontends):
        paced = Paced(stations(frontends), TOUCH, Schedule(1, 1000))
        paced.run(linger_s=0.05)
        assert paced.noted == 0
        assert paced.counters().done == 1000


def test_usage(tmp_path: Path) -> None:
    with guests(tmp_path, 2, "patch") as (_, frontends):
        with pytest.raises(UsageError, match="kind=full: packets on a schedule are of kind touch"):
            Paced(stations(frontends), Load("full"), Schedule(1, 10))
        silent = stations(frontends)
        silent[0].sends = False
        with pytest.raises(UsageError, match="nobody sends, receives or answers"):
            Paced(silent, TOUCH, Schedule(1, 10))
    for values in ((-1, 10), (1, 0), (1, 10, 10), (1000, 10)):
        with pytest.raises(UsageError, match="give 0 to 1000 Mpps"):
            Schedule(*values)
