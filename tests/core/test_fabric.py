"""Frames through the fabric: whole, in order, to whom they are for; a lying guest alone pays."""

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yard import Shape, Yard

from vhostfast.core.fabric import LEVELS, Fabric, Worker, levels
from vhostfast.core.ring import Ring

WRITE, NEXT, INDIRECT = 2, 1, 4
A, B, C = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3))
BROADCAST = b"\xff" * 6


def frame(target: bytes, source: bytes, number: int = 0, size: int = 60) -> bytes:
    return (target + source + b"\x88\xb5" + number.to_bytes(4)).ljust(size, b"\x5a")


def used(vring) -> list[tuple[int, int]]:
    return vring.ring.take_all()


# --- Any lawful shape, either path --------------------------------------------------------------

SHAPES = st.builds(
    Shape,
    base=st.sampled_from([0, 1, 65530]),
    event_idx=st.booleans(),
    mergeable=st.booleans(),
    header_size=st.just(12),
) | st.builds(Shape, mergeable=st.just(False), header_size=st.just(10), event_idx=st.booleans())


@st.composite
def packets(draw):
    """A frame's size and how its sender cuts it, the header included."""
    size = draw(st.integers(14, 300) | st.sampled_from([14, 60, 64, 1500, 1514, 9000]))
    cuts = draw(st.lists(st.integers(0, 40), max_size=6))
    return size, cuts, bool(cuts) and len(cuts) < 7 and draw(st.booleans())


def buffers_for(draw, shape: Shape, need: int) -> list[tuple[tuple[int, ...], bool]]:
    """Receive buffers that hold `need` bytes together: several only where they may be merged."""
    result, room = [], 0
    while room < need:
        pieces = draw(st.lists(st.integers(0, 200), max_size=3))
        sum_ = sum(pieces)
        rest = need - room if not shape.mergeable else draw(st.integers(1, 2000))
        pieces.append(max(rest, 12 - sum_, 1 if shape.mergeable else need - sum_))
        result.append((tuple(pieces), len(pieces) > 1 and draw(st.booleans())))
        room += sum(pieces)
        if len(result) == 4 and room < need:  # of the ring's 16 entries: one large one ends it
            result[-1] = ((need,), False)
            room = need
    return result


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_shape_arrives_whole_and_in_order(data):
    shapes = (data.draw(SHAPES), data.draw(SHAPES))
    with Yard("patch", shapes=shapes, level=data.draw(st.sampled_from(levels()))) as yard:
        sender, receiver = yard.guests
        for number in range(data.draw(st.integers(1, 12))):
            size, cuts, indirect = data.draw(packets())
            for pieces, table in buffers_for(data.draw, receiver.shape, size + 12):
                receiver.post(*pieces, indirect=table)
            content = bytes((number + i) % 251 for i in range(size))
            head = sender.send(content, cuts, indirect)
            assert yard.turn() == 1
            assert receiver.received() == [content]
            assert used(sender.tx) == [(head, 0)]


@pytest.mark.parametrize("level", levels())
@pytest.mark.parametrize("count", [1, 15, 16, 17, 64, 65, 128])
def test_bursts_of_any_length_keep_their_order(level, count):
    shape = Shape(size=128, base=65500)
    with Yard("patch", shapes=(shape, shape), level=level) as yard:
        a, b = yard.guests
        sent = [frame(B, A, n, 60 + 7 * n) for n in range(count)]
        for content in sent:
            b.post(2000)
            a.send(content)
        while yard.turn():
            pass
        assert b.received() == sent
        assert [length for _, length in used(a.tx)] == [0] * count


def test_unusual_packets_among_usual_ones_keep_their_place():
    with Yard("patch", shapes=(Shape(size=128),) * 2) as yard:
        a, b = yard.guests
        sent = [frame(B, A, n) for n in range(60)]
        for number, content in enumerate(sent):
            b.post(40, 200) if number % 11 == 5 else b.post(200)
            a.send(content, [12] if number % 7 == 3 else None)
        while yard.turn():
            pass
        assert b.received() == sent


@pytest.mark.hostile("rings", "a full ring, of 2 to 32768 entries", "delivered")
@pytest.mark.parametrize("size", [2, 256, 32768])
def test_a_full_ring_of_any_size_is_served(size):
    regions = ((0, 64 << 20),)
    with Yard("patch", shapes=(Shape(size=size, indirect=False, regions=regions),) * 2) as yard:
        a, b = yard.guests
        for number in range(size):
            b.post(80)
            a.send(frame(B, A, number))
        while yard.turn():
            pass
        assert [int.from_bytes(f[14:18]) for f in b.received()] == list(range(size))


