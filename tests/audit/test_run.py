"""The audit of our back-end as it is, and of it broken in each way that the report knows."""

import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import broken
import pytest
from dpdk_backends import Switch
from host import Host

from vhostfast.audit.report import (
    BROKEN,
    CAUSELESS,
    LATE_MARK,
    LATE_WRITE,
    MISSED,
    Report,
)
from vhostfast.audit.run import ONE_WAY, audit
from vhostfast.audit.shapes import SHAPES
from vhostfast.core import witness
from vhostfast.driver import Frontend, GuestMemory
from vhostfast.errors import EnvironmentLacks, UsageError
from vhostfast.protocol.features import Offer, VirtioFeature

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {"seconds": 0.1, "packets": 200}


def audit_ours(tmp_path: Path, *shapes: str, forward: str = "patch", **options: Any) -> Report:
    """Of our back-end in this process, with two guests or, looped back, with one."""
    ports = 2 if forward == "patch" else 1
    with Host(forward, ports=ports) as host:
        return audit(host.listen(tmp_path), shapes=shapes, **SHORT | options)


@pytest.mark.parametrize("shape", [shape.name for shape in SHAPES])
def test_our_switch_misses_nothing(switch: list[Path], shape: str) -> None:
    report = audit(switch, shapes=[shape], **SHORT)
    (row,) = report.rows
    assert (row.shape, row.faults, row.notes) == (shape, [], [])
    assert min(row.sent, row.received) >= SHORT["packets"]
    assert min(row.rounds, row.marks) > 5
    assert report.good
    assert not report.not_offered + report.not_reached


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A daemon of ours, a process of its own."""
    folder = tmp_path_factory.mktemp("switch")
    paths = [folder / "a", folder / "b"]
    with Switch(folder, paths, queues=2, adaptive=True) as daemon:
        daemon.ready()
        yield paths


@pytest.mark.parametrize("shape", ["direct", "log replaced", "cancelled"])
def test_marks_that_are_dropped_are_missed(switch: list[Path], shape: str) -> None:
    report = audit(switch, shapes=[shape], sabotage=0.5, **SHORT)
    assert not report.good
    assert {fault.when for fault in report.rows[0].faults} == {"exact", "at full speed"}
    found = " ".join(str(fault) for fault in report.rows[0].faults)
    for words in ("receive buffer of vring 0", "header", "frame", "used ring of vring"):
        assert words in found


@pytest.mark.parametrize(
    ("fault", "kinds", "what"),
    [
        (broken.forgets_the_log_of_ring_0, {MISSED}, {"receive buffer", "used ring of vring 0"}),
        (broken.forgets_the_used_ring_0, {MISSED}, {"used ring of vring 0"}),
        (broken.forgets_the_used_ring_1, {MISSED}, {"used ring of vring 1"}),
        (broken.marks_another_page, {MISSED, CAUSELESS}, {"used ring of vring 1", "nothing of"}),
    ],
)
def test_each_fault_of_a_back_end_is_found_and_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: broken.Fault,
    kinds: set[str],
    what: set[str],
) -> None:
    fault(monkeypatch)
    row = audit_ours(tmp_path, "direct").rows[0]
    assert {one.kind for one in row.faults} == kinds
    for words in what:
        assert any(words in one.what for one in row.faults)
    for one in row.faults:
        assert any(words in one.what for words in what)


@pytest.mark.parametrize(
    ("fault", "kind", "or_else"),
    [
        (broken.writes_after_the_stop, LATE_WRITE, MISSED),
        (broken.marks_after_the_stop, LATE_MARK, CAUSELESS),
    ],
)
def test_what_is_done_after_the_stop_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: broken.Fault, kind: str, or_else: str
) -> None:
    """On a busy machine it may also come before the last round."""
    fault(monkeypatch)
    row = audit_ours(tmp_path, "direct").rows[0]
    assert kind in {one.kind for one in row.faults} <= {kind, or_else}
    assert {one.gpa for one in row.faults} == {broken.NOBODYS}


def test_one_socket_with_a_loop(tmp_path: Path) -> None:
    (row,) = audit_ours(tmp_path, "direct", forward="loopback").rows
    assert (row.faults, row.notes) == ([], [])
    assert min(row.sent, row.received) > 200


def test_one_socket_without_a_loop_says_what_was_not_looked_at(tmp_path: Path) -> None:
    (row,) = audit_ours(tmp_path, "two queue pairs", forward="drop").rows
    assert (row.faults, row.notes) == ([], [ONE_WAY])
    assert (row.sent > 200, row.received) == (True, 0)


def test_what_is_not_offered_has_no_row(tmp_path: Path) -> None:
    whole = Offer.net()
    offer = Offer(whole.features & ~VirtioFeature.INDIRECT_DESC, whole.protocol_features, 1)
    with Host("loopback", ports=1, offer=offer) as host:
        report = audit(
            host.listen(tmp_path), shapes=["indirect", "direct", "two queue pairs"], **SHORT
        )
    assert [row.shape for row in report.rows] == ["direct"]
    assert report.not_offered == ["indirect", "two queue pairs"]
    assert report.good


def test_a_back_end_that_dies_amid_a_shape_is_a_fault(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    with Switch(tmp_path, paths, adaptive=True) as switch:
        switch.ready()

        def end_it_soon(name: str) -> None:
            if name == "chained":
                threading.Timer(0.2, switch.process.kill).start()
            elif name == "indirect":
                switch.process.wait()

        shapes = ["direct", "chained", "indirect"]
        report = audit(paths, shapes=shapes, progress=end_it_soon, seconds=1)
    assert [row.shape for row in report.rows] == ["direct", "chained"]
    assert report.rows[0].faults == []
    assert {fault.kind for fault in report.rows[1].faults} == {BROKEN}
    assert any("back-end" in fault.what for fault in report.rows[1].faults)
    assert report.not_reached == ["indirect"]
    assert not report.good


def test_a_socket_that_is_taken(tmp_path: Path) -> None:
    with Host("loopback", ports=1) as host:
        (path,) = host.listen(tmp_path)
        with (
            GuestMemory() as memory,
            Frontend(path, memory),
            pytest.raises(EnvironmentLacks, match="Has it a front-end already"),
        ):
            audit([path])


def test_what_the_audit_can_not_do_without() -> None:
    with pytest.raises(UsageError, match="3 sockets"):
        audit([Path("a"), Path("b"), Path("c")])
    with pytest.raises(UsageError, match=r"shape=round: give one of 'direct', 'chained', "):
        audit([Path("a")], shapes=["round"])


def test_nobody_at_the_socket_or_no_logging(tmp_path: Path) -> None:
    whole = Offer.net()
    offer = Offer(whole.features & ~VirtioFeature.LOG_ALL, whole.protocol_features)
    with (
        Host("loopback", ports=1, offer=offer) as host,
        pytest.raises(EnvironmentLacks, match="LOG_ALL"),
    ):
        audit(host.listen(tmp_path), **SHORT)


def test_an_old_kernel_is_told_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "SYS_USERFAULTFD", {})
    with pytest.raises(EnvironmentLacks, match=r"6\.7 or newer"):
        audit([Path("/nowhere")])


def test_what_can_not_be_audited_is_not_called_clean(tmp_path: Path) -> None:
    whole = Offer.net()
    offer = replace(whole, features=whole.features & ~VirtioFeature.INDIRECT_DESC)
    with (
        Host("loopback", ports=1, offer=offer) as host,
        pytest.raises(EnvironmentLacks, match="nothing to audit: not offered: indirect"),
    ):
        audit(host.listen(tmp_path), shapes=["indirect"], **SHORT)


def test_half_an_audit_says_so(tmp_path: Path) -> None:
    report = audit_ours(tmp_path, "direct", forward="drop")
    assert report.good
    assert not report.whole


def test_a_socket_given_twice(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="given twice"):
        audit([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_a_server_of_something_else(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "a"))
        server.listen()

        def answer() -> None:
            with server.accept()[0] as peer:
                peer.recv(12)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(EnvironmentLacks, match="a does not speak vhost-user"):
            audit([tmp_path / "a"])
        thread.join()
