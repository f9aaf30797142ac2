"""Push: a used element, not yet visible."""

import pytest
from subjects import COUNT, steps

pytestmark = pytest.mark.benchmark(group="push")
RING_SIZE = 256


def test_null(benchmark):
    assert benchmark(steps().timed_null, COUNT) == COUNT


def test_push(benchmark):
    steps().prepare_ring(0, False)
    lengths = range(COUNT - RING_SIZE, COUNT)  # the ring holds the last of them
    assert benchmark(steps().timed_push, COUNT) == sum(range(RING_SIZE)) + sum(lengths)
