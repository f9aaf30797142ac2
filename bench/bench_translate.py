"""Translate: a guest's address to ours, in the region of the last hit and in any."""

import pytest
from subjects import COUNT, steps

pytestmark = pytest.mark.benchmark(group="translate")


def test_null(benchmark):
    assert benchmark(steps().timed_null, COUNT) == COUNT


@pytest.mark.parametrize("scattered", [False, True], ids=["last hit", "random"])
@pytest.mark.parametrize("regions", [1, 8, 509])
def test_translate(benchmark, regions, scattered):
    steps().prepare_regions(regions, scattered)
    assert benchmark(steps().timed_translate, COUNT) == COUNT
