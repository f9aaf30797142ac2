"""A job is done with every back-end, at each of its loads, in every round."""

import os

import pytest

from vhostfast.bench.backend import Rows, null, ours
from vhostfast.bench.job import THROUGHPUT, Job
from vhostfast.bench.rounds import run
from vhostfast.bench.sample import Guests, measure, verify
from vhostfast.bench.workload import Frames, Plan, Workload, parse_frames

CPUS = sorted(os.sched_getaffinity(0))


def test_throughput_verifies_first() -> None:
    assert (THROUGHPUT.kind, THROUGHPUT.first, THROUGHPUT.loads) == ("throughput", verify, ("",))
    assert THROUGHPUT.null


@pytest.mark.slow
def test_each_load_has_a_turn_and_null_none_where_it_means_nothing() -> None:
    done: list[str] = []

    def first(guests: Guests, frames: Frames) -> None:
        done.append(f"{guests.run.name} {frames.name}")

    def turn(guests: Guests, frames: Frames, load: str) -> object:
        done.append(f"{guests.run.name} {frames.name} {load}")
        return measure(guests, frames)

    work = Workload(parse_frames("64"), pattern="loop")
    of = Plan(work, 2, 0.01, 0.0, CPUS[0], CPUS[-1])
    rows = Rows((null(of), ours(of)), "vhostfast", None)
    one = Job("throughput", first, turn, loads=("a", "b"), null=False, settings={"x": 1})
    told: list[tuple[str, float]] = []
    report = run(of, rows, lambda *step: told.append(step), lambda *_: 50.0, one)
    assert done == ["vhostfast 64", *["vhostfast 64 a", "vhostfast 64 b"] * 2]
    assert [what for what, _ in told][1:] == ["vhostfast, 64 B at a", "vhostfast, 64 B at b"] * 2
    assert told[-1][1] == pytest.approx(1 - 1 / 5)
    assert [one.load for one in report.rounds] == ["a", "b"] * 2
    assert report.loads() == ["a", "b"]
    assert list(report.commands) == ["vhostfast"]
    assert report.plan["x"] == 1
