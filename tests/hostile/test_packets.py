"""Packets that are none, headers that lie, and receive buffers that hold nothing."""

from dataclasses import dataclass
from itertools import product
from struct import pack

import pytest
from hostile.scene import CUT, HEADER, HOSTILE, REGIONS, Desc, Scene, Setting, cut, frame

FORWARDS = ["patch", "learn", "loopback", "device"]
ROOM = (*REGIONS, (0x100000, 0x80000))  # for the largest
NEEDS_CSUM, TCPV4, UDP, TCPV6, ECN = 1, 1, 3, 4, 0x80
CSUM, TSO4 = 1, 2  # enum offload
SETTINGS = [Setting(forward, pieces) for forward, pieces in product(FORWARDS[:3], (False, True))]
SETTINGS.append(Setting("device"))


def header(flags: int = 0, gso: int = 0, hdr_len: int = 0, gso_size: int = 0, start: int = 0,
           offset: int = 0, buffers: int = 0) -> bytes:  # fmt: skip
    return pack("<BBHHHHH", flags, gso, hdr_len, gso_size, start, offset, buffers)


# --- Sizes


def sizes(sizes: list[int], outcome: str) -> list:
    return [
        pytest.param(n, marks=pytest.mark.hostile("packets", f"a frame of {n} bytes", outcome))
        for n in sizes
    ]


@pytest.mark.parametrize("size", sizes([14, 59, 65535, 65589], "delivered"))
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_the_shortest_and_the_longest_frame(setting, size):
    for cuts in ([], [HEADER], [5, 9, 7]):
        with Scene(setting, writes=False, regions=ROOM) as scene:
            for guest in scene.yard.guests:
                guest.guest.memory.position = ROOM[-1][0]
            gpa = scene.packet(size=size)
            head = scene.offer(cut(gpa, *cuts, whole=HEADER + size))
            assert scene.play(size=size) == [frame(scene.receiver, HOSTILE, size)]
            assert scene.used() == [(head, 0)]
            scene.others_go_on()


@pytest.mark.parametrize("size", sizes([0, 1, 13, 65590, 70000, 300000], "dropped and counted"))
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_a_frame_that_is_none(setting, size):
    for cuts in ([], [HEADER], [5, 0, 7]):
        with Scene(setting, writes=False, regions=ROOM) as scene:
            scene.hostile.one.guest.memory.position = ROOM[-1][0]
            gpa = scene.packet(size=size)
            dropped_and_counted(scene, cut(gpa, *cuts, whole=HEADER + size))


@pytest.mark.hostile("packets", "less than a header: 0, 1 or 11 bytes", "dropped and counted")
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("whole", [0, 1, 11])
def test_less_than_a_header(setting, whole):
    for pieces in ([whole], [0, whole], [*[1] * whole, 0], [0] * 16):
        with Scene(setting, writes=False) as scene:
            gpa = scene.packet()
            dropped_and_counted(scene, [Desc(gpa + i, size) for i, size in enumerate(pieces)][:16])


def dropped_and_counted(scene: Scene, chain: list[Desc]) -> None:
    """It is given back, nobody gets a byte, and its guest's next packet goes."""
    head = scene.offer(chain, head=1)
    assert scene.play() == []
    assert scene.used() == [(head, 0)]
    assert scene.fault is None
    assert scene.malformed == 1
    good = scene.packet(CUT)
    scene.offer([Desc(good, HEADER + 60)], head=0)
    assert scene.play(room=0) == [frame(scene.receiver, HOSTILE)]
    scene.others_go_on()


# --- Headers


@dataclass(frozen=True)
class Said:
    name: str
    header: bytes
    sends: int = 0  # enum offload: what the sender has taken


PLAIN = [
    Said("flags that nobody knows", header(flags=0xFE)),
    Said("num_buffers is nonsense", header(buffers=0xFFFF)),
    Said("hdr_len longer than the frame, without GSO", header(hdr_len=0xFFFF)),
    Said("gso_size without GSO", header(gso_size=0xFFFF)),
    Said("checksum fields without NEEDS_CSUM", header(start=0xFFFF, offset=0xFFFF)),
    Said("all of these", header(0xFE, 0, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF), CSUM | TSO4),
]
FALSE = [
    Said("NEEDS_CSUM, not negotiated", header(NEEDS_CSUM, start=34, offset=6)),
    Said("GSO, not negotiated", header(NEEDS_CSUM, TCPV4, 54, 1, 34, 16), CSUM),
    Said("GSO without NEEDS_CSUM", header(0, TCPV4, 54, 1, 34, 16), CSUM | TSO4),
    Said("gso_type unknown", header(NEEDS_CSUM, 2, 54, 1, 34, 16), 15),
    Said("gso_type unknown", header(NEEDS_CSUM, 0x7F, 54, 1, 34, 16), 15),
    Said("gso_type unknown", header(0, ECN), 15),
    Said("UDP fragmentation, which is not offered", header(NEEDS_CSUM, UDP, 42, 1, 34, 6), 15),
    Said("gso_size 0", header(NEEDS_CSUM, TCPV4, 54, 0, 34, 16), CSUM | TSO4),
    Said("GSO of a frame that is not TCP", header(NEEDS_CSUM, TCPV4, 54, 1, 34, 16), CSUM | TSO4),
    Said("GSO of a frame of the other IP", header(NEEDS_CSUM, TCPV6, 54, 1, 54, 16), 15),
    Said("csum_start behind the frame", header(NEEDS_CSUM, start=60, offset=0), CSUM),
    Said("csum_start behind the frame", header(NEEDS_CSUM, start=0xFFFF, offset=0), CSUM),
    Said("csum_start in the Ethernet header", header(NEEDS_CSUM, start=13, offset=6), CSUM),
    Said("checksum half behind the frame", header(NEEDS_CSUM, start=34, offset=25), CSUM),
    Said("csum_start and csum_offset wrap", header(NEEDS_CSUM, start=34, offset=0xFFFE), CSUM),
    Said("csum_start and csum_offset wrap", header(NEEDS_CSUM, start=0xFFFF, offset=0xFFFF), CSUM),
]


