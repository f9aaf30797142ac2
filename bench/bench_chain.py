"""Chain to chain: 1500 bytes between chains of so many spans."""

import pytest
from subjects import COUNT, LEVELS, steps

pytestmark = pytest.mark.benchmark(group="chain")
SIZE = 1500


def test_null(benchmark):
    assert benchmark(steps().timed_null, COUNT) == COUNT


@pytest.mark.parametrize("spans", [(1, 1), (2, 1), (1, 3), (3, 8)], ids="{0[0]} to {0[1]}".format)
@pytest.mark.parametrize("level", LEVELS)
def test_chain_to_chain(benchmark, level, spans):
    steps().prepare_chains(*spans, SIZE)
    assert benchmark(steps().timed_chain, LEVELS[level], COUNT) == COUNT * SIZE
    assert steps().copied()
