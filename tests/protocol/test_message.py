"""decode against the table: every column refuses, every boundary has a row on each side."""

from dataclasses import dataclass, replace
from pathlib import Path
from struct import pack

import pytest

from vhostfast.errors import ProtocolError
from vhostfast.protocol.features import MEMORY_SLOTS_MAX, Offer, ProtocolFeature, VirtioFeature
from vhostfast.protocol.message import (
    EMPTY,
    FDS_MAX,
    HEADER_SIZE,
    PAYLOAD_MAX,
    SPEC,
    U64,
    Empty,
    LogBase,
    LogFile,
    Mac,
    MemoryTable,
    Mtu,
    OfVring,
    OneRegion,
    Region,
    RegionKey,
    Request,
    VringAddr,
    VringBase,
    VringEnable,
    VringFile,
    VringSize,
    VringState,
    decode,
    decode_reply,
    encode,
    parse_header,
)

EVERYTHING = ProtocolFeature((1 << 23) - 1)


OFFER = Offer(VirtioFeature.PROTOCOL_FEATURES, EVERYTHING, 2)


@dataclass
class Agreed:
    offer: Offer = OFFER
    protocol_features: ProtocolFeature = EVERYTHING


REGION = Region(0x1000, 0x2000, 0x7F0000000000, 0)
LEGAL = {
    Empty: [EMPTY],
    U64: [U64(0), U64((1 << 64) - 1)],
    Mtu: [Mtu(68), Mtu(65535)],
    Mac: [Mac(bytes.fromhex("525400123456"))],
    VringState: [VringState(0, 0x557A), VringState(3, (1 << 32) - 1)],
    VringSize: [VringSize(0, 1), VringSize(1, 256), VringSize(3, 32768)],
    VringBase: [VringBase(0, 0), VringBase(3, 65535)],
    VringEnable: [VringEnable(0, 0), VringEnable(3, 1)],
    VringAddr: [VringAddr(0, 0, 0, 0, 0, 0), VringAddr(3, 1, 16, 4, 2, 1)],
    VringFile: [VringFile(0, True), VringFile(3, False)],
    LogFile: [LogFile()],
    OneRegion: [OneRegion(REGION)],
    RegionKey: [RegionKey.of(REGION), RegionKey(0, 0, 0), RegionKey(*[(1 << 64) - 1] * 3)],
    LogBase: [LogBase(1, 0), LogBase(0x1000, 0x1000)],
    MemoryTable: [
        MemoryTable((REGION,)),
        MemoryTable(tuple(replace(REGION, gpa=0x10000 * (8 - i)) for i in range(8))),
    ],
}


def fds_for(request, payload):
    count = payload.fd_count()
    return list(range(100, 100 + (SPEC[request].fds[0] if count is None else count)))


def decoded(request, payload, fds=(), agreed=None, flags=1):
    """`payload` may be bytes that no Payload would make."""
    body = payload if isinstance(payload, bytes) else payload.pack()
    return decode(pack("=III", request, flags, len(body)), body, fds, agreed or Agreed())


def refused(match, *args, **kwargs):
    with pytest.raises(ProtocolError, match=match) as caught:
        decoded(*args, **kwargs)
    return caught.value


def rows():
    return [(request, body) for request in SPEC for body in LEGAL[SPEC[request].payload]]


def test_the_table_is_the_only_list():
    assert set(SPEC) == set(Request)


@pytest.mark.parametrize(("request_", "payload"), rows())
def test_round_trip(request_, payload):
    data = encode(request_, payload, need_reply=True)
    fds = fds_for(request_, payload)
    message = decode(data[:HEADER_SIZE], data[HEADER_SIZE:], fds, Agreed())
    assert message.request is request_
    assert type(message.payload) is SPEC[request_].payload
    assert message.payload == payload
    assert message.fds == tuple(fds)
    memory = isinstance(payload, MemoryTable | OneRegion | RegionKey)
    one = (payload.index,) if isinstance(payload, OfVring) else None
    assert message.vrings == (() if memory else one)
    assert message.need_reply
    assert not decoded(request_, payload, fds).need_reply


@pytest.mark.parametrize(("request_", "payload"), rows())
def test_one_fd_too_many_or_too_few(request_, payload):
    fds = fds_for(request_, payload)
    most = [99] * (SPEC[request_].fds[1] + 1)  # REM_MEM_REG may have one
    error = refused("number of fds", request_, payload, [*fds, 99] if fds else most)
    assert error.request == request_.name
    if fds:
        refused("number of fds", request_, payload, fds[1:])


@pytest.mark.parametrize(("request_", "payload"), rows())
def test_one_byte_too_many_or_too_few(request_, payload):
    body = payload.pack()
    refused("size|bytes of regions", request_, body + b"\0", fds_for(request_, payload))
    if body:
        refused("size|bytes of regions", request_, body[:-1], fds_for(request_, payload))


@pytest.mark.parametrize(("request_", "payload"), rows())
def test_a_vring_of_another_port(request_, payload):
    if isinstance(payload, OfVring):
        match = "vring index is 4, must be under 4"
        refused(match, request_, replace(payload, index=4), fds_for(request_, payload))


