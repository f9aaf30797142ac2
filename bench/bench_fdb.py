"""Table look-up: to which port an address belongs, among as many as the table is made for."""

import pytest
from subjects import COUNT, steps

pytestmark = pytest.mark.benchmark(group="fdb")
# Beyond half of its room a table of random addresses forgets some.
ADDRESSES = [n for n in (16, 256, 1000, 10_000, 100_000) if n <= steps().fdb_room() // 2]


def test_null(benchmark):
    assert benchmark(steps().timed_null, COUNT) == COUNT


@pytest.mark.parametrize("addresses", ADDRESSES)
def test_find(benchmark, addresses):
    steps().prepare_addresses(addresses)
    assert benchmark(steps().timed_find, COUNT) == COUNT


@pytest.mark.parametrize("addresses", ADDRESSES)
def test_learn(benchmark, addresses):
    """What is known already, as almost all is."""
    steps().prepare_addresses(addresses)
    assert benchmark(steps().timed_learn, COUNT) == COUNT
    assert steps().known_addresses() == addresses
