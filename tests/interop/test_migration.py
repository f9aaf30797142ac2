"""QEMU migrates to QEMU under two-way traffic of numbered frames, and no page is lost.

The two memories are compared while both stand still, before the destination goes on. The guest
looks at its receive rings every two seconds: what we write into its buffers is ours alone for a
while, and a page that we don't mark differs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pattern
import pytest
from migration import LOG_NAME, SOON_MS, Migration, holds_memfd
from peer import RARP_TYPE, mac_bytes
from qemu import Guest
from scene import RATE, Scene

pytestmark = [pytest.mark.peers, pytest.mark.timeout(180)]

LOG_ALL = 1 << 26
SLOW = 1 << 20  # bytes a second: a migration that will still be there
DEFAULT_BANDWIDTH, DEFAULT_DOWNTIME_MS = 128 << 20, 300  # QEMU's own
PINGS = 50
ATTEMPTS = 3
FORGETFUL = (str(Path(__file__).with_name("forgetful_switch.py")),)


@pytest.mark.parametrize(
    ("pairs", "route"), [(1, "babacacaca"), (2, "bca")], ids=["one pair", "two pairs"]
)
def test_moves(folder: Path, pairs: int, route: str, capsys: pytest.CaptureFixture[str]) -> None:
    """There and back, on one switch and to another process."""
    with Scene(folder, pairs=pairs, two=True, busy=True) as scene:
        scene.check_traffic()
        for place in route:
            moved = scene.move(place)
            lost = scene.check_traffic()
            with capsys.disabled():
                print(
                    f"\nto {place}: {moved.rounds} rounds, {len(moved.marked)} pages marked,"
                    f" {moved.unread} frames unread; lost so far: {lost}"
                )


def test_the_comparison_finds_what_is_not_marked(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The control: with marks that nobody sees, pages are lost; unless the guest happened to stop
    when it had just looked at its ring, and so written to all of them itself."""
    for _ in range(ATTEMPTS):
        with Scene(folder, busy=True, program=FORGETFUL) as scene:
            moved, _ = scene.migrate("b")
        with capsys.disabled():
            print(
                f"\nthe control: {len(moved.differing)} pages differ, {moved.unread} frames unread"
            )
        if moved.unread > 0:
            break
    with pytest.raises(AssertionError, match=r"pages differ: GPA 0x[0-9a-f]+ never marked"):
        moved.assert_equal()


def die(migration: Migration, destination: Guest) -> None:
    destination.kill()
    migration.wait_for("failed")


ENDS: dict[str, Callable[[Migration, Guest], None]] = {
    "cancelled": lambda migration, _: migration.cancel(),
    "the destination dies": die,
}


def test_the_source_goes_on_if_the_migration_does_not(folder: Path) -> None:
    """And logs no more, until the next one, which is none the worse for it."""
    with Scene(folder, busy=True) as scene:
        switch, process = scene.switch, scene.switch.process.pid
        for end in ENDS.values():
            told = len(switch.output)
            destination = scene.destination("b")
            migration = Migration(scene.guest, destination, bandwidth=SLOW)
            switch.wait_for("p0: SET_VRING_ADDR .*index=1, flags=1", told)
            assert holds_memfd(process, LOG_NAME)
            scene.check_traffic()
            told = len(switch.output)
            end(migration, destination)
            destination.close()
            features = switch.wait_for(r"p0: SET_FEATURES U64\(value=(\d+)\)", told)
            assert not int(features[1]) & LOG_ALL
            switch.wait_for("p0: SET_VRING_ADDR .*index=1, flags=0", told)
            assert not holds_memfd(process, LOG_NAME)
            assert scene.guest.control("query-status")["status"] == "running"
            scene.check_traffic()
        scene.move("b")
        scene.check_traffic()


def test_the_network_is_told_by_rarp(folder: Path) -> None:
    """Of a guest that can't announce itself and says nothing: frames for it go to its new port at
    once, to nobody else, and not to the old one, whose QEMU is still there."""
    with Scene(folder, rate=0, options=("guest_announce=off",)) as scene:
        bystander = scene.plug("side")
        scene.guest.run(
            f"! ping -c 1 -W 1 {scene.peer.address};"  # the switch knows its old port
            " echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
        )
        source, scene.guest = scene.guest, scene.destination("b")
        Migration(source, scene.guest, downtime_ms=SOON_MS).finish()
        scene.guest.control("cont")
        scene.peer.wait_until(lambda: bool(scene.peer.rarps), "a RARP frame")
        guest = mac_bytes(scene.guest.card.mac)
        arp = bytes.fromhex("0001 0800 06 04 0003") + (guest + bytes(4)) * 2
        assert scene.peer.rarps[0] == (b"\xff" * 6 + guest + RARP_TYPE + arp).ljust(60, b"\0")
        before = scene.counters()
        scene.peer.rate = RATE
        scene.peer.wait_until(
            lambda: pattern.totals(scene.guest, 0).received >= RATE, "frames at the guest"
        )
        after = scene.counters()
        assert after["p1"][0] == 0, "the guest said something: RARP proves nothing"
        assert after["p0"][1] == before["p0"][1]
        kinds = {data[12:14] for data in bystander.received()}
        assert RARP_TYPE in kinds
        assert pattern.TYPE not in kinds


@pytest.mark.parametrize("announce", ["guest_announce=on", "guest_announce=off"])
def test_downtime(
    folder: Path,
    announce: str,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    """Of a migration as QEMU does it unless told otherwise: reported."""
    with Scene(folder, options=(announce,)) as scene:
        scene.peer.pinging = scene.guest.card.address
        source, scene.guest = scene.guest, scene.destination("b", paused=False)
        peer = scene.peer
        peer.wait_until(lambda: len(peer.replies) > PINGS, "answers to pings")
        begun = len(peer.replies)
        migration = Migration(
            source, scene.guest, bandwidth=DEFAULT_BANDWIDTH, downtime_ms=DEFAULT_DOWNTIME_MS
        )
        state = migration.wait_for("completed")
        ended = len(peer.replies)
        peer.wait_until(lambda: len(peer.replies) > ended + PINGS, "answers after the move")
        scene.check_traffic()
        figures = {
            "silence before, ms": peer.longest_silence_ms(last=begun),
            "silence in the migration, ms": peer.longest_silence_ms(first=begun - 1),
            "downtime by QEMU, ms": state["downtime"],
        }
        for name, figure in figures.items():
            record_property(name, figure)
        with capsys.disabled():
            print(f"\n{announce}, a ping each 10 ms: {figures}")
