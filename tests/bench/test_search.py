"""The search finds what passes; a trial passes as RFC 2544 has it."""

import math
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import latency

from vhostfast.bench.backend import ours, running
from vhostfast.bench.sample import connected
from vhostfast.bench.search import DOUBLINGS_MAX, job, judge, search
from vhostfast.bench.workload import Plan, Workload, parse_frames
from vhostfast.errors import UsageError

CPUS = sorted(os.sched_getaffinity(0))


@given(st.floats(0, 20), st.floats(0.01, 100), st.floats(0.001, 0.5))
def test_the_highest_that_passes(most: float, begin: float, resolution: float) -> None:
    tried: list[float] = []

    def passes(rate: float) -> bool:
        tried.append(rate)
        return rate <= most

    found = search(begin, resolution, passes)
    assert len(tried) <= DOUBLINGS_MAX + math.ceil(math.log2(1 / resolution)) + 1
    if most >= begin * 2 ** (DOUBLINGS_MAX - 1):  # nothing that was tried failed
        assert found == max(tried) == begin * 2 ** (DOUBLINGS_MAX - 1)
        return
    assert found == max((rate for rate in tried if rate <= most), default=0)
    failed = min(rate for rate in tried if rate > most)
    first_failed = next(rate for rate in tried if rate > most)
    assert failed - found <= resolution * first_failed


def test_nothing_passes() -> None:
    assert search(8.0, 0.1, lambda _: False) == 0


@pytest.mark.parametrize(
    ("change", "loss", "limit"),
    [
        ({}, 0.0, ""),
        ({"lost": 1e-9}, 0.0, "lost"),
        ({"lost": 1e-3}, 1e-3, ""),
        ({"held": 1e-9}, 0.0, "held"),
        ({"held": 1e-3, "lost": 1e-3}, 1e-3, ""),
        ({"held": 1e-2, "lost": 0.9}, 1e-3, "held"),  # given up, so the rest is lost
        ({"lost": 0.1, "idle": 0.0}, 0.0, "driver"),
        ({"lost": 0.1, "gap_ns": 128_000.0}, 0.0, "machine"),  # 2 Mpps in 128 us: a ring
        ({"lost": 0.1, "gap_ns": 127_000.0}, 0.0, "lost"),
        ({"held": 0.1, "waited_ns": 128_000.0}, 0.0, "machine"),
        ({"gap_ns": 1e9, "waited_ns": 1e9, "idle": 0.0}, 0.0, ""),
    ],
)
def test_why_a_trial_fails(change: dict[str, float], loss: float, limit: str) -> None:
    assert judge(replace(latency(mpps=2.0), **change), loss, ring_size=256) == limit


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((0.0, 0.0), "--resolution 0: give 0.001 to 0.5"),
        ((0.6, 0.0), "--resolution 0.6: give"),
        ((0.1, -0.1), "--loss -0.1: give 0 to 0.5"),
        ((0.1, 1.0), "--loss 1: give"),
    ],
)
def test_what_cannot_be_searched(values: tuple[float, float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        job(*values)


@pytest.mark.slow
def test_our_switch_is_searched() -> None:
    (frames,) = parse_frames("64")
    work = Workload(pattern="one-way", load="touch", ring_size=4096)
    of = Plan(work, seconds=0.02, warm_up_s=0.0, worker_cpu=CPUS[0], driver_cpu=CPUS[-1])
    one = job(0.25, 0.5)
    with running(ours(of), of) as run, connected(run, of) as guests:
        found = one.turn(guests, frames, "")
    assert found.trials >= 3
    assert found.limit in ("", "lost", "held", "driver", "machine")
    assert (found.mpps > 0) or found.limit
    assert one.settings == {"resolution": 0.25, "loss": 0.5}