def test_a_chain_of_exactly_the_rings_size_with_empty_pieces_is_delivered():
    with Yard("patch") as yard:
        a, b = yard.guests
        b.post(12, *[3] * 14, 100)
        a.send(frame(B, A), [1] * 5 + [0] * 3 + [1] * 6 + [2])
        yard.turn()
        assert b.received() == [frame(B, A)]


def test_more_than_an_index_holds():
    with Yard("patch", shapes=(Shape(size=256),) * 2) as yard:
        a, b = yard.guests
        a_gpa, b_gpa = a.guest.store(bytes(12) + frame(B, A)), b.guest.blank(100)
        for _ in range(300):
            for _ in range(256):
                b.rx.ring.add([(b_gpa, 100, True)], publish=False)
                a.tx.ring.add([(a_gpa, 72, False)], publish=False)
            b.rx.ring.publish()
            a.tx.ring.publish()
            while yard.turn():
                pass
            assert len(used(a.tx)) == len(used(b.rx)) == 256
        assert a.port.counters()["rx_packets"] == 300 * 256 > 65536


def test_a_guest_of_many_pieces_has_no_more_of_a_turn_than_others():
    shape = Shape(size=2048, regions=((0, 8 << 20),))
    with Yard("patch", shapes=(shape, shape)) as yard:
        a, b = yard.guests
        for number in range(30):
            a.send(frame(B, A, number, 150), [1] * 60)
            b.post(*[3] * 60)
        turns = [yard.turn() for _ in range(4)]
        assert max(turns) < 15
        assert sum(turns) == 30


# --- To whom ------------------------------------------------------------------------------------


def posted(yard: Yard, count: int = 4) -> None:
    for guest in yard.guests:
        for _ in range(count):
            guest.post(200)


def test_learn_floods_the_unknown_and_never_back():
    with Yard("learn", guests=3) as yard:
        posted(yard)
        yard.guests[0].send(frame(B, A))
        yard.turn()
        assert [guest.received() for guest in yard.guests] == [[], [frame(B, A)], [frame(B, A)]]


def test_learn_sends_the_known_to_its_port_alone():
    with Yard("learn", guests=3) as yard:
        posted(yard)
        a, b, c = yard.guests
        b.send(frame(BROADCAST, B))
        yard.turn()
        assert a.received() == c.received() == [frame(BROADCAST, B)]
        a.send(frame(B, A, 1))
        c.send(frame(B, C, 2))
        while yard.turn():
            pass
        assert b.received() == [frame(B, A, 1), frame(B, C, 2)]
        assert a.received() == c.received() == []


def test_learn_follows_an_address_that_moves():
    with Yard("learn", guests=3) as yard:
        posted(yard)
        a, b, c = yard.guests
        for guest in (b, c):
            guest.send(frame(BROADCAST, B))
            yard.turn()
            assert yard.fabric.find(B) is guest.port
        for guest in yard.guests:
            guest.received()
        a.send(frame(B, A))
        yard.turn()
        assert (b.received(), c.received()) == ([], [frame(B, A)])


def test_learn_keeps_a_ports_own_traffic_from_everybody():
    with Yard("learn", guests=2) as yard:
        posted(yard)
        a, b = yard.guests
        a.send(frame(BROADCAST, A))
        yard.turn()
        b.received()
        a.send(frame(A, B))
        yard.turn()
        assert a.received() == b.received() == []
        assert a.port.counters()["rx_filtered"] == 1


def test_learn_loses_for_a_full_receiver_what_others_get():
    with Yard("learn", guests=3) as yard:
        a, b, c = yard.guests
        c.post(200)
        a.send(frame(BROADCAST, A))
        assert yard.turn() == 1
        assert c.received() == [frame(BROADCAST, A)]
        assert b.port.counters()["tx_dropped_full"] == 1


def test_addresses_age():
    with Yard("learn", guests=2) as yard:
        a, _ = yard.guests
        a.send(frame(BROADCAST, A))
        yard.turn()
        for _ in range(3):
            yard.fabric.age(3)
        assert yard.fabric.find(A) is a.port
        yard.fabric.age(3)
        assert yard.fabric.find(A) is None


def test_patch_waits_for_a_full_receiver():
    with Yard("patch") as yard:
        a, b = yard.guests
        sent = [frame(B, A, n) for n in range(8)]
        for content in sent:
            a.send(content)
        got = []
        for _ in range(8):
            assert yard.turn() == 0
            b.post(200)
            assert yard.turn() == 1
            got += b.received()
        assert got == sent
        assert b.port.counters()["tx_dropped_full"] == 0


def test_patch_drops_what_nobody_is_there_to_take():
    with Yard("patch", guests=1) as yard:
        (a,) = yard.guests
        a.send(frame(B, A))
        assert yard.turn() == 1
        assert len(used(a.tx)) == 1
        assert a.port.counters()["rx_dropped_no_receiver"] == 1


