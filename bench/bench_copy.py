"""Copy: the kernels by size class, at each instruction-set level of this CPU."""

import pytest
from subjects import COUNT, LEVELS, steps

pytestmark = pytest.mark.benchmark(group="copy")


def test_null(benchmark):
    assert benchmark(steps().timed_null, COUNT) == COUNT


@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024, 1500, 1514, 64 << 10])
@pytest.mark.parametrize("level", LEVELS)
def test_copy(benchmark, level, size):
    steps().prepare_copy(size)
    assert benchmark(steps().timed_copy, LEVELS[level], COUNT) == COUNT * size
    assert steps().copied()
