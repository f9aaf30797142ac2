"""The exact pass: what no comparison of memory could tell."""

from pathlib import Path

import broken
import pytest
from host import Host

from vhostfast.audit import exact as module
from vhostfast.audit.exact import ExactPass, exact
from vhostfast.audit.report import MISSED, Row
from vhostfast.audit.shapes import SHAPES, Shape
from vhostfast.audit.stage import Stage

pytestmark = pytest.mark.slow


def shape(name: str) -> Shape:
    return next(one for one in SHAPES if one.name == name)


@pytest.mark.parametrize("name", ["direct", "small buffers, chained", "two queue pairs"])
def test_every_packet_is_accounted_for(tmp_path: Path, name: str) -> None:
    row = Row(name)
    with Host() as host, Stage(host.listen(tmp_path), shape(name)) as stage:
        exact(stage, row, 500, sabotage=0)
    assert row.faults == []
    assert 500 <= row.sent == row.received < 600
    assert row.marks >= row.rounds > 1


def test_a_page_written_with_what_it_was_and_not_marked_is_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rounds change the buffers; later ones write the same frames into them again."""
    with Host() as host, Stage(host.listen(tmp_path), shape("ring of 64")) as stage:
        row = Row("first")
        exact(stage, row, 1000, sabotage=0)
        assert row.faults == []
        broken.forgets_the_log_of_ring_0(monkeypatch)
        found = ExactPass(stage, row, 0)
        found.run(300)
    assert {fault.kind for fault in row.faults} == {MISSED}
    same = [fault for fault in row.faults if "written with what it was" in fault.what]
    assert any("receive buffer of vring 0" in fault.what for fault in same)


def test_nothing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKEN_S", 0.1)
    row = Row("direct")
    with Host() as host, Stage(host.listen(tmp_path), shape("direct")) as stage:
        for port in host.ports:
            port.attach = port.detach = lambda ring: None
        exact(stage, row, 100, sabotage=0)
    assert [fault.what for fault in row.faults] == ["nothing of what a guest sent was taken"]
