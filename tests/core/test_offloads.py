"""Checksums and segments left to us: a receiver gets what it has taken, the rest is made good.

The reference is `wire`: the packets that a header and a frame stand for, made with dpkt. Whatever a
receiver gets has to stand for the same packets as what was sent.
"""

from dataclasses import dataclass, field
from itertools import product
from struct import pack, unpack

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yard import Shape, Yard, YardGuest

from vhostfast.core.fabric import levels

CSUM, TSO4, TSO6, ECN = 1, 2, 4, 8  # enum offload
EVERYTHING = CSUM | TSO4 | TSO6 | ECN
TAKES = [0, *(CSUM | more for more in range(0, 16, 2))]  # no one has segments without the checksum
NEEDS_CSUM, GSO_ECN = 1, 0x80
GSO = {4: 1, 6: 4}
FIN, PSH, ACK, CWR = 1, 8, 16, 128
A, B = bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2])
BROADCAST = b"\xff" * 6
ROOM = ((0, 8 << 20),)


@dataclass(frozen=True)
class Packet:
    """A frame as its sender would like to send it, all left to us that can be."""

    payload: int
    gso_size: int = 0
    version: int = 4
    protocol: int = 6
    flags: int = ACK | PSH
    tags: tuple[bytes, ...] = ()
    ip_options: bytes = b""
    tcp_options: bytes = b""
    ecn: bool = False
    target: bytes = B

    @property
    def needs(self) -> int:
        """What its receiver has to have taken to get it as it is."""
        if not self.gso_size or self.payload <= self.gso_size:
            return CSUM
        return CSUM | (TSO4 if self.version == 4 else TSO6) | (ECN if self.ecn else 0)

    @property
    def csum_start(self) -> int:
        return (
            14 + sum(map(len, self.tags)) + (20 if self.version == 4 else 40) + len(self.ip_options)
        )

    def frame(self) -> bytes:
        """With the pseudo-header's sum where the checksum will be."""
        data = bytes(i * 7 % 251 for i in range(self.payload))
        if self.protocol == 6:
            size = 5 + len(self.tcp_options) // 4
            inner = pack(">HHIIBBHHH", 80, 81, 2**32 - 9000, 5, size << 4, self.flags, 99, 0, 0)
            inner += self.tcp_options + data
        else:
            inner = pack(">HHHH", 80, 81, 8 + len(data), 0) + data
        if self.version == 4:
            addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
            size, length = 5 + len(self.ip_options) // 4, 20 + len(self.ip_options) + len(inner)
            ip = pack(">BBHHH", 0x40 | size, 2, length % 65536, 65530, 0x4000)
            ip += pack(">BBH", 64, self.protocol, 0) + addresses + self.ip_options
            ip = ip[:10] + pack(">H", dpkt.in_cksum(ip)) + ip[12:]
        else:
            addresses = bytes(range(32))
            following = 0 if self.ip_options else self.protocol
            length = len(self.ip_options) + len(inner)
            ip = pack(">IHBB", 0x60200000, length, following, 64) + addresses + self.ip_options
        pseudo = addresses + pack(">II", len(inner), self.protocol)
        at = 16 if self.protocol == 6 else 6
        inner = inner[:at] + pack(">H", dpkt.in_cksum(pseudo) ^ 0xFFFF) + inner[at + 2 :]
        ethertype = b"\x08\x00" if self.version == 4 else b"\x86\xdd"
        return self.target + A + b"".join(self.tags) + ethertype + ip + inner

    def header(self, size: int = 12) -> bytes:
        gso = (GSO[self.version] | (GSO_ECN if self.ecn else 0)) if self.gso_size else 0
        offset = 16 if self.protocol == 6 else 6
        hint = 11  # hdr_len, which nobody may rely on
        said = (NEEDS_CSUM, gso, hint, self.gso_size, self.csum_start, offset, 0)
        return pack("<BBHHHHH", *said)[:size]