def test_loopback_returns_and_drop_takes():
    with Yard("loopback", guests=1) as yard:
        (a,) = yard.guests
        a.post(200)
        a.send(frame(B, A))
        yard.turn()
        assert a.received() == [frame(B, A)]
    with Yard("drop") as yard:
        posted(yard)
        yard.guests[0].send(frame(B, A))
        assert yard.turn() == 1
        assert yard.guests[1].received() == []
        assert yard.guests[0].port.counters()["rx_packets"] == 1


# --- What is lawful but can't be delivered -----------------------------------------------------


@pytest.mark.parametrize(
    ("header", "size"),
    [
        (bytes(12), 13),  # less than an Ethernet header
        (bytes(12), 0),
        (bytes(12), 65590),
        (b"\x01" + bytes(11), 60),  # NEEDS_CSUM was not taken
        (b"\0\x01" + bytes(10), 60),  # nor was GSO
    ],
)
def test_unlawful_frames_are_dropped_and_counted(header, size):
    with Yard("patch", shapes=(Shape(regions=((0, 4 << 20),)),) * 2) as yard:
        a, b = yard.guests
        b.post(70000)
        a.send(b"\x5a" * size, header=header)
        assert yard.turn() == 1
        assert used(a.tx)
        assert not used(b.rx)
        assert a.port.counters()["rx_dropped_malformed"] == 1


def test_unknown_header_flags_are_not_passed_on():
    with Yard("patch") as yard:
        a, b = yard.guests
        b.post(200)
        a.send(frame(B, A), header=b"\xfe\0" + b"\xff" * 10)
        yard.turn()
        assert b.received() == [frame(B, A)]  # which sees that the header is zero


def test_a_frame_too_large_for_its_only_buffer_is_dropped_and_the_buffer_kept():
    with Yard("patch", shapes=(Shape(mergeable=False),) * 2) as yard:
        a, b = yard.guests
        b.post(71)
        a.send(frame(B, A))
        a.send(frame(B, A, 1, 59))
        while yard.turn():
            pass
        assert b.received() == [frame(B, A, 1, 59)]
        assert b.port.counters()["tx_dropped_too_big"] == 1


def test_a_frame_too_large_for_all_mergeable_buffers_does_not_wait_for_ever():
    with Yard("patch", shapes=(Shape(size=4),) * 2) as yard:
        a, b = yard.guests
        for _ in range(4):
            b.post(14)
        a.send(frame(B, A))
        assert yard.turn() == 1
        assert b.port.counters()["tx_dropped_too_big"] == 1


# --- What a guest may not do -------------------------------------------------------------------


def descriptor(vring, head, addr=None, length=None, flags=None, next_=None):
    desc = vring.ring.desc[head]
    for name, value in (("addr", addr), ("len", length), ("flags", flags), ("next", next_)):
        if value is not None:
            desc[name] = value


HOSTILE_TX = {
    "head": lambda a: a.tx.ring.avail["ring"].__setitem__(0, 16),
    "next": lambda a: descriptor(a.tx, 0, flags=NEXT, next_=16),
    "loop": lambda a: descriptor(a.tx, 0, flags=NEXT, next_=0),
    "hole": lambda a: descriptor(a.tx, 0, addr=0x20000),
    "end": lambda a: descriptor(a.tx, 0, addr=0x40000 + 0x100_0000 - 71),
    "wrap": lambda a: descriptor(a.tx, 0, addr=2**64 - 8),
    "last": lambda a: descriptor(a.tx, 0, addr=2**64 - 1, length=1),
    "empty, nowhere": lambda a: descriptor(a.tx, 0, addr=0x20000, length=0),
    "writable": lambda a: descriptor(a.tx, 0, flags=WRITE),
    "table of 0": lambda a: descriptor(a.tx, 0, flags=INDIRECT, length=0),
    "table of 17": lambda a: descriptor(a.tx, 0, flags=INDIRECT, length=17),
    "table too long": lambda a: descriptor(a.tx, 0, flags=INDIRECT, length=17 * 16),
    "table and next": lambda a: descriptor(a.tx, 0, flags=INDIRECT | NEXT, length=16),
    "table nowhere": lambda a: descriptor(a.tx, 0, addr=0x20000, flags=INDIRECT, length=16),
    "index": lambda a: a.tx.ring.avail.__setitem__("idx", 17),
}


@pytest.mark.parametrize("attack", HOSTILE_TX)
def test_a_guest_that_lies_loses_its_port_and_nobody_else_does(attack):
    with Yard("learn", guests=3) as yard:
        posted(yard)
        a, b, c = yard.guests
        a.send(frame(BROADCAST, A))
        HOSTILE_TX[attack](a)
        c.send(frame(BROADCAST, C))
        while yard.turn():
            pass
        assert a.port.fault
        assert b.port.fault is c.port.fault is None
        assert b.received() == [frame(BROADCAST, C)]
        assert not used(a.tx)


