"""Publish: one used element becomes visible, without and with a migration log."""

import pytest
from subjects import COUNT, steps

pytestmark = pytest.mark.benchmark(group="publish")


def test_null(benchmark):
    assert benchmark(steps().timed_null, COUNT) == COUNT


@pytest.mark.parametrize("logged", [False, True], ids=["log off", "log on"])
def test_publish(benchmark, logged):
    steps().prepare_ring(0, logged)
    assert benchmark(steps().timed_publish, COUNT) == COUNT
    assert steps().logged_pages() == logged  # the used ring's own
