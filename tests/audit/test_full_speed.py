"""The pass at full speed: faults that only show amid traffic."""

from pathlib import Path

import broken
import pytest
from host import Host

from vhostfast.audit import full_speed as module
from vhostfast.audit.full_speed import full_speed
from vhostfast.audit.report import LATE_WRITE, MISSED, Row
from vhostfast.audit.shapes import SHAPES
from vhostfast.audit.stage import Stage

pytestmark = pytest.mark.slow


def row_of(tmp_path: Path, name: str, seconds: float = 0.2, *, deaf: bool = False) -> Row:
    row = Row(name)
    shape = next(one for one in SHAPES if one.name == name)
    with Host() as host, Stage(host.listen(tmp_path), shape) as stage:
        if deaf:
            for port in host.ports:
                port.attach = port.detach = lambda ring: None
        full_speed(stage, row, seconds, sabotage=0)
    return row


@pytest.mark.parametrize("name", ["direct", "log replaced", "cancelled"])
def test_rounds_go_on_amid_traffic(tmp_path: Path, name: str) -> None:
    row = row_of(tmp_path, name)
    assert row.faults == []
    assert min(row.sent, row.received, row.marks) > 0
    assert row.rounds >= 2 * 2  # of each episode one amid the traffic, and the last


def test_a_back_end_that_does_not_wait_for_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken.does_not_wait_for_the_log(monkeypatch)
    row = row_of(tmp_path, "restarted")
    assert {fault.kind for fault in row.faults} == {MISSED}
    assert any("receive buffer of vring 0" in fault.what for fault in row.faults)


def test_a_write_long_after_the_stop_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broken, "LATE_S", module.WATCH_S / 2)
    broken.writes_after_the_stop(monkeypatch)
    row = row_of(tmp_path, "direct", seconds=0.1)
    assert {(fault.kind, fault.gpa) for fault in row.faults} == {(LATE_WRITE, broken.NOBODYS)}


def test_nothing_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "START_S", 0.1)
    row = row_of(tmp_path, "direct", seconds=0.1, deaf=True)
    assert [fault.what for fault in row.faults] == ["nothing of what a guest sent was taken"]
