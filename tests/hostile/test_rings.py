"""Chains that break the rules of a ring, and those that only look like it: on both rings, in the
ring and in an indirect table, by every way of forwarding and with a device in Python, on the direct
and the general path, with a log and without.

The control queue of a card is run by the front-end: we are given none.
"""

from dataclasses import dataclass
from itertools import product

import pytest
from hostile.scene import (
    BUFFERS,
    CUT,
    END,
    FIRST,
    HEADER,
    HOLE,
    HOSTILE,
    INDIRECT,
    LIMIT,
    NEXT,
    PAGE,
    RING,
    WRITE,
    Chain,
    Desc,
    Scene,
    Setting,
    cut,
    frame,
)

HEAD = "a head or next descriptor outside of its table"
LOOP = "more descriptors than the ring has"
ADDRESS = "outside of guest memory"
DIRECTION = "a writable buffer to be sent, or a read-only one to be filled"
TABLE = "an indirect table that is not negotiated, nested, chained or of a wrong length"

SETTINGS = [
    Setting(forward, pieces, log, mergeable=not log)
    for forward, pieces, log in product(
        ("patch", "learn", "loopback"), (False, True), (False, True)
    )
] + [Setting("device", log=log) for log in (False, True)]


@dataclass(frozen=True)
class Case:
    """`chain` makes the descriptors, given where the packet is; no `reason`: it is delivered."""

    name: str
    chain: Chain = cut
    reason: str = ""
    places: tuple[str, ...] = ("ring", "table")
    at: int | str | None = None  # the packet's GPA, or the ring in whose entries it lies
    table_at: int | None = None
    table_more: int = 0  # entries that it says to have beyond those of the chain
    head: int | None = None
    indirect: bool = True


def wrong_address(name: str, addr: int, size: int) -> list[Case]:
    """As the only descriptor, the last, and the middle one: what comes before is not written."""
    bad = Desc(addr, size)
    return [
        Case(name, lambda at: [bad], ADDRESS),
        Case(name, lambda at: [Desc(at, HEADER), bad], ADDRESS),
        Case(name, lambda at: [Desc(at, HEADER), bad, Desc(at + HEADER, 60)], ADDRESS),
        Case(name, lambda at: [*cut(at), bad], ADDRESS),
    ]


def wrong_table(name: str, addr: int | None, size: int, reason: str = TABLE) -> Case:
    def chain(at: int) -> list[Desc]:
        return [Desc(addr or at, size, INDIRECT)]

    return Case(name, chain, reason, ("ring",))


def in_pieces(count: int) -> Chain:
    """The header over so many descriptors; the thirteenth is empty."""
    sizes = [1] * (count - 1) + [max(13 - count, 0)]
    return lambda at: cut(at, *sizes)


