"""The limits are what they are said to be: bare moves every byte, null moves none."""

import os
import subprocess
import sys

import pytest

from vhostfast.bench.backend import bare, null, running
from vhostfast.bench.sample import VERIFIED_PACKETS, connected, measure, verify
from vhostfast.bench.workload import Plan, Workload, parse_frames
from vhostfast.errors import VhostfastError

CPUS = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.slow


def plan(**workload: object) -> Plan:
    work = Workload(**workload)  # type: ignore[arg-type]
    return Plan(work, seconds=0.1, warm_up_s=0.02, worker_cpu=CPUS[0], driver_cpu=CPUS[-1])


@pytest.mark.parametrize("layout", ["direct", "chained", "indirect"])
@pytest.mark.parametrize(("pattern", "queues"), [("both-ways", 1), ("one-way", 3), ("loop", 2)])
def test_bare_copies_every_byte(layout: str, pattern: str, queues: int) -> None:
    of = plan(layout=layout, pattern=pattern, queues=queues, load="touch")
    with running(bare(of), of) as run, connected(run, of) as guests:
        for frames in parse_frames("60,1514,imix"):
            got = verify(guests, frames)
            assert got.verified == got.received == got.sent
            assert got.received == VERIFIED_PACKETS * queues * (2 if pattern == "both-ways" else 1)
            assert measure(guests, frames).lost == 0


def test_null_copies_only_once_round_the_rings() -> None:
    of = plan()
    with (
        running(null(of), of) as run,
        connected(run, of) as guests,
        pytest.raises(VhostfastError, match="repeated"),
    ):
        verify(guests, parse_frames("64")[0])


def test_usage() -> None:
    for arguments in (["fast", "/a"], ["copy"], ["copy", "/a", "/b", "/c"]):
        command = [sys.executable, "-m", "vhostfast.bench.bare", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr == "bare: give copy or null and one socket, or some two by two\n"