def wire(header: bytes, frame: bytes) -> list[bytes]:
    """The packets that they stand for."""
    flags, gso_type, _, gso_size, csum_start, csum_offset = unpack("<BBHHHH", header)
    if not flags & NEEDS_CSUM:
        return [frame]
    network = 12
    while frame[network : network + 2] in (b"\x81\x00", b"\x88\xa8"):
        network += 4
    network += 2
    ip = (dpkt.ip.IP if frame[network] >> 4 == 4 else dpkt.ip6.IP6)(frame[network:])
    assert csum_start == len(frame) - len(ip.data), "it is where the transport header is"
    assert csum_offset == (16 if ip.p == 6 else 6)
    if not gso_type:  # what stands in its place is part of the sum, as every receiver adds it up
        at, total = csum_start + csum_offset, dpkt.in_cksum(frame[csum_start:])
        return [frame[:at] + pack(">H", total or 0xFFFF) + frame[at + 2 :]]
    tcp, data = ip.data, ip.data.data
    sequence, tcp_flags, first_id = tcp.seq, tcp.flags, getattr(ip, "id", 0)
    result = []
    for start in range(0, max(len(data), 1), gso_size):
        tcp.seq = (sequence + start) % 2**32
        off = (CWR if start else 0) | (0 if start + gso_size >= len(data) else FIN | PSH)
        tcp.flags = tcp_flags & ~off
        if ip.v == 4:
            ip.id = (first_id + start // gso_size) % 65536
        result.append(frame[:network] + _sealed(ip, data[start : start + gso_size]))
    return result


def _sealed(ip: dpkt.Packet, data: bytes) -> bytes:
    """The packet with that payload, its lengths and its sums."""
    ip.data.data, ip.data.sum = data, 0
    if ip.v == 4:
        ip.sum = 0
    else:
        ip.plen = len(ip.data) + sum(len(part) for part in ip.extension_hdrs.values())
    return bytes(ip)


def sent(guest: YardGuest, packet: Packet, cuts: list[int] | None = None) -> list[bytes]:
    header, frame = packet.header(guest.shape.header_size), packet.frame()
    guest.send(frame, cuts, header=header)
    return wire(header[:10], frame)


def check(packet: Packet, takes: int, got: list[tuple[bytes, bytes]], wanted: list[bytes]) -> None:
    """Together they are what was sent, each says what its receiver has taken, no more, and nothing
    was done for it that it does itself."""
    assert [piece for header, frame in got for piece in wire(header, frame)] == wanted
    for header, frame in got:
        flags, gso_type, hdr_len, gso_size, *_ = unpack("<BBHHHH", header)
        whole = not packet.needs & ~takes
        assert flags == (NEEDS_CSUM if takes & CSUM else 0)
        assert bool(gso_type) == (whole and packet.needs != CSUM)
        if gso_type:
            assert gso_type == GSO[packet.version] | (GSO_ECN if packet.ecn else 0)
            assert hdr_len == len(frame) - packet.payload
            assert gso_size == packet.gso_size
        else:
            assert hdr_len == gso_size == 0
            assert any(header) == bool(flags)
    assert len(got) == (1 if whole else len(wanted))


def buffers(guest: YardGuest, count: int = 100, size: int = 2000) -> None:
    """Room for any frame and any segments. Not mergeable: each buffer holds the largest frame."""
    for _ in range(count if guest.shape.mergeable else 50):
        guest.post(size if guest.shape.mergeable else 20000)


def shape(**options: object) -> Shape:
    return Shape(**{"size": 128, "regions": ROOM, **options})


C_TAG, S_TAG = b"\x81\x00\x20\x05", b"\x88\xa8\x00\x09"
HOP_BY_HOP = b"\x06\x00\x01\x04" + bytes(4)  # TCP follows, one unit of options: padding
PACKETS = {
    "TCP over IPv4": Packet(100),
    "TCP over IPv6": Packet(101, version=6),
    "UDP over IPv4": Packet(333, protocol=17),
    "UDP over IPv6": Packet(1, version=6, protocol=17),
    "UDP without payload": Packet(0, protocol=17),
    "TCP in a VLAN": Packet(77, tags=(C_TAG,)),
    "UDP over IPv6 in two": Packet(78, version=6, protocol=17, tags=(S_TAG, C_TAG)),
    "4": Packet(5000, 1448),
    "4, whole segments": Packet(4 * 1448, 1448, flags=ACK | FIN | PSH),
    "4, a byte more": Packet(4 * 1448 + 1, 1448, flags=ACK | CWR | PSH, ecn=True),
    "4, a byte less": Packet(4 * 1448 - 1, 1448, tcp_options=bytes(12)),
    "4, odd segments": Packet(3001, 333, ip_options=b"\x01" * 8, tcp_options=b"\x01" * 40),
    "4, one segment after all": Packet(1448, 1448),
    "4, ECN, one segment": Packet(1000, 1448, ecn=True, flags=ACK | CWR),
    "4 in a VLAN": Packet(4000, 1400, tags=(C_TAG,)),
    "6": Packet(5000, 1428, version=6),
    "6, ECN": Packet(5001, 1428, version=6, ecn=True, flags=ACK | CWR | PSH, tcp_options=bytes(12)),
    "6 in two VLANs": Packet(3000, 701, version=6, tags=(S_TAG, C_TAG)),
    "6 with options": Packet(3000, 1201, version=6, ip_options=HOP_BY_HOP),
    "4, as much as there can be": Packet(65495, 1448),
}


@pytest.mark.parametrize("name", PACKETS)
def test_each_receiver_gets_what_it_has_taken(name):
    packet = PACKETS[name]
    for takes, mergeable in product(TAKES, (True, False)):
        shapes = (shape(sends=EVERYTHING), shape(takes=takes, mergeable=mergeable, size=256))
        with Yard("patch", shapes=shapes) as yard:
            a, b = yard.guests
            for _ in range(100):
                b.post(2000) if mergeable else b.post(66000 if packet.payload > 20000 else 20000)
            wanted = sent(a, packet)
            assert yard.turn() == 1
            assert a.tx.ring.take_all()
            check(packet, takes, b.packets(), wanted)
            assert b.port.counters()["tx_packets"] == (
                1 if not packet.needs & ~takes else len(wanted)
            )


@pytest.mark.parametrize("sends", TAKES)
def test_a_header_that_its_sender_has_not_taken_is_malformed(sends):
    with Yard("patch", shapes=(shape(sends=sends), shape(takes=EVERYTHING))) as yard:
        a, b = yard.guests
        buffers(b)
        dropped = 0
        for packet in PACKETS.values():
            asks = (
                packet.needs
                if packet.payload > packet.gso_size
                else Packet(9999, packet.gso_size, packet.version, ecn=packet.ecn).needs
            )
            wanted = sent(a, packet)
            yard.turn()
            a.tx.ring.take_all()
            dropped += bool(asks & ~sends)
            if asks & ~sends:
                assert not b.packets()
            else:
                check(packet, EVERYTHING, b.packets(), wanted)
            buffers(b, len(b.rx.ring.desc) - len(b.buffers))
            assert a.port.counters()["rx_dropped_malformed"] == dropped


@pytest.mark.parametrize("header_size", [10, 12])
@pytest.mark.parametrize("name", ["UDP over IPv4", "4, odd segments", "6, ECN"])
def test_header_and_headers_byte_by_byte_and_payload_in_many_pieces(name, header_size):
    packet = PACKETS[name]
    for takes in (0, CSUM, EVERYTHING):
        options = {"header_size": header_size, "mergeable": header_size == 12}
        shapes = (shape(sends=EVERYTHING, **options), shape(takes=takes, **options))
        with Yard("patch", shapes=shapes) as yard:
            a, b = yard.guests
            for _ in range(20):
                b.post(1, 5, 12, 60, 700) if header_size == 12 else b.post(1, 9, 50, 1, 20000)
            wanted = sent(a, packet, [1] * 13 + [2, 3, 5, 40, 1, 0, 7])
            yard.turn()
            check(packet, takes, b.packets(), wanted)


@pytest.mark.parametrize("level", levels())
def test_bursts_of_everything_keep_their_order(level):
    """By the direct path and the general one, as it comes."""
    order = list(PACKETS.values())[:18]
    for takes in (0, CSUM, CSUM | TSO4, EVERYTHING):
        shapes = (shape(sends=EVERYTHING), shape(takes=takes, size=256))
        with Yard("patch", shapes=shapes, level=level) as yard:
            a, b = yard.guests
            buffers(b, 200)
            wanted = []
            for number in range(60):
                packet = order[number * 7 % 18] if number % 3 == 0 else Packet(60 + number)
                wanted += sent(a, packet)
            for _ in range(9):
                buffers(b, 256 - len(b.buffers))
                yard.turn()
            got = [piece for packet in b.packets() for piece in wire(*packet)]
            assert got == wanted


def test_a_flooded_frame_takes_as_many_forms_as_its_receivers_want():
    packets = [
        Packet(5000, 1448, target=BROADCAST, flags=ACK | CWR | PSH, ecn=True),
        Packet(300, protocol=17, target=BROADCAST),
        Packet(4000, 900, version=6, target=BROADCAST),
        Packet(1448, 1448, target=BROADCAST),
    ]
    takes = [*TAKES, *TAKES]  # each form is asked for again, when the copy has been made
    shapes = (shape(sends=EVERYTHING), *(shape(takes=taken) for taken in takes))
    with Yard("learn", shapes=shapes) as yard:
        sender, *receivers = yard.guests
        for receiver in receivers:
            buffers(receiver, 40)
        for packet in packets:
            wanted = sent(sender, packet)
            assert yard.turn() == 1
            for receiver in receivers:
                check(packet, receiver.shape.takes, receiver.packets(), wanted)


# --- Receivers without room ---------------------------------------------------------------------


@pytest.mark.parametrize("forward", ["patch", "loopback"])
def test_a_frame_that_waits_amid_its_segments_goes_on_with_the_next(forward):
    packet, after = Packet(9000, 1000), Packet(50)
    with Yard(forward, shapes=(shape(sends=EVERYTHING),) * 2) as yard:
        a, target = yard.guests if forward == "patch" else [yard.guests[0]] * 2
        wanted = sent(a, packet) + sent(a, after)
        got = []
        for room, comes in ((0, 0), (1, 1), (3, 3), (0, 0), (2, 2), (1, 1), (1, 1), (1, 1), (9, 1)):
            buffers(target, room)
            yard.turn()
            packets = target.received()
            assert len(packets) == comes
            got += packets
            yard.fabric.lay_out()  # a port comes or goes meanwhile
        assert got == wanted
        assert target.port.counters()["tx_dropped_full"] == 0
        assert a.port.counters()["rx_packets"] == 2


def test_with_learn_the_segments_for_which_there_is_no_room_are_lost_and_counted():
    packet = Packet(9000, 1000, target=BROADCAST)
    shapes = (shape(sends=EVERYTHING), *(shape(takes=takes) for takes in (0, CSUM, EVERYTHING)))
    with Yard("learn", shapes=shapes) as yard:
        a, *receivers = yard.guests
        for receiver, room in zip(receivers, (4, 0, 5), strict=True):
            buffers(receiver, room)
        wanted = sent(a, packet)
        assert yard.turn() == 1
        assert receivers[0].received() == wanted[:4]
        assert [r.port.counters()["tx_dropped_full"] for r in receivers] == [5, 9, 0]
        check(packet, EVERYTHING, receivers[2].packets(), wanted)
        buffers(receivers[0], 20)
        assert receivers[0].received() == []
        wanted = sent(a, packet)
        yard.turn()
        assert receivers[0].received() == wanted


def test_segments_count_for_a_turn_as_packets_do():
    """Nobody has more of the worker by having frames cut."""
    packet = Packet(60000, 1400)
    with Yard("patch", shapes=(shape(sends=EVERYTHING), shape(size=2048))) as yard:
        a, b = yard.guests
        for _ in range(1400):
            b.post(1500)
        wanted = [piece for _ in range(30) for piece in sent(a, packet)]
        turns = []
        while len(turns) < 10 and sum(turns) < 30:
            turns.append(yard.turn())
        assert sum(turns) == 30
        assert max(turns) < 25
        assert b.received() == wanted


def test_segments_for_buffers_of_many_pieces_go_in_several_turns():
    """A turn is bounded, whatever the two of a patch agree on."""
    packet, after = Packet(18000, 1000), Packet(50)
    receiver = shape(size=32768, indirect=False, regions=((0, 64 << 20),))
    with Yard("patch", shapes=(shape(sends=EVERYTHING), receiver)) as yard:
        a, b = yard.guests
        for _ in range(19):
            b.post(1200, *[0] * 1500)
        wanted = sent(a, packet) + sent(a, after)
        got = []
        while len(got) < 18:
            assert yard.turn() == 1
            now = b.received()
            assert 0 < len(now) <= 3
            got += now
        assert yard.turn() == 1
        assert got + b.received() == wanted
        assert a.port.counters()["rx_packets"] == 2


def test_the_mtu_is_that_of_the_packets_on_the_wire():
    fits, too_big = Packet(9000, 1460), Packet(9000, 1461)
    for takes in (0, CSUM, EVERYTHING):
        shapes = (shape(sends=EVERYTHING), shape(takes=takes, frame_size_max=1514))
        with Yard("patch", shapes=shapes) as yard:
            a, b = yard.guests
            buffers(b)
            sent(a, too_big)
            wanted = sent(a, fits)
            sent(a, Packet(1461))
            assert yard.turn() == 3
            check(fits, takes, b.packets(), wanted)
            assert b.port.counters()["tx_dropped_too_big"] == 2


def test_segments_too_large_for_the_only_buffer_are_dropped():
    with Yard("patch", shapes=(shape(sends=EVERYTHING), shape(mergeable=False))) as yard:
        a, b = yard.guests
        for _ in range(20):
            b.post(500)
        sent(a, Packet(3000, 1000))
        assert yard.turn() == 1
        assert b.port.counters()["tx_dropped_too_big"] == 1
        assert b.packets() == []
        wanted = sent(a, Packet(3000, 300))
        yard.turn()
        assert b.received() == wanted


# --- What a sender may say of a frame -----------------------------------------------------------


@dataclass(frozen=True)
class Lie:
    """A header and a frame that don't belong together: fields of the header, bytes of the frame."""

    fields: dict[str, int] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)
    packet: Packet = Packet(3000, 1000)
    size: int | None = None

    def parts(self) -> tuple[bytes, bytes]:
        names = ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset", "count")
        said = dict(zip(names, unpack("<BBHHHHH", self.packet.header()), strict=True)) | self.fields
        frame = bytearray(self.packet.frame())
        for at, value in self.bytes.items():
            frame[at] = value
        return pack("<BBHHHHH", *said.values()), bytes(frame[: self.size])