@pytest.mark.parametrize("request_", [r for r in SPEC if SPEC[r].needs is not None])
def test_a_feature_not_negotiated(request_):
    needs = SPEC[request_].needs
    agreed = Agreed()
    if isinstance(needs, VirtioFeature):
        agreed.offer = replace(agreed.offer, features=VirtioFeature(0))
    else:
        agreed.protocol_features &= ~needs
    payload = LEGAL[SPEC[request_].payload][0]
    error = refused("not (offered|negotiated)", request_, payload, (), agreed)
    assert error.field == needs.name


@pytest.mark.parametrize("number", [0, 21, 22, 24, 31, 33, 35, 41, 0xFFFFFFFF])
def test_unknown_requests(number):
    refused(f"^request {number}: request is {number}, must be one that we know$", number, b"")


def test_a_reply_where_a_request_is_due():
    refused("REPLY flag", Request.GET_FEATURES, b"", flags=5)


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"", "bytes of header is 0, must be 12"),
        (bytes(13), "bytes of header is 13"),
        (pack("=III", 1, 0, 0), "GET_FEATURES: version is 0, must be 1"),
        (pack("=III", 1, 2, 0), "version is 2"),
        (pack("=III", 1, 3, 0), "version is 3"),
        (pack("=III", 1, 0x11, 0), "flags is 0x11"),
        (pack("=III", 77, 1, PAYLOAD_MAX + 1), "request 77: size is 4097, must be at most 4096"),
    ],
)
def test_bad_headers(header, match):
    with pytest.raises(ProtocolError, match=match):
        parse_header(header)


def test_the_longest_header():
    assert parse_header(pack("=III", 77, 0xD, PAYLOAD_MAX)).size == PAYLOAD_MAX


def test_a_payload_that_is_not_as_long_as_the_header_says():
    header = pack("=III", Request.SET_FEATURES, 1, 8)
    with pytest.raises(ProtocolError, match="bytes of payload is 7, must be 8"):
        decode(header, bytes(7), (), Agreed())


# --- Payloads -------------------------------------------------------------------------------------

TOP = 1 << 64


@pytest.mark.parametrize(
    ("request_", "body", "match"),
    [
        (Request.SET_VRING_NUM, pack("=II", 0, 0), "size is 0"),
        (Request.SET_VRING_NUM, pack("=II", 0, 3), "size is 3, must be a power of two"),
        (Request.SET_VRING_NUM, pack("=II", 0, 65536), "size is 65536"),
        (Request.SET_VRING_BASE, pack("=II", 0, 65536), "base is 65536"),
        (Request.SET_VRING_ENABLE, pack("=II", 0, 2), "enable is 2"),
        (Request.SET_VRING_NUM, pack("=II", 0x7FFFFFFF, 256), "vring index is 2147483647"),
        (Request.SET_VRING_ADDR, pack("=IIQQQQ", 0, 2, 0, 0, 0, 0), "flags is 0x2"),
        (Request.SET_VRING_ADDR, pack("=IIQQQQ", 0, 0, 8, 0, 0, 0), "desc is 0x8"),
        (Request.SET_VRING_ADDR, pack("=IIQQQQ", 0, 0, 0, 2, 0, 0), "used is 0x2"),
        (Request.SET_VRING_ADDR, pack("=IIQQQQ", 0, 0, 0, 0, 1, 0), "avail is 0x1"),
        (Request.SET_VRING_KICK, pack("=Q", 0x300), "index and NOFD is 0x300"),
        (Request.SET_VRING_CALL, pack("=Q", 1 << 63), "index and NOFD is"),
        (Request.NET_SET_MTU, pack("=Q", 67), "mtu is 67, must be 68 to 65535"),
        (Request.NET_SET_MTU, pack("=Q", 65536), "mtu is 65536"),
        (Request.SEND_RARP, bytes(8), "mac is 00:00"),
        (Request.SEND_RARP, b"\xff" * 8, "mac is ff:ff"),
        (Request.SEND_RARP, b"\x01\0\x5e\0\0\1\0\0", "mac is 01:00:5e"),
        (Request.SET_LOG_BASE, pack("=QQ", 0, 0), "log's size is 0"),
        (Request.SET_LOG_BASE, pack("=QQ", 1, 1), "log's offset is 1"),
        (Request.SET_LOG_BASE, pack("=QQ", TOP - 4096, 8192), "log's offset is 0x2000"),
        (Request.SET_LOG_BASE, pack("=QQ", 1, 1 << 63), "log's offset is"),
        (Request.SET_LOG_FD, bytes(4), "size is 4, must be 0 or 8"),
    ],
)
def test_payloads_that_no_front_end_may_send(request_, body, match):
    fds = list(range(SPEC[request_].fds[0]))
    assert refused(match, request_, body, fds).request == request_.name