def test_an_indirect_table_that_was_not_negotiated_is_refused():
    with Yard("patch", shapes=(Shape(indirect=True),) * 2) as yard:
        a, b = yard.guests
        b.post(200)
        a.send(frame(B, A), [12], indirect=True)
        assert yard.turn() == 1
    with Yard("patch", shapes=(Shape(indirect=False),) * 2) as yard:
        a, _ = yard.guests
        a.send(frame(B, A))
        descriptor(a.tx, 0, flags=INDIRECT, length=16)
        yard.turn()
        assert "indirect" in a.port.fault


HOSTILE_RX = {
    "read-only": lambda b: descriptor(b.rx, 0, flags=0),
    "hole": lambda b: descriptor(b.rx, 0, addr=0x20000),
    "smaller than the header": lambda b: descriptor(b.rx, 0, length=11),
    "loop": lambda b: descriptor(b.rx, 0, length=1, flags=NEXT | WRITE, next_=0),
    "head": lambda b: b.rx.ring.avail["ring"].__setitem__(0, 65535),
}


@pytest.mark.parametrize("attack", HOSTILE_RX)
@pytest.mark.parametrize("forward", ["patch", "learn"])
def test_a_receiver_that_lies_loses_its_port_and_its_sender_goes_on(attack, forward):
    with Yard(forward) as yard:
        a, b = yard.guests
        b.post(200)
        HOSTILE_RX[attack](b)
        a.send(frame(B, A))
        assert yard.turn() == 1
        assert b.port.fault
        assert a.port.fault is None
        assert len(used(a.tx)) == 1
        assert not used(b.rx)
        assert a.port.counters()["rx_dropped_no_receiver"] == 1


def test_what_was_taken_before_the_lie_is_given_back():
    with Yard("patch") as yard:
        posted(yard)
        a, b = yard.guests
        a.send(frame(B, A, 1))
        a.send(frame(B, A, 2))
        a.tx.ring.avail["ring"][1] = 99
        yard.turn()
        assert a.port.fault
        assert b.received() == [frame(B, A, 1)]
        assert len(used(a.tx)) == 1


# --- Workers and what they are given -----------------------------------------------------------


def test_sources_are_dealt_in_equal_shares():
    with Yard("learn", guests=4) as yard:
        second = Worker(yard.fabric, "poll")
        yard.fabric.lay_out()
        posted(yard)
        for guest in yard.guests:
            guest.send(frame(BROADCAST, A))
        assert yard.turn() == 2
        assert second.turn() == 2


def test_laying_out_takes_no_more_for_each_ring_where_there_are_many():
    """The workers rest meanwhile: with ten ports of 128 pairs each they had, for 2 s."""

    def peak(pairs: int) -> int:
        fabric = Fabric("learn")
        workers = [Worker(fabric) for _ in range(2)]
        ports = [fabric.add_port(f"port{i}") for i in range(4)]
        for port in ports:
            for index in range(2 * pairs):
                port.attach(Ring(index))
        tracemalloc.start()
        fabric.lay_out()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(workers) == 2
        return most

    peak(1)
    assert peak(128) < 6 * peak(32)


def test_counters_are_named_in_one_place():
    fabric = Fabric("learn")
    port = fabric.add_port("a")
    assert {"rx_packets", "tx_dropped_full", "faults"} <= port.counters().keys()
    with pytest.raises(KeyError):
        port.count("nonsense")


def test_ports_are_counted_to_256_and_indices_used_again():
    fabric = Fabric("learn")
    ports = [fabric.add_port(str(n)) for n in range(256)]
    with pytest.raises(ValueError, match="256 ports"):
        fabric.add_port("one more")
    fabric.remove_port(ports[7])
    assert fabric.add_port("again").index == 7


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Fabric("teach"), "learn, patch"),
        (lambda: Worker(Fabric(), "lazy"), "poll, interrupt"),
        (lambda: Worker(Fabric(), "poll", "mmx"), "baseline"),
    ],
)
def test_wrong_names_are_refused_with_the_right_ones(make, names):
    with pytest.raises(ValueError, match=names):
        make()


def test_a_level_can_be_forced(monkeypatch):
    monkeypatch.setenv("VHOSTFAST_LEVEL", "baseline")
    assert Worker(Fabric()).level == "baseline"
    assert set(levels()) <= set(LEVELS)


def test_injected_frames_go_to_all_others():
    with Yard("learn", guests=3) as yard:
        posted(yard)
        a, b, c = yard.guests
        yard.fabric.inject(a.port, frame(BROADCAST, A))
        assert (a.received(), b.received(), c.received()) == (
            [],
            [frame(BROADCAST, A)],
            [frame(BROADCAST, A)],
        )