SIX = Packet(3000, 1000, version=6)
LIES = {
    "csum_start behind the frame": Lie({"csum_start": 9999}, packet=Packet(100)),
    "the sum's field across its end": Lie({"csum_start": 137}, packet=Packet(100)),
    "csum_offset behind the frame": Lie({"csum_offset": 65535}, packet=Packet(100)),
    "the sum of the Ethernet header": Lie({"csum_start": 0}, packet=Packet(100)),
    "segments without a sum": Lie({"flags": 0}),
    "DATA_VALID is no sum": Lie({"flags": 2}),
    "segments of 0 bytes": Lie({"gso_size": 0}),
    "more segments than anyone needs": Lie({"gso_size": 1}),
    "UDP fragments": Lie({"gso_type": 3}),
    "UDP segments": Lie({"gso_type": 5}),
    "nothing but ECN": Lie({"gso_type": 0x80}),
    "an unknown type": Lie({"gso_type": 0x41}),
    "IPv6 that is IPv4": Lie({"gso_type": 4}),
    "IPv4 that is IPv6": Lie({"gso_type": 1}, packet=SIX),
    "the sum of something else": Lie({"csum_offset": 6}),
    "TCP elsewhere": Lie({"csum_start": 38}),
    "neither IP": Lie(bytes={12: 8, 13: 6}),
    "a third tag": Lie(packet=Packet(3000, 1000, tags=(S_TAG, C_TAG, C_TAG))),
    "UDP": Lie(bytes={23: 17}),
    "UDP over IPv6": Lie(bytes={20: 17}, packet=SIX),
    "a fragment": Lie(bytes={20: 0x20}),
    "the end of a fragment": Lie(bytes={21: 9}),
    "a routing header": Lie(bytes={20: 43}, packet=SIX),
    "a fragment header": Lie(bytes={20: 44}, packet=SIX),
    "options without end": Lie(bytes={20: 0, 55: 255}, packet=SIX),
    "an IP header too short": Lie(bytes={14: 0x44}),
    "IP of version 5": Lie(bytes={14: 0x55}),
    "a TCP header too short": Lie(bytes={46: 0x40}),
    "headers cut off": Lie(size=53),
    "headers cut off in options": Lie(packet=Packet(3000, 1000, tcp_options=bytes(40)), size=93),
    "longer than IP can be": Lie(packet=Packet(65496, 1000)),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.hostile(
            "packets", f"a header that is not true of the frame: {name}", "dropped and counted"))
        for name in LIES
    ],
)  # fmt: skip
def test_what_is_not_true_of_the_frame_is_dropped_and_counted(name):
    header, frame = LIES[name].parts()
    for takes, cuts in product((0, EVERYTHING), (None, [1] * 13)):
        shapes = (shape(sends=EVERYTHING), shape(takes=takes))
        with Yard("patch", shapes=shapes) as yard:
            a, b = yard.guests
            buffers(b)
            head = a.send(frame, cuts, header=header)
            assert yard.turn() == 1
            assert a.tx.ring.take_all() == [(head, 0)]
            assert a.port.counters()["rx_dropped_malformed"] == 1
            assert a.port.counters()["rx_packets"] == 0
            assert b.packets() == []
            wanted = sent(a, Packet(40))  # the next one is none the worse for it
            yard.turn()
            check(Packet(40), takes, b.packets(), wanted)


