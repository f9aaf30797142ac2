"""Pop: the next chain of a transmit ring, each descriptor checked and translated."""

import pytest
from subjects import COUNT, LAYOUTS, steps

pytestmark = pytest.mark.benchmark(group="pop")


def test_null(benchmark):
    assert benchmark(steps().timed_null, COUNT) == COUNT


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pop(benchmark, layout):
    steps().prepare_ring(LAYOUTS.index(layout), False)
    assert benchmark(steps().timed_pop, COUNT) == COUNT * (12 + 64)
