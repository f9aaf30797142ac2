"""Two QEMU guests with every mix of offloads: TCP both ways, content hashed, and its speed told.

One boot for all mixes: each guest has a card for each, and card i of the one is joined with card i
of the other. `-s` shows what was sent in which form, and the speed of one stream with all offloads
and with none, in turns.
"""

from __future__ import annotations

import re
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from dpdk_backends import Switch
from qemu import Card, Guest

pytestmark = [pytest.mark.peers, pytest.mark.timeout(180)]

SIZE = 2_000_000  # bytes each way, by each card and IP
STREAM, ROUNDS = 20_000_000, 5  # bytes one way; the median of so many rounds is told
FRAME_MAX = 1514
LESS = {"none": ("csum", "tso4", "tso6", "ecn"), "csum": ("tso4", "tso6", "ecn"), "tso": ()}
BITS = {"none": 0, "csum": 1, "tso": 0b1111}
SENT = dict(zip(("csum", "tso4", "tso6", "ecn"), (0, 11, 12, 13), strict=True))  # virtio 1.3, 5.1.3
RECEIVED = dict(zip(("csum", "tso4", "tso6", "ecn"), (1, 7, 8, 9), strict=True))


@dataclass(frozen=True)
class Kind:
    """What a card's driver may send, and receive: nothing, the checksum, or segments as well."""

    sends: str
    takes: str
    mergeable: bool = True

    def options(self) -> list[str]:
        off = [name if name == "csum" else f"host_{name}" for name in LESS[self.sends]]
        off += [f"guest_{name}" for name in LESS[self.takes]]
        off += [] if self.mergeable else ["mrg_rxbuf"]
        return [f"{name}=off" for name in off]

    def bits(self) -> int:
        """The feature bits that are left."""
        sent = sum(1 << bit for name, bit in SENT.items() if name not in LESS[self.sends])
        return sent | sum(
            1 << bit for name, bit in RECEIVED.items() if name not in LESS[self.takes]
        )


# Of what one may send and what the other takes every pair is there, one way or the other.
MIXES = [
    (Kind("tso", "tso"), Kind("tso", "tso")),
    (Kind("none", "none"), Kind("none", "csum")),
    (Kind("tso", "none"), Kind("tso", "csum")),
    (Kind("csum", "none"), Kind("csum", "tso")),
    (Kind("csum", "tso"), Kind("none", "csum")),
    (Kind("tso", "tso", mergeable=False), Kind("tso", "none", mergeable=False)),
]
ALL, NONE = 0, 1  # none at least from b to a
OFFLOADS = sum(1 << bit for bit in (*SENT.values(), *RECEIVED.values()))


def test_every_pair_is_in_a_mix() -> None:
    pairs = {(one.sends, other.takes) for mix in MIXES for one, other in (mix, mix[::-1])}
    assert pairs == {(sends, takes) for sends in LESS for takes in LESS}


def start(stack: ExitStack, folder: Path) -> tuple[Switch, list[Guest]]:
    sockets = [folder / f"{side}{i}.sock" for i in range(len(MIXES)) for side in "ab"]
    switch = stack.enter_context(Switch(folder, sockets, queues=None, adaptive=True))
    switch.ready()
    guests = []
    for side in (0, 1):
        cards = [
            Card(sockets[2 * i + side], 2 * i + side + 1, mix[side].options())
            for i, mix in enumerate(MIXES)
        ]
        guest = Guest("ab"[side], folder, cards[0], more=cards[1:])
        guests.append(stack.enter_context(guest))
    for side, guest in enumerate(guests):
        guest.ready()
        for i, mix in enumerate(MIXES):
            interface = f"eth{i}"
            assert guest.features(interface) & OFFLOADS == mix[side].bits()
            guest.run(
                f"ip address add 10.1.{i}.{side + 1}/24 dev {interface};"
                f" echo 0 > /proc/sys/net/ipv6/conf/{interface}/accept_dad;"
                f" ip link set {interface} up;"
                f" ip -6 address add fd0{i}::{side + 1}/64 dev {interface}"
            )
        guest.run(f"head -c {SIZE} /dev/urandom > /tmp/sent")
        guest.run(f"head -c {STREAM} /dev/zero > /tmp/zeros")
    return switch, guests


def exchange(guests: list[Guest], address: str) -> None:
    """A file each way, at once. What came is what was sent."""
    a, b = guests
    a.begin(f"guest exchange listen {address} 5000 /tmp/sent /tmp/received")
    b.run(f"guest exchange connect {address} 5000 /tmp/sent /tmp/received", 60)
    a.result()
    sent, received = (
        [guest.run(f"sha256sum < /tmp/{name}").split()[0] for guest in guests]
        for name in ("sent", "received")
    )
    assert received == sent[::-1]


def stream(guests: list[Guest], card: int) -> float:
    """The speed at which one guest gets zeros from the other, in Mbit/s."""
    a, b = guests
    began = time.monotonic()
    a.begin(f"guest exchange listen 10.1.{card}.1 5000 /dev/null /dev/null")
    b.run(f"guest exchange connect 10.1.{card}.1 5000 /tmp/zeros /dev/null", 60)
    a.result()
    return STREAM * 8 / (time.monotonic() - began) / 1e6


def counters(switch: Switch) -> list[tuple[int, int, int]]:
    """Of each port: packets and bytes received from its guest, packets sent to it."""
    told = len(switch.output)
    switch.process.send_signal(signal.SIGUSR1)
    switch.wait_for("^[-0-9: ]+ workers: ", told)
    line = r" p\d+: received (\d+) packets \((\d+) bytes\), sent (\d+) packets.*$"
    found = list(re.finditer(line, switch.output[told:], re.MULTILINE))
    assert not [row[0] for row in found if "malformed" in row[0] or "too_big" in row[0]]
    return [(int(row[1]), int(row[2]), int(row[3])) for row in found]


def test_every_mix_of_offloads(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        switch, guests = start(stack, folder)
        for i, mix in enumerate(MIXES):
            for address in (f"10.1.{i}.1", f"fd0{i}::1"):
                before = counters(switch)
                exchange(guests, address)
                rows = [
                    tuple(now - then for now, then in zip(new, old, strict=True))
                    for new, old in zip(counters(switch), before, strict=True)
                ][2 * i : 2 * i + 2]
                check(mix, rows)
                with capsys.disabled():
                    told = " and ".join(f"sends {kind.sends} takes {kind.takes}" for kind in mix)
                    print(f"\n{told}, {address}: (packets, bytes, packets sent on) {rows}")
        speeds = [[stream(guests, i) for i in (ALL, NONE)] for _ in range(ROUNDS)]
        with capsys.disabled():
            for name, each in zip(("all", "no"), zip(*speeds, strict=True), strict=True):
                rates = ", ".join(f"{rate:.0f}" for rate in sorted(each))
                print(f"\none stream, {name} offloads: {median(each):.0f} Mbit/s ({rates})")
        assert switch.close() == 0


def check(mix: tuple[Kind, Kind], rows: list[tuple[int, ...]]) -> None:
    """Large frames came from who may send them, and were cut for who does not take them."""
    for side in (0, 1):
        packets, size, _ = rows[side]
        sent_on = rows[1 - side][2]
        assert size > SIZE
        assert (packets < size / FRAME_MAX) == (mix[side].sends == "tso")
        cut = mix[side].sends == "tso" and mix[1 - side].takes != "tso"
        assert (sent_on > size / FRAME_MAX) if cut else (sent_on == packets)