# --- Everything there is ------------------------------------------------------------------------


@st.composite
def segmented(draw):
    version = draw(st.sampled_from([4, 6]))
    options = st.integers(0, 10).map(lambda n: b"\x01" * 4 * n)
    return Packet(
        draw(st.integers(0, 4000)),
        draw(st.integers(40, 1500) | st.integers(1, 9).map(lambda n: 500 * n)),
        version,
        flags=draw(st.integers(0, 255)),
        tags=draw(st.sampled_from([(), (C_TAG,), (S_TAG, C_TAG)])),
        ip_options=draw(options if version == 4 else st.sampled_from([b"", HOP_BY_HOP])),
        tcp_options=draw(options),
        ecn=draw(st.booleans()),
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_packet_to_any_receiver(data):
    takes = data.draw(st.sampled_from(TAKES))
    shapes = (shape(sends=EVERYTHING), shape(takes=takes, mergeable=data.draw(st.booleans())))
    with Yard("patch", shapes=shapes) as yard:
        a, b = yard.guests
        packet = data.draw(segmented())
        size = data.draw(st.integers(100, 3000)) if b.shape.mergeable else 6000
        wanted = sent(a, packet, data.draw(st.lists(st.integers(0, 70), max_size=20)))
        got: list[tuple[bytes, bytes]] = []
        for _ in range(50):
            for _ in range(60 - len(b.buffers)):
                b.post(size)
            yard.turn()
            got += b.packets()
        assert a.tx.ring.take_all()
        check(packet, takes, got, wanted)