def test_a_mac_has_padding_that_is_ignored():
    assert decoded(Request.SEND_RARP, b"RT\0\x12\x34\x56\xff\xff").payload.address[0] == 0x52


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        ((0, 0, 0, 0), "region's size is 0"),
        ((TOP - 4096, 4097, 0, 0), "region's gpa is 0xfffffffffffff000"),
        ((0, 4097, TOP - 4096, 0), "region's uva"),
        ((0, TOP - 1, 4096, 0), "region's uva"),
        ((0, 4096, 0, (1 << 63) - 4095), "region's mmap_offset"),
        ((0, 4096, 0, TOP - 1), "region's mmap_offset"),
    ],
)
def test_regions_that_wrap(numbers, match):
    body = pack("=II", 1, 0) + pack("=QQQQ", *numbers)
    refused(match, Request.SET_MEM_TABLE, body, [5])


def test_regions_at_the_very_end():
    numbers = (TOP - 4096, 4096, TOP - 4096, (1 << 63) - 4096)
    body = pack("=II", 1, 0) + pack("=QQQQ", *numbers)
    assert decoded(Request.SET_MEM_TABLE, body, [5]).payload.regions == (Region(*numbers),)


def table(*gpas):
    return pack("=II", len(gpas), 0) + b"".join(pack("=QQQQ", gpa, 0x1000, 0, 0) for gpa in gpas)


@pytest.mark.parametrize("gpas", [(0, 0), (0x1000, 0x800), (0, 0x3000, 0xFFF)])
def test_regions_that_overlap(gpas):
    refused("no overlap", Request.SET_MEM_TABLE, table(*gpas), list(range(len(gpas))))


def test_regions_that_touch_in_any_order():
    message = decoded(Request.SET_MEM_TABLE, table(0x2000, 0, 0x1000), [5, 6, 7])
    assert [region.gpa for region in message.payload.regions] == [0x2000, 0, 0x1000]
    assert message.fds == (5, 6, 7)


def test_no_region_and_nine():
    refused("shared", Request.SET_MEM_TABLE, table(), [])
    refused("size is 296", Request.SET_MEM_TABLE, table(*range(0, 0x9000, 0x1000)), [0] * 9)
    refused("bytes of regions", Request.SET_MEM_TABLE, pack("=II", 0xFFFFFFFF, 0), [])


def test_one_region_is_as_legal_as_in_a_table():
    numbers = (0x1000, 0x2000, 0x7F0000000000, 0x3000)
    body = pack("=QQQQQ", 0xBADC0FFEE, *numbers)
    message = decoded(Request.ADD_MEM_REG, body, [5])
    assert message.payload == OneRegion(Region(*numbers))
    assert message.fds == (5,)
    refused("region's size is 0", Request.ADD_MEM_REG, bytes(40), [5])
    for fds in ([], [5, 6]):
        refused(f"number of fds is {len(fds)}, must be 1", Request.ADD_MEM_REG, body, fds)
    for size in (32, 48):
        refused(f"size is {size}, must be 40", Request.ADD_MEM_REG, bytes(size), [5])


@pytest.mark.parametrize("fds", [[], [5]])
def test_a_region_is_removed_by_its_key_wherever_it_lies_in_its_file(fds):
    """QEMU says offset 0, another might say anything; and an fd is allowed."""
    body = pack("=QQQQQ", 7, 0x1000, 0x2000, 0x7F0000000000, TOP - 1)
    message = decoded(Request.REM_MEM_REG, body, fds)
    assert message.payload == RegionKey.of(REGION)
    assert message.fds == tuple(fds)
    refused("number of fds is 2, must be 0 to 1", Request.REM_MEM_REG, body, [5, 6])


def test_there_are_as_many_slots_as_the_core_has_room_for():
    spec = (Path(__file__).parents[2] / "csrc" / "spec.h").read_text()
    assert f"    REGION_COUNT_MAX = {MEMORY_SLOTS_MAX}, " in spec


def test_a_table_takes_as_many_fds_as_a_message_can_carry():
    assert SPEC[Request.SET_MEM_TABLE].fds[1] == FDS_MAX


def test_a_region_holds_what_lies_in_it_whole():
    assert REGION.holds(REGION.uva, REGION.size)
    assert not REGION.holds(REGION.uva - 1, 1)
    assert not REGION.holds(REGION.uva + 1, REGION.size)


# --- Answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", list(SPEC))
def test_answers_round_trip(request_):
    payload = LEGAL[SPEC[request_].reply or U64][0]
    data = encode(request_, payload, reply=True)
    assert data[4:8] == pack("=I", 5), "QEMU and DPDK compare the flags for equality"
    assert decode_reply(request_, data[:HEADER_SIZE], data[HEADER_SIZE:]) == payload


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ((1, 0xD, 8), "reply's flags is 0xd"),
        ((1, 1, 8), "reply's flags is 0x1"),
        ((2, 5, 8), "answered request is 2, must be 1"),
        ((1, 5, 4), "GET_FEATURES: size is 4, must be 8"),
    ],
)
def test_answers_that_peers_refuse(header, match):
    with pytest.raises(ProtocolError, match=match):
        decode_reply(Request.GET_FEATURES, pack("=III", *header), bytes(header[2]))
