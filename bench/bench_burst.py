"""Whole bursts between guests whose rings are in this thread's cache: what checks and copies cost
where nobody else touches a line. The guests' part is a few instructions a burst."""

import pytest
from subjects import LEVELS, shapes, steps

pytestmark = pytest.mark.benchmark(group="burst")
PACKETS = 6400
SHAPES = shapes()


def test_null(benchmark):
    """Turns that find nothing, one for each burst of the others."""
    steps().prepare_burst(0, 0)
    assert benchmark(steps().run_turns, PACKETS // 64) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", LEVELS)
def test_burst(benchmark, level, shape):
    index = SHAPES.index(shape)
    steps().prepare_burst(index, LEVELS[level])
    assert benchmark(steps().run_burst, PACKETS) == PACKETS * steps().shape_copies(index)
    assert steps().wrong_frames() == 0
