"""The guests of an audit and where their memory lies."""

from pathlib import Path

import pytest
from host import Host

from vhostfast.audit.shapes import SHAPES, Shape
from vhostfast.audit.stage import MIGRATED, STAYING, Stage
from vhostfast.protocol.message import LOG_PAGE


def test_a_page_is_of_one_guest_or_of_none() -> None:
    def pages(regions: tuple[tuple[int, int], ...]) -> set[int]:
        return {
            page for gpa, size in regions for page in range(gpa >> 12, (gpa + size - 1 >> 12) + 1)
        }

    assert not pages(MIGRATED) & pages(STAYING)
    assert max(pages(STAYING)) < max(pages(MIGRATED)), "B's marks would fall beyond A's log"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_rings_lie_in_one_region_and_areas_on_pages_of_their_own(
    tmp_path: Path, shape: Shape
) -> None:
    with Host() as host, Stage(host.listen(tmp_path), shape) as stage:
        assert len(stage.frontends) == 2
        assert not stage.loops
        for frontend in stage.frontends:
            areas = []
            for vring in frontend.rings:
                areas += [
                    (vring.desc_gpa, 16 * vring.size),
                    (vring.avail_gpa, 6 + 2 * vring.size),
                    (vring.used_gpa, 6 + 8 * vring.size),
                ]
            taken: set[int] = set()
            for gpa, size in areas:
                assert any(
                    r.gpa <= gpa and gpa + size <= r.gpa + r.size for r in frontend.memory.regions
                )
                own = set(range(gpa // LOG_PAGE, (gpa + size - 1) // LOG_PAGE + 1))
                assert not own & taken
                taken |= own


def test_who_talks_to_whom(tmp_path: Path) -> None:
    shape = next(shape for shape in SHAPES if shape.queue_pairs == 2)
    with Host() as host:
        paths = host.listen(tmp_path)
        with Stage(paths, shape) as stage:
            a, b = stage.stations()
            assert (a.mac, a.peer, b.mac, b.peer) == (a.mac, b.mac, b.mac, a.mac)
            assert a.mac != b.mac
            assert (a.flow, b.flow) == (0, 2)
        with Stage(paths[:1], shape) as stage:
            (a,) = stage.stations()
            assert stage.loops
            assert a.mac == a.peer
