"""No leak between guests: a receiver's memory is full of canaries, and of them only those give way
that stand where a byte of the packet belongs, and to that byte.

Any burst of packets, lawful and not, any cut of them, any buffers: what used elements count is the
packet, to the byte; all other memory of all guests is what it was (`Scene.compare`).
"""

from dataclasses import dataclass

import pytest
from hostile.scene import CUT, HEADER, Desc, Scene, Setting
from hypothesis import given, settings
from hypothesis import strategies as st

SIZES = st.sampled_from([0, 1, 13, 14, 15, 16, 59, 60, 61, 75, 76]) | st.integers(0, 400)
PIECES = st.lists(st.sampled_from([0, 1, 2, 11, 12, 13, 40]), max_size=5)
HEADS = [0, 1, 2, 4, 5]  # the chain of the first goes on at 3, 6, 9 …
# What says nothing: flags but NEEDS_CSUM, and all that only counts with it.
HEADERS = st.just(bytes(HEADER)) | st.binary(min_size=HEADER, max_size=HEADER).map(
    lambda data: bytes([data[0] & 0xFE, 0]) + data[2:]
)


@dataclass(frozen=True)
class Sent:
    """A packet, how its sender cuts it, and the receive buffers that it will take."""

    header: bytes
    frame: bytes
    cuts: list[int]
    in_table: bool
    buffers: list[list[int]]

    @property
    def lawful(self) -> bool:
        return len(self.frame) >= 14


@st.composite
def packets(draw: st.DrawFn, mergeable: bool, number: int) -> Sent:
    size = draw(SIZES)
    frame = bytes([2, 0, 0, 0, 0, 1]) + bytes([2, 0, 0, 0, 0, 0, 8, 0])  # to the partner, IPv4
    frame = (frame + bytes((number * 41 + 3 * i) % 128 for i in range(size)))[:size]
    buffers: list[list[int]] = []
    missing = HEADER + size if size >= 14 else 0
    while missing > 0:
        pieces = draw(PIECES)
        least = missing if len(buffers) == 2 or not mergeable else 0
        least = max(least, HEADER) if mergeable else least
        pieces.append(max(least - sum(pieces), draw(st.integers(0, 90))))
        buffers.append(pieces)
        missing -= sum(pieces)
    return Sent(draw(HEADERS), frame, draw(PIECES), draw(st.booleans()), buffers)


def offer(scene: Scene, sent: Sent, head: int) -> None:
    memory = scene.hostile.one.guest.memory
    data = sent.header + sent.frame
    gpa = memory.take(len(data))
    memory.write(gpa, data)
    descs, at = [], 0
    for size in [*sent.cuts, len(data)]:
        part = min(size, len(data) - at)
        descs.append(Desc(gpa + at, part))
        at += part
    # Of the chains in the ring only the first has room for more than one descriptor.
    scene.offer(descs, in_table=sent.in_table or (len(descs) > 1 and head > 0), head=head)


@pytest.mark.hostile("packets", "short, long, cut in any way, with any header, to any buffers",
                     "delivered, or dropped and counted, to the byte")  # fmt: skip
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_byte_is_seen_that_was_not_sent(data):
    setting = Setting(
        data.draw(st.sampled_from(["patch", "learn"])),
        mergeable=data.draw(st.booleans()),
        log=data.draw(st.booleans()),
    )
    count = data.draw(st.integers(1, len(HEADS)))
    sent = [data.draw(packets(setting.mergeable, number)) for number in range(count)]
    with Scene(setting, writes=False) as scene:
        one = scene.yard.guests[scene.receiver]
        one.guest.memory.position = data.draw(st.sampled_from([CUT - 100, CUT - 1, CUT + 5]))
        for head, packet in zip(HEADS, sent, strict=False):
            offer(scene, packet, head)
            for pieces in packet.buffers:
                one.post(*pieces, indirect=len(pieces) > 1)
        lawful = [packet for packet in sent if packet.lawful]
        got = scene.play(room=0)
        assert scene.fault is None
        assert got == [packet.frame for packet in lawful]
        assert scene.used() == [(head, 0) for head in HEADS[:count]]
        assert scene.malformed == count - len(lawful)
        assert one.rx.ring.free_count == one.rx.size, "a buffer was offered, and not used"
        scene.others_go_on()