LAWFUL = [
    Case("one descriptor"),
    Case("header and frame in one each", lambda at: cut(at, HEADER)),
    Case("length 0 first", lambda at: cut(at, 0, HEADER)),
    Case("length 0 in the middle", lambda at: cut(at, HEADER, 0, 0, 0)),
    Case("length 0 in the middle", lambda at: cut(at, 5, 0, 30, 0)),
    Case("length 0 last", lambda at: cut(at, HEADER, 60)),
    *(Case("a header over 1 to 13 descriptors", in_pieces(n)) for n in range(1, 14)),
    Case("as many descriptors as the ring has", lambda at: cut(at, *[1] * (RING - 1))),
    Case("next is nonsense without NEXT", lambda at: [Desc(at, HEADER + 60, next=0xFFFF)]),
    Case("flags that nobody knows", lambda at: [Desc(at, HEADER + 60, 0xFFF8)]),
    *(Case("a buffer over two regions that touch", at=CUT - n) for n in (1, 5, HEADER, 13, 71)),
    Case("a buffer over two regions that touch", lambda at: cut(at, HEADER), at=CUT - 20),
    Case("a buffer over two regions that touch", lambda at: cut(at, 7, 9), at=CUT - 6),
    Case("a buffer over two pages", at=BUFFERS + PAGE - 7),
    Case("a buffer that ends with a region's last byte", at=END - HEADER - 60),
    Case("a buffer in unused entries of its own ring", at="own"),
    Case("a buffer in unused entries of the guest's other ring", at="other"),
    *(
        Case("a table over two regions that touch", lambda at: cut(at, HEADER, 9, 9),
             places=("table",), table_at=CUT - n)
        for n in (1, 8, 16, 24, 47)
    ),
    Case("a table over two pages", lambda at: cut(at, HEADER), places=("table",),
         table_at=BUFFERS + PAGE - 24),
]  # fmt: skip
UNLAWFUL = [
    Case("a head outside of the ring", reason=HEAD, head=RING),
    Case("a head outside of the ring", reason=HEAD, head=0xFFFF),
    Case("next outside of its table", lambda at: [Desc(at, HEADER, next=LIMIT)], HEAD),
    Case("next outside of its table", lambda at: [*cut(at), Desc(at, 0, next=LIMIT)], HEAD),
    Case("next outside of its table", lambda at: [Desc(at, 9, NEXT, next=0xFFFF)], HEAD),
    Case("a descriptor that is its own next", lambda at: [Desc(at, 72, next=FIRST)], LOOP),
    Case("a descriptor that is its own next", lambda at: [Desc(at, 0, next=FIRST)], LOOP),
    Case("two descriptors, each next of the other",
         lambda at: [Desc(at, HEADER), Desc(at + HEADER, 60, next=FIRST)], LOOP),
    Case("one descriptor more than the ring has",
         lambda at: [*cut(at, *[1] * (RING - 2)), Desc(at, 0, next=FIRST)], LOOP),
    *wrong_address("address 0", 0, 60),
    *wrong_address("from a region's last byte into nothing", END - 1, 2),
    *wrong_address("one past a region", END, 1),
    *wrong_address("in a hole", HOLE + 100, 60),
    *wrong_address("length 0 in a hole", HOLE + 100, 0),
    *wrong_address("address 2^64-1", 2**64 - 1, 1),
    *wrong_address("address and length wrap", 2**64 - 30, 60),
    *wrong_address("over a hole to the next region", HOLE - 8, BUFFERS + 16 - HOLE),
    *wrong_address("length 2^32-1", BUFFERS, 2**32 - 1),
    Case("all in the wrong direction", lambda at: [Desc(at, 72, WRITE)], DIRECTION),
    Case("the first in the wrong direction",
         lambda at: [Desc(at, HEADER, WRITE), Desc(at + HEADER, 60)], DIRECTION),
    Case("the last in the wrong direction",
         lambda at: [Desc(at, HEADER), Desc(at + HEADER, 60, WRITE)], DIRECTION),
    Case("an empty one behind in the wrong direction",
         lambda at: [*cut(at), Desc(at, 0, WRITE)], DIRECTION),
    Case("a table that was not negotiated", lambda at: cut(at, HEADER), TABLE, ("table",),
         indirect=False),
    Case("a table in a table", lambda at: [Desc(at, 16, INDIRECT)], TABLE, ("table",)),
    Case("a table in a table", lambda at: [Desc(at, HEADER), Desc(at, 16, INDIRECT)], TABLE,
         ("table",)),
    Case("INDIRECT and NEXT", lambda at: [Desc(at, 16, INDIRECT), Desc(at, 72)], TABLE, ("ring",)),
    *(wrong_table("a table of 0, 8 or 17 bytes", None, size) for size in (0, 8, 17)),
    wrong_table("a table of more entries than the ring", None, 16 * (RING + 1)),
    wrong_table("a table of 2^32-1 bytes", None, 2**32 - 1),
    wrong_table("a table where no memory is", HOLE, 16, ADDRESS),
    wrong_table("a table where no memory is", 2**64 - 1, 16, ADDRESS),
    wrong_table("a table where no memory is", 2**64 - 16, 32, ADDRESS),
    *(
        Case("a table that only begins in memory", reason=ADDRESS, places=("table",),
             table_at=END - 16, table_more=more)
        for more in (1, RING - 1)
    ),
    Case("a table that only begins in memory", reason=ADDRESS, places=("table",),
         table_at=END - 31, table_more=1),
]  # fmt: skip


def params(cases: list[Case], outcome: str) -> list:
    return [
        pytest.param(case, id=f"{number} {case.name}",
                     marks=pytest.mark.hostile("rings", case.name, outcome))
        for number, case in enumerate(cases)
    ]  # fmt: skip


def offered(scene: Scene, case: Case, place: str) -> tuple[int, int]:
    """The case's chain on offer: its head, and where its packet is."""
    at = case.at
    if isinstance(at, str):
        rings = scene.hostile.vrings
        ring = scene.vring if at == "own" else next(v for v in rings if v is not scene.vring)
        at = ring.desc_gpa + 16 * 8
    gpa = scene.packet(at)
    if case.head is not None:
        scene.offer_head(case.head)
        return case.head, gpa
    if case.table_at is not None and case.table_at < END - PAGE:
        scene.hostile.one.guest.memory.position = max(gpa + 72, case.table_at + 16 * RING)
    return scene.offer(case.chain(gpa), place == "table", case.table_at, case.table_more), gpa


def played(case: Case):
    """Each ring, each setting and each place that the case has."""
    for writes, place, setting in product((False, True), case.places, SETTINGS):
        kind = Setting(**{**vars(setting), "indirect": case.indirect})
        with Scene(kind, writes) as scene:
            yield scene, place


@pytest.mark.parametrize("case", params(LAWFUL, "delivered"))
def test_what_is_only_odd_is_delivered(case: Case) -> None:
    for scene, place in played(case):
        head, _ = offered(scene, case, place)
        got = scene.play()
        assert scene.fault is None
        if scene.writes:
            assert scene.used() == [(head, HEADER + 60)]
            assert scene.content(head, HEADER + 60) == (
                bytes(10) + b"\1\0" + frame(HOSTILE, scene.sender)
            )
        else:
            assert scene.used() == [(head, 0)]
            assert got == [frame(scene.receiver, HOSTILE)]
        scene.others_go_on()


@pytest.mark.parametrize("case", params(UNLAWFUL, "port closes"))
def test_what_breaks_a_rule_is_refused_whole(case: Case) -> None:
    for scene, place in played(case):
        offered(scene, case, place)
        assert scene.play() == []
        assert case.reason in scene.fault
        assert scene.used() == []
        assert scene.hostile.changed() <= scene.hostile.may_change()
        scene.others_go_on()
