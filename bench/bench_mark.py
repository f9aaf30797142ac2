"""Mark: 64 bytes in the migration log, on one page again and again and on pages far apart."""

import pytest
from subjects import COUNT, steps

pytestmark = pytest.mark.benchmark(group="mark")


def test_null(benchmark):
    assert benchmark(steps().timed_null, COUNT) == COUNT


@pytest.mark.parametrize("pages", [1, 1 << 15], ids=["hot page", "scattered"])
def test_mark(benchmark, pages):
    steps().prepare_marks(pages)
    assert benchmark(steps().timed_mark, COUNT) == COUNT
    assert steps().marked_pages() == min(pages, COUNT)
