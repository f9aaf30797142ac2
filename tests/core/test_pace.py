"""Times are kept as truly as the histogram says, by the clock that the kernel has."""

import numpy as np
import pytest
from guest import Guest
from hypothesis import given
from hypothesis import strategies as st

from vhostfast.core.traffic import Flows, Pace, Receiver, Sender, cycles_per_ns, histogram_of
from vhostfast.driver.pace import Times

U64 = 2**64 - 1
NUMBERS = st.one_of(st.integers(0, 1000), st.integers(0, 1 << 40), st.integers(0, U64))


@given(st.lists(NUMBERS, min_size=1, max_size=300))
def test_every_value_is_counted_and_the_longest_is_exact(values: list[int]) -> None:
    counts, tops, most = histogram_of(values)
    assert counts.sum() == len(values)
    assert most == max(values)
    assert sorted(values)[0] <= tops[np.flatnonzero(counts)[0]]


@given(
    st.lists(st.integers(0, 1 << 40), min_size=1, max_size=300),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0]),
)
def test_quantiles_are_numpys(values: list[int], share: float) -> None:
    """A 128th more at most, never less."""
    counts, tops, most = histogram_of(values)
    found = Times(counts, tops.astype(float), float(most)).quantile(share)
    exact = float(np.quantile(values, share, method="inverted_cdf"))
    assert exact <= found <= exact * (1 + 1 / 128)


@given(st.lists(st.integers(0, 1 << 40), max_size=300), st.integers(0, 1 << 40))
def test_how_many_took_longer(values: list[int], than: int) -> None:
    counts, tops, most = histogram_of(values)
    found = Times(counts, tops.astype(float), float(most)).longer_than(than)
    assert sum(value > than for value in values) <= found
    assert found <= sum(value * (1 + 1 / 128) > than for value in values)


def test_of_nothing_there_is_no_quantile() -> None:
    counts, tops, most = histogram_of([])
    assert np.isnan(Times(counts, tops.astype(float), float(most)).quantile(0.5))


def test_the_clock_is_the_kernels() -> None:
    """Two measurements of it agree, whoever has the CPU in between."""
    first, second = cycles_per_ns(5), cycles_per_ns(20)
    assert first == pytest.approx(second, rel=0.01)


def test_lanes_that_are_no_journey() -> None:
    with Guest() as guest:
        ring = guest.vring(8, index=0)
        memory = ring.memory
        gpa = memory.take(2112 * 8)
        buffers = memory.view(gpa, 2112 * 8)
        common = {"stride": 2112, "header_size": 12, "layout": "direct"}
        sender = Sender(
            ring.ring, buffers, gpa, destination=bytes(6), source=bytes(6), flow=0, sizes=(64,),
            **common,
        )  # fmt: skip
        receiver = Receiver(
            ring.ring, buffers, gpa, Flows(), mergeable=False, verify_every=1, **common
        )
        wrong = [
            ([], "0 lanes"),
            ([(sender, receiver)] * 3, "3 lanes"),
            ([(sender, None)], "nobody sends, receives or answers"),
            ([(None, receiver)], "nobody sends, receives or answers"),
            ([(sender, receiver), (None, receiver)], "nobody sends, receives or answers"),
            ([(sender, None), (sender, None)], "nobody sends, receives or answers"),
        ]
        for lanes, says in wrong:
            with pytest.raises(ValueError, match=says):
                Pace(lanes, period=1.0, count=1, first=0)
        for change in ({"count": 0}, {"first": 1}, {"period": -1.0}, {"period": float("nan")}):
            with pytest.raises(ValueError, match="packets"):
                Pace([(sender, receiver)], **{"period": 1.0, "count": 1, "first": 0, **change})