def said(cases: list[Said], outcome: str) -> list:
    return [
        pytest.param(case, id=f"{number} {case.name}",
                     marks=pytest.mark.hostile("packets", case.name, outcome))
        for number, case in enumerate(cases)
    ]  # fmt: skip


@pytest.mark.parametrize("case", said(PLAIN, "delivered"))
def test_what_means_nothing_is_not_passed_on(case):
    """The receiver's header is plain (`Scene.play` sees to that), as if it had been."""
    for setting, cuts in product(SETTINGS, ([], [HEADER], [3, 8])):
        with Scene(setting, writes=False, sends=case.sends) as scene:
            scene.offer(cut(scene.packet(header=case.header), *cuts))
            assert scene.play() == [frame(scene.receiver, HOSTILE)]
            assert scene.malformed == 0
            scene.others_go_on()


@pytest.mark.parametrize("case", said(FALSE, "dropped and counted"))
def test_a_header_that_lies(case):
    for setting, cuts in product(SETTINGS, ([], [HEADER], [3, 8])):
        with Scene(setting, writes=False, sends=case.sends, takes=15) as scene:
            dropped_and_counted(scene, cut(scene.packet(header=case.header), *cuts))


# --- Receive buffers


@dataclass(frozen=True)
class Buffers:
    name: str
    buffers: list[list[int]]  # the pieces of each
    mergeable: bool
    outcome: str


WHOLE = HEADER + 60
BUFFERS = [
    Buffers("a buffer of exactly the header", [[HEADER], [60]], True, "delivered"),
    Buffers("a buffer of exactly the header", [[HEADER]] * 6, True, "delivered"),
    Buffers("a header in pieces, by a byte", [[1] * HEADER, [7] * 9], True, "delivered"),
    Buffers("buffers with empty pieces", [[0, HEADER, 0], [0, 0, 60, 0]], True, "delivered"),
    Buffers("a buffer of exactly the packet", [[WHOLE]], False, "delivered"),
    Buffers("a buffer of exactly the packet", [[0, 5, 0, WHOLE - 5, 0]], False, "delivered"),
    Buffers("a buffer smaller than the header", [[HEADER - 1]] * 16, False, "dropped and counted"),
    Buffers("a buffer of exactly the header", [[HEADER]] * 16, False, "dropped and counted"),
    Buffers("an empty buffer", [[0]] * 16, False, "dropped and counted"),
    Buffers("a buffer a byte too small", [[WHOLE - 1]] * 16, False, "dropped and counted"),
    Buffers("a mergeable buffer smaller than the header", [[HEADER - 1]] * 16, True, "port closes"),
    Buffers("mergeable buffers of a byte each", [[1]] * 16, True, "port closes"),
    Buffers("an empty mergeable buffer", [[0]], True, "port closes"),
]


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{number} {case.name}", marks=pytest.mark.hostile(
            "packets", f"{case.name}, {'' if case.mergeable else 'not '}mergeable", case.outcome))
        for number, case in enumerate(BUFFERS)
    ],
)  # fmt: skip
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_receive_buffers(setting, case):
    setting = Setting(setting.forward, setting.pieces, mergeable=case.mergeable)
    with Scene(setting, writes=True) as scene:
        for head, pieces in enumerate(case.buffers):
            scene.room(head, pieces)
        scene.play()
        data = b"".join(scene.content(head, length) for head, length in scene.used())
        if case.outcome == "delivered":
            count = pack("<H", len(scene.used()))
            assert data == bytes(10) + count + frame(HOSTILE, scene.sender)
        else:
            assert data == b""
        assert (scene.fault is None) == (case.outcome != "port closes")
        if case.outcome == "port closes":
            assert "a mergeable receive buffer smaller than the header" in scene.fault
        assert scene.too_big == (case.outcome == "dropped and counted")
        scene.others_go_on()


@pytest.mark.hostile("packets", "mergeable buffers of all the ring too small together",
                     "dropped and counted")  # fmt: skip
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_all_buffers_together_too_small(setting):
    with Scene(setting, writes=True) as scene:
        for head in range(16):
            scene.room(head, [HEADER])
        scene.play(size=16 * HEADER - HEADER + 1)
        assert scene.used() == []
        assert scene.fault is None
        assert scene.too_big == 1
        scene.others_go_on()


@pytest.mark.hostile("packets", "no receive buffer at all, patch", "no effect")
@pytest.mark.hostile("packets", "no receive buffer at all, learn", "dropped and counted")
@pytest.mark.parametrize("setting", SETTINGS[:6], ids=str)
def test_no_buffer_at_all(setting):
    """With patch its peer waits, and nobody else does."""
    with Scene(setting, writes=True) as scene:
        scene.play()
        assert scene.used() == []
        assert scene.fault is None
        counters = scene.hostile.one.port.counters()
        assert counters["tx_dropped_full"] == (setting.forward == "learn")
        scene.others_go_on()
