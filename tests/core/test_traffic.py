"""The verifier verified: a wire in plain Python between two rings does to packets what it likes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from guest import Guest
from plain_backend import PlainBackend

from vhostfast.core.traffic import Flows, Loop, Receiver, Sender
from vhostfast.driver import Counters, Vring
from vhostfast.errors import ProtocolError

MACS = {"destination": b"\2\0\0\0\0\2", "source": b"\2\0\0\0\0\1"}
HEADER = 12


@dataclass
class Wire:
    """A sender and a receiver in one guest, turned by one loop, and what lies between them."""

    loop: Loop
    tx: Vring
    rx: Vring
    sender: Sender
    receiver: Receiver
    flows: Flows

    def __post_init__(self) -> None:
        self.source, self.sink = PlainBackend(self.tx), PlainBackend(self.rx)

    def turn(self) -> None:
        """Let the driver do what it can; 0 s are over at its first look at the clock."""
        self.loop.run(0, linger_s=0)

    def fetch(self) -> list[bytes]:
        """All that was sent since, headers included."""
        packets = []
        while popped := self.source.pop():
            packets.append(self.source.read(popped[1]))
            self.source.push(popped[0], 0)
        return packets

    def deliver(self, packet: bytes) -> None:
        """Into as many buffers as it takes, published at once."""
        parts = []
        while packet:
            popped = self.sink.pop()
            assert popped
            room = sum(size for _, size, _ in popped[1])
            parts.append((popped, packet[:room]))
            packet = packet[room:]
        first, data = parts[0]
        parts[0] = first, data[:10] + len(parts).to_bytes(2, "little") + data[12:]
        for (head, chain), data in parts:
            self.sink.fill(chain, data)
            self.sink.push(head, len(data))

    def counters(self) -> Counters:
        _, missing, reordered, repeated = self.flows[5]
        return Counters(
            *self.sender.counters(), *self.receiver.counters(), missing, reordered, repeated
        )


@contextmanager
def wire(
    kind: str = "full",
    size: int = 8,
    sizes: tuple[int, ...] = (64,),
    layout: str = "direct",
    stride: int = 2112,
    base: int = 65530,
    verify_every: int = 1,
    limit: int | None = None,
    event_idx: bool = True,
) -> Iterator[Wire]:
    with Guest() as guest:
        rx, tx = (guest.vring(size, index=i, base=base, event_idx=event_idx) for i in range(2))
        flows = Flows()
        send_stride = max(stride, 2112)
        from_gpa, to_gpa = guest.blank(size * send_stride), guest.blank(size * stride)
        sender = Sender(
            tx.ring, guest.memory.view(from_gpa, size * send_stride), from_gpa, **MACS,
            stride=send_stride, header_size=HEADER, layout=layout, flow=5, sizes=sizes, limit=limit,
        )  # fmt: skip
        receiver = Receiver(
            rx.ring, guest.memory.view(to_gpa, size * stride), to_gpa, flows, stride=stride,
            header_size=HEADER, layout=layout, mergeable=True, verify_every=verify_every,
            frame_size=sizes[0] if len(sizes) == 1 else 0,
        )  # fmt: skip
        loop = Loop([(sender, receiver)], load=kind, idle="spin")
        yield Wire(loop, tx, rx, sender, receiver, flows)


@pytest.mark.parametrize("kind", ["full", "touch", "lean"])
@pytest.mark.parametrize("layout", ["direct", "chained", "indirect"])
@pytest.mark.parametrize("sizes", [(40,), (64,), (1500,), (41, 64, 1999)])
def test_what_arrives_untouched_is_good(kind: str, layout: str, sizes: tuple[int, ...]) -> None:
    with wire(kind, sizes=sizes, layout=layout) as w:
        for _ in range(20):
            w.turn()
            for packet in w.fetch():
                assert packet[:HEADER] == bytes(HEADER)
                assert packet[12:28] == b"\2\0\0\0\0\2\2\0\0\0\0\1\x88\xb5\5\0"
                assert len(packet) - HEADER in sizes
                w.deliver(packet)
            w.turn()
        w.loop.finish()
        got = w.counters()
        assert got.received == got.sent - (8 if layout != "chained" else 4)
        assert got.received > 64
        assert (got.corrupt, got.foreign, got.lost(), got.reordered, got.repeated) == (0,) * 5
        assert got.verified == got.received if kind != "lean" else got.verified > 8


@pytest.mark.parametrize("kind", ["full", "touch", "lean"])
@pytest.mark.parametrize("stride", [50, 101, 700])
def test_packets_over_several_buffers(kind: str, stride: int) -> None:
    with wire(kind, sizes=(1400,), stride=stride, size=32) as w:
        for _ in range(20):
            w.turn()
            for packet in w.fetch()[: 32 // (1412 // stride + 1)]:
                w.deliver(packet)
            w.turn()
        w.loop.finish()
        got = w.counters()
        assert (got.corrupt, got.foreign, got.repeated) == (0, 0, 0)
        assert got.received >= 20


# --- Each thing that can go wrong is counted as what it is ----------------------------------------


@pytest.mark.parametrize("kind", ["full", "touch"])
@pytest.mark.parametrize("size", [40, 64, 71, 1500])
def test_each_byte_of_a_frame_counts(kind: str, size: int) -> None:
    with wire(kind, sizes=(size,)) as w:
        w.turn()
        packets = w.fetch()
        places = range(size) if size < 100 else [0, 31, 32, 700, size - 1]
        for place in places:
            bad = bytearray(packets[0])
            bad[HEADER + place] ^= 0x10
            before = w.counters()
            w.deliver(bytes(bad))
            w.turn()
            got = w.counters()
            seen = got.corrupt - before.corrupt, got.foreign - before.foreign
            if place in (12, 13):
                assert seen == (0, 1), place
            elif kind == "touch" and 16 <= place < 24:  # the sequence: a gap, or nonsense
                assert seen == (1, 0) or got.missing > before.missing, place
            else:
                assert seen == (1, 0), place


def cut(packet: bytes) -> bytes:
    return packet[:-1]


def padded(packet: bytes) -> bytes:
    return packet + b"\0"


def stale(packet: bytes) -> bytes:
    return packet[: HEADER + 40] + b"\xa5" * (len(packet) - HEADER - 40)


@pytest.mark.parametrize("spoil", [cut, padded, stale])
@pytest.mark.parametrize("kind", ["full", "touch"])
def test_a_wrong_length_or_what_was_there_before(
    kind: str, spoil: Callable[[bytes], bytes]
) -> None:
    with wire(kind) as w:
        w.turn()
        w.deliver(spoil(w.fetch()[0]))
        w.turn()
        assert (w.counters().corrupt, w.counters().received) == (1, 0)


def test_drops_repeats_and_reorder() -> None:
    with wire(size=16) as w:
        w.turn()
        p = w.fetch()
        for packet in (p[0], p[1], p[4], p[3], p[5], p[5], p[0]):
            w.deliver(packet)
        w.turn()
        got = w.counters()
        assert (got.received, got.missing, got.reordered, got.repeated) == (7, 1, 1, 2)
        assert got.lost() == 1
        assert got.lost(sent=16) == 11
        w.deliver(p[2])
        w.turn()
        got = w.counters()
        assert (got.received, got.missing, got.reordered) == (8, 0, 2)


def test_a_corrupt_packet_is_not_also_lost() -> None:
    with wire(limit=3) as w:
        w.turn()
        p = w.fetch()
        for packet in (p[0], p[1][:-1] + b"!", p[2]):
            w.deliver(packet)
        w.turn()
        assert (w.counters().corrupt, w.counters().lost(), w.counters().lost(3)) == (1, 0, 0)


def test_an_old_packet_from_before_the_window_is_a_repeat() -> None:
    with wire(size=256) as w:
        w.turn()
        first = w.fetch()[0]
        for _ in range(6):
            w.turn()
            for packet in w.fetch():
                w.deliver(packet)
        w.turn()
        w.deliver(first)
        w.turn()
        got = w.counters()
        assert (got.repeated, got.reordered, got.missing) == (1, 0, 256)


def test_a_late_packet_is_known_when_the_window_has_gone_round() -> None:
    with wire(size=2048) as w:
        packets = []
        for _ in range(40):
            w.turn()
            packets += w.fetch()
        for number in (*range(64), 1100, 1030, 1030):  # 1030 falls where 6 was
            w.deliver(packets[number])
        w.turn()
        got = w.counters()
        assert (got.reordered, got.repeated, got.missing) == (1, 1, 1100 - 64 - 1)


def test_touch_sees_a_buffer_that_was_never_filled() -> None:
    with wire("touch") as w:
        w.turn()
        for packet in w.fetch():
            w.deliver(packet)
        w.turn()
        head, _ = w.sink.pop() or pytest.fail("no buffer")
        w.sink.push(head, HEADER + 64)
        w.turn()
        assert (w.counters().received, w.counters().corrupt) == (8, 1)


def test_lean_sees_a_buffer_that_was_never_filled_if_it_was_blanked() -> None:
    with wire("lean") as w:
        for turn in range(12):
            w.turn()
            for number, packet in enumerate(w.fetch()):
                if turn < 2 or number % 2:
                    w.deliver(packet)
                else:
                    head, _ = w.sink.pop() or pytest.fail("no buffer")
                    w.sink.push(head, HEADER + 64)
        w.turn()
        assert w.counters().corrupt >= 2
        assert w.counters().verified >= 4


def test_lean_checks_every_buffer_at_the_end() -> None:
    with wire("lean", verify_every=1 << 20) as w:
        w.turn()
        for number, packet in enumerate(w.fetch()):
            w.deliver(packet if number != 6 else packet[:-1] + b"!")
        w.turn()
        assert w.counters().corrupt == 0
        w.loop.finish()
        assert (w.counters().corrupt, w.counters().verified) == (1, 7)  # one is blank


def test_every_nth_frame_is_verified_among_bad_ones_too() -> None:
    """Buffers that come back as they were offered: looking at each byte of all of them would slow
    the driver down just where nothing else does."""
    with wire("touch", verify_every=4) as w:
        w.turn()
        blank = bytearray(w.fetch()[0])
        blank[HEADER + 16 : HEADER + 24] = b"\xff" * 8
        for _ in range(8):
            w.deliver(bytes(blank))
        w.turn()
        got = w.counters()
        assert (got.received, got.corrupt, got.verified) == (0, 8, 2)


def test_only_every_nth_is_verified_where_asked() -> None:
    with wire(verify_every=4) as w:
        w.turn()
        for number, packet in enumerate(w.fetch()):
            w.deliver(packet if number != 5 else packet[:-1] + b"!")
        w.turn()
        assert (w.counters().corrupt, w.counters().verified, w.counters().received) == (0, 2, 8)


def test_a_packet_whose_rest_is_not_there() -> None:
    with wire() as w:
        w.turn()
        packet = w.fetch()[0]
        head, chain = w.sink.pop() or pytest.fail("no buffer")
        w.sink.fill(chain, packet[:10] + b"\3\0" + packet[12:])
        w.sink.push(head, len(packet))
        w.turn()
        assert (w.counters().corrupt, w.counters().received) == (1, 0)


@pytest.mark.parametrize("length", [0, 11, 2113, 0xFFFF_FFFF])
@pytest.mark.parametrize("buffers", [1, 2])
def test_a_used_length_that_cannot_be(length: int, buffers: int) -> None:
    with wire() as w:
        w.turn()
        packet = w.fetch()[0]
        for _ in range(buffers):
            head, chain = w.sink.pop() or pytest.fail("no buffer")
            w.sink.fill(chain, packet[:10] + bytes([buffers, 0]) + packet[12:])
            w.sink.push(head, length)
        w.turn()
        assert (w.counters().corrupt, w.counters().received) == (1, 0)


@pytest.mark.parametrize("kind", ["full", "touch", "lean"])
@pytest.mark.parametrize("side", ["source", "sink"])
def test_a_back_end_that_gives_back_what_it_has_not(kind: str, side: str) -> None:
    with wire(kind) as w:
        w.turn()
        getattr(w, side).push(1 if kind == "lean" else 77, 0)
        with pytest.raises(ProtocolError, match="used ring: id is"):
            w.turn()


@pytest.mark.parametrize("kind", ["full", "touch", "lean"])
@pytest.mark.parametrize("side", ["source", "sink"])
def test_a_back_end_that_gives_back_twice(kind: str, side: str) -> None:
    with wire(kind) as w:
        w.turn()
        backend = getattr(w, side)
        head, _ = backend.pop()
        backend.push(head, 0)
        backend.push(head, 0)
        with pytest.raises(ProtocolError, match=f"used ring: id is {head}, must be the head of"):
            w.turn()


# --- The loop -------------------------------------------------------------------------------------


def test_a_limit_ends_the_sending_and_all_of_it_is_sent() -> None:
    for kind in ("full", "touch", "lean"):
        with wire(kind, limit=21) as w:
            for _ in range(5):
                w.turn()
                w.fetch()
            w.turn()
            assert w.counters().sent == w.counters().done == 21
            assert w.counters().sent_bytes == 21 * 64


def test_told_to_be_quiet_or_to_stop() -> None:
    with wire() as w:
        w.loop.stop_sending()
        w.turn()
        assert w.counters().sent == 0
    with wire() as w:
        w.loop.stop()
        w.loop.run()
        assert w.counters().sent == 0


def test_the_run_ends_when_all_that_is_expected_is_there() -> None:
    with wire(limit=8) as w:
        w.turn()
        for packet in w.fetch():
            w.deliver(packet)
        w.loop.run(linger_s=1000, expected=8)  # or else this takes 1000 s
        assert w.counters().received == w.counters().done == 8


def test_kicks_only_where_wanted() -> None:
    with wire(limit=100) as w:
        w.turn()
        assert w.tx.ring.kicks == 1  # avail_event was where it began
        w.fetch()
        w.turn()
        assert w.tx.ring.kicks == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sizes": (39,)}, "frame size is 39, must be 40 to 2100"),
        ({"sizes": (2101,)}, "frame size is 2101"),
        ({"sizes": (64,) * 17}, "17 frame sizes"),
        ({"verify_every": 3}, "power of two"),
        ({"stride": 12}, "buffers of 12"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said), wire(**wrong):  # type: ignore[arg-type]
        pass
