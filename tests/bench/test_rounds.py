"""Who has a turn when, and what is done over."""

import os
from collections.abc import Iterator

import pytest

from vhostfast.bench.backend import Rows, null, ours
from vhostfast.bench.report import Report
from vhostfast.bench.rounds import ATTEMPTS_MAX, run
from vhostfast.bench.workload import Plan, Workload, parse_frames
from vhostfast.errors import EnvironmentLacks

CPUS = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.slow


def plan(rounds: int = 1, sizes: str = "64") -> Plan:
    work = Workload(parse_frames(sizes), pattern="loop")
    cpus = {"worker_cpu": CPUS[0], "driver_cpu": CPUS[-1]}
    return Plan(work, rounds, seconds=0.05, warm_up_s=0.0, **cpus)


def measured(of: Plan, distances: Iterator[float]) -> tuple[Report, list[tuple[str, float]]]:
    """The report of null and our switch, and what progress was told."""
    told: list[tuple[str, float]] = []

    def progress(what: str, share: float) -> None:
        told.append((what, share))

    rows = Rows((null(of), ours(of)), "vhostfast", None)
    return run(of, rows, progress, lambda _first, _second: next(distances)), told


def still() -> Iterator[float]:
    while True:
        yield 50.0


def test_every_byte_first_and_then_in_turn() -> None:
    report, told = measured(plan(rounds=2, sizes="64,1500"), still())
    assert [what for what, _ in told] == [
        "vhostfast, 64 B: every byte",
        "vhostfast, 1500 B: every byte",
        *[f"{row}, {size} B" for size in (64, 1500) for row in ("null", "vhostfast")] * 2,
    ]
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(1 - 1 / 9)
    assert [one.frames for one in report.rounds] == ["64", "1500"] * 2
    for one in report.rounds:
        assert (one.attempts, one.still, one.distances) == (1, True, (50.0,) * 3)
        assert list(one.samples) == list(report.commands) == ["null", "vhostfast"]
        assert min(sample.mpps for sample in one.samples.values()) > 0


def test_a_round_is_done_over_when_the_cpus_moved() -> None:
    moves = iter([50.0, 250.0, 250.0, 200.0, 210.0, 190.0])
    (one,) = measured(plan(), moves)[0].rounds
    assert (one.attempts, one.still) == (2, True)
    assert one.distances == (200.0, 210.0, 190.0)


def test_a_machine_that_never_holds_still_is_told_of() -> None:
    moves = iter([50.0, 250.0, 50.0] * ATTEMPTS_MAX)
    (one,) = measured(plan(), moves)[0].rounds
    assert (one.attempts, one.still) == (ATTEMPTS_MAX, False)
    assert next(moves, None) is None


def test_cpus_are_asked_for_first() -> None:
    with pytest.raises(EnvironmentLacks, match="no such CPU"):
        measured(Plan(worker_cpu=CPUS[0], driver_cpu=4095), still())
