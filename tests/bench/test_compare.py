"""When two runs differ by more than noise, and when they can't be compared at all."""

from dataclasses import replace
from math import isnan
from typing import Any

import pytest
from runs import RATES, latencies, loss_free, report

from vhostfast.bench.compare import compare
from vhostfast.errors import UsageError


def rates(*ours: float) -> dict[str, tuple[float, ...]]:
    return {**RATES, "vhostfast": ours}


@pytest.mark.parametrize(
    ("ours", "factor", "more_than_noise"),
    [
        ((12.0, 8.0, 30.0), 1.0, False),
        ((31.0, 36.0, 40.0), 3.0, True),  # all beyond 30
        ((29.0, 36.0, 40.0), 3.0, False),  # one lies among them
        ((1.0, 6.0, 7.9), 0.5, True),
        ((30.0, 36.0, 40.0), 3.0, False),
    ],
)
def test_more_than_noise(ours: tuple[float, ...], factor: float, more_than_noise: bool) -> None:
    rate = compare(report(), report(rates(*ours)))[0]
    assert (rate.row, rate.frames, rate.to) == ("vhostfast", "64", None)
    assert rate.factor == pytest.approx(factor)
    assert rate.is_more_than_noise is more_than_noise
    assert rate.chance == 10  # 6 over 3, either way round


@pytest.mark.parametrize(("old", "new", "told"), [(1, 1, False), (1, 4, False), (2, 2, True)])
def test_few_rounds_tell_nothing(old: int, new: int, told: bool) -> None:
    """Of one round each, one is always beyond the other."""
    slow, fast = report({"vhostfast": (1.0,) * old}), report({"vhostfast": (9.0,) * new})
    rate = compare(slow, fast)[0]
    assert (rate.is_told, rate.is_more_than_noise) == (told, told)


def test_ratios_are_compared_too() -> None:
    """Twice as fast on a machine that is twice as fast is nothing new."""
    twice = {row: tuple(2 * mpps for mpps in values) for row, values in RATES.items()}
    changes = {one.to: one for one in compare(report(), report(twice))}
    assert list(changes) == [None, "dpdk", "bare"]
    assert changes[None].factor == 2
    assert (changes["dpdk"].factor, changes["bare"].factor) == (1, 1)


def test_more_rounds_of_another_version_are_alike() -> None:
    new = report(rates(12.0, 8.0, 30.0))
    new = replace(new, machine={**new.machine, "commit": "abc"}, plan={**new.plan, "rounds": 9})
    assert compare(report(), new)


def test_times_are_compared_at_each_load() -> None:
    changes = compare(latencies(), latencies(p50_ns=5000.0))
    assert [(one.figure, one.load) for one in changes] == [
        (figure, load)
        for load in ("10%", "90%")
        for figure in ("p50_ns", "p99_ns", "p999_ns", "max_ns")
    ]
    assert all(one.factor == 10 and one.is_more_than_noise for one in changes)
    assert all(one.row == "vhostfast" and one.to is None for one in changes)


def test_rates_without_loss_are_compared() -> None:
    changes = compare(loss_free(), loss_free(rates(0.0, 0.0, 0.0)))
    assert [(one.figure, one.to) for one in changes] == [
        ("mpps", None), ("mpps", "dpdk"), ("mpps", "bare")
    ]  # fmt: skip
    assert changes[0].factor == 0
    back = compare(loss_free(rates(0.0, 0.0, 0.0)), loss_free())
    assert isnan(back[0].factor)


def test_reports_of_different_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="report was throughput and is loss-free"):
        compare(report(), loss_free())
    with pytest.raises(UsageError, match=r"resolution was 0\.01 and is 0\.02"):
        compare(loss_free(), replace(loss_free(), plan={**loss_free().plan, "resolution": 0.02}))
    one = latencies()
    other = replace(one, rounds=tuple(replace(part, load="5") for part in one.rounds))
    with pytest.raises(UsageError, match="rates was 10%,90% and is 5"):
        compare(one, other)


def plan(**change: Any) -> dict[str, Any]:
    return {"plan": {**report().plan, **change}}


WORK = report().plan["workload"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"machine": {"cpu": "y", "cpus": 2, "kernel": "6"}}, "cpu was x and is y"),
        ({"machine": {"cpu": "x", "cpus": 2, "kernel": "7"}}, "kernel was 6 and is 7"),
        (plan(hugepages=True), "hugepages was False and is True"),
        (plan(seconds=2.0), "seconds was 1.0 and is 2.0"),
        (plan(workload={**WORK, "load": "full"}), "load was lean and is full"),
        (plan(workload={**WORK, "frames": []}), "sizes was 64 and is "),
        ({"versus": "bare"}, "versus was dpdk and is bare"),
        ({"commands": {"vhostfast": ""}}, "rows was bare, dpdk, null and is "),
    ],
)
def test_unlike_runs_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=f"not of the same kind: .*{says}"):
        compare(report(), report(**change))
