"""The audit on DPDK's own back-end: clean where that is right, and its faults where it is not.

DPDK 22.11 logs split rings well. It does not wait for a log that comes after a restart, and adds
the log's offset in its file twice: then it writes past its map, and may die of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dpdk_backends import Vhost

from vhostfast.audit.report import BROKEN, MISSED
from vhostfast.audit.run import ONE_WAY, audit
from vhostfast.audit.shapes import SHAPES

pytestmark = [pytest.mark.peers, pytest.mark.slow]

SECONDS = 0.2
WRONG = ("restarted", "log at an offset")


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folder = tmp_path_factory.mktemp("dpdk")
    paths = [folder / "s0", folder / "s1"]
    with Vhost(folder, paths, queues=2) as backend:
        backend.ready()
        yield paths


@pytest.mark.parametrize("shape", [shape.name for shape in SHAPES if shape.name not in WRONG])
def test_no_page_is_missed(sockets: list[Path], shape: str) -> None:
    report = audit(sockets, seconds=SECONDS, packets=500, shapes=[shape])
    (row,) = report.rows
    assert (row.faults, row.notes) == ([], [])
    assert min(row.sent, row.received, row.marks) > 100


def test_marks_that_are_dropped_are_missed(sockets: list[Path]) -> None:
    report = audit(sockets, seconds=SECONDS, packets=500, shapes=["direct"], sabotage=0.1)
    assert {fault.kind for fault in report.rows[0].faults} == {MISSED}


def test_it_writes_before_the_log_is_there(sockets: list[Path]) -> None:
    report = audit(sockets, seconds=SECONDS, packets=500, shapes=["restarted"])
    found = report.rows[0].faults
    assert {fault.kind for fault in found} == {MISSED}
    assert any("receive buffer of vring 0" in fault.what for fault in found)


def test_it_adds_the_logs_offset_twice(tmp_path: Path) -> None:
    paths = [tmp_path / "s0", tmp_path / "s1"]
    with Vhost(tmp_path, paths) as backend:
        backend.ready()
        report = audit(paths, seconds=SECONDS, packets=500, shapes=["log at an offset", "direct"])
    assert {fault.kind for fault in report.rows[0].faults} <= {MISSED, BROKEN}
    assert not report.good


def test_one_port_that_sends_back(tmp_path: Path) -> None:
    path = tmp_path / "s0"
    with Vhost(tmp_path, [path]) as backend:
        backend.ready()
        report = audit([path], seconds=SECONDS, packets=500, shapes=["direct", "chained"])
    assert report.good
    for row in report.rows:
        assert ONE_WAY not in row.notes
        assert row.received > 500
