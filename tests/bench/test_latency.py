"""How long packets take: of every pattern, of a back-end known to be slow, of one that loses."""

import os
import sys
from pathlib import Path

import pytest

from vhostfast.bench.backend import Backend, bare, ours, running
from vhostfast.bench.latency import Latency, Rate, highest, job, measure, parse_rates
from vhostfast.bench.sample import connected, verify
from vhostfast.bench.workload import Plan, Workload, parse_frames
from vhostfast.errors import EnvironmentLacks, UsageError, VhostfastError

CPUS = sorted(os.sched_getaffinity(0))
FAULTY = Path(__file__).parent / "faulty.py"
(SMALL,) = parse_frames("64")


def plan(seconds: float = 0.1, **workload: object) -> Plan:
    work = Workload(load="touch", **workload)  # type: ignore[arg-type]
    cpus = {"worker_cpu": CPUS[0], "driver_cpu": CPUS[-1]}
    return Plan(work, seconds=seconds, warm_up_s=0.02, **cpus)


def faulty(kind: str) -> Backend:
    return Backend(kind, f"{sys.executable} {FAULTY} {kind} {{0}}")


def measured(backend: Backend, of: Plan, mpps: float, held_most: float = 1.0) -> Latency:
    with running(backend, of) as run, connected(run, of) as guests:
        return measure(guests, SMALL, mpps, held_most)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a while loses no packets."""
    monkeypatch.setattr("vhostfast.bench.sample.LINGER_S", 30.0)
    monkeypatch.setattr("vhostfast.bench.latency.GRACE_S", 60.0)


def test_rates() -> None:
    assert parse_rates("10%, 0.5,99.5%,2") == (
        Rate("10%", share=0.1),
        Rate("0.5", mpps=0.5),
        Rate("99.5%", share=0.995),
        Rate("2", mpps=2.0),
    )
    assert [one.of(8.0) for one in parse_rates("25%,0.5")] == [2.0, 0.5]


@pytest.mark.parametrize("text", ["", "0", "0%", "-1", "fast", "10%%", "1e3", "1000000", "nan"])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match=f"--rate: '{text}' is no rate: give millions"):
        parse_rates(text)


@pytest.mark.parametrize("text", ["200%", "10%,100.1%"])
def test_a_share_of_more_than_all(text: str) -> None:
    with pytest.raises(UsageError, match=r"--rate (200|100\.1)%: no back-end does more than 100%"):
        parse_rates(text)
    assert parse_rates("100%") == (Rate("100%", share=1.0),)


def test_a_rate_given_twice() -> None:
    with pytest.raises(UsageError, match="--rate 1,1: a rate is given twice"):
        parse_rates("1,1")


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    "workload",
    [
        {},
        {"pattern": "one-way", "layout": "chained"},
        {"pattern": "loop", "mode": "interrupt", "mergeable": False},
        {"layout": "indirect", "ring_size": 1024},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [ours, bare])
def test_every_pattern(workload: dict[str, object], make: object) -> None:
    assert callable(make)
    of = plan(**(workload if make is ours else workload | {"mode": "poll"}))
    with running(make(of), of) as run, connected(run, of) as guests:
        for frames in parse_frames("64,imix"):
            verify(guests, frames)
            one = measure(guests, frames, 0.1)
            assert (one.packets, one.lost, one.mpps) == (10_000, 0, 0.1)
            assert 0 < one.p50_ns <= one.p99_ns <= one.p999_ns <= one.max_ns
            assert one.verified > 0
            assert 0 <= one.idle <= 1
        assert highest(guests, SMALL) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("patient")
def test_a_known_delay_shows() -> None:
    """The device sleeps for 20 ms now and then, and once a packet has waited, others have too."""
    of = plan(0.5, pattern="loop")
    quick, slow = (measured(faulty(kind), of, 0.002) for kind in ("good", "slow"))
    assert slow.p50_ns >= 10e6
    assert slow.max_ns >= 20e6
    assert slow.lost == quick.lost == 0
    assert quick.packets == slow.packets == 1000


@pytest.mark.slow
def test_what_is_lost_is_told_and_the_rest_is_timed() -> None:
    of = plan(0.5, pattern="loop")
    one = measured(faulty("leaky"), of, 0.002)
    assert one.lost >= 0.1  # more, if the machine stood still
    assert one.packets == round((1 - one.lost) * 1000)
    assert one.p50_ns > 0


@pytest.mark.slow
def test_it_ends_when_too_many_are_held_up() -> None:
    one = measured(faulty("slow"), plan(20, pattern="loop"), 1.0, held_most=1e-4)
    assert one.held > 1e-4
    assert one.lost > 0.5  # not even offered


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("flip", VhostfastError, r"^flip: .*: \d+ corrupt of"),
        ("twice", VhostfastError, r"^twice: .*: \d+ repeated of"),
        ("drop", EnvironmentLacks, r"^drop took \d+ packets and delivered none"),
        ("die", EnvironmentLacks, r"^die has ended, exit code 9"),
    ],
)
def test_a_fault_is_a_sentence(kind: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        measured(faulty(kind), plan(2, pattern="loop"), 0.01)
    assert type(caught.value) is error


def test_a_job_needs_a_thousand_packets() -> None:
    """Told before anything is measured."""
    with pytest.raises(UsageError, match=r"--rate 0.001: in 0.1 s these are 100 packets, and"):
        job(parse_rates("50%,0.001"), 0.1)


@pytest.mark.slow
def test_a_share_may_be_too_few_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    of = plan(pattern="loop")
    one = job(parse_rates("50%"), of.seconds)
    with running(ours(of), of) as run, connected(run, of) as guests:
        one.first(guests, SMALL)
        assert one.turn(guests, SMALL, "50%").packets > 1000
        monkeypatch.setattr("vhostfast.bench.latency.PACKETS_MIN", 1 << 40)
        with pytest.raises(UsageError, match=r"--rate 50%: in 0.1 s these are \d+ packets, and"):
            one.turn(guests, SMALL, "50%")
