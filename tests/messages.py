"""Messages as Hypothesis makes them: mostly legal in form, with numbers on somebody's boundary."""

from struct import pack

from hypothesis import strategies as st

from vhostfast.protocol.features import Offer, VirtioFeature
from vhostfast.protocol.message import (
    SPEC,
    U64,
    LogBase,
    MemoryTable,
    OfVring,
    OneRegion,
    RegionKey,
    VringAddr,
    VringFile,
)

NET = Offer.net(2)
PF = VirtioFeature.PROTOCOL_FEATURES
FEATURES = [0, int(PF), int(PF | VirtioFeature.LOG_ALL), int(NET.protocol_features)]

# Numbers that lie on somebody's boundary, some of them often enough to meet each other again.
EDGES = [0, 1, 2, 3, 4, 5, 16, 68, 256, 0x1000, 0x8000, 0xFFFF, 0x10000, 1 << 26, 1 << 30, 1 << 32]
EDGES += [*FEATURES, int(NET.features), 1 << 63, (1 << 64) - 4096]
WORD = st.sampled_from(EDGES) | st.integers(0, (1 << 64) - 1)
HALF = st.sampled_from([edge for edge in EDGES if edge < 1 << 32]) | st.integers(0, (1 << 32) - 1)
SMALL = st.integers(0, 4)
NUMBERS = st.sampled_from([int(request) for request in SPEC]) | st.integers(0, 50) | HALF


UVA = st.sampled_from([0x10000, 0x11000, 0x12000, 0x20000])


# A region's numbers, rarely without meaning.
REGIONS = st.tuples(UVA, st.sampled_from([0x1000, 0x10000]), UVA, SMALL)
REGIONS |= st.tuples(WORD, WORD, WORD, WORD)


@st.composite
def tables(draw):
    regions = draw(st.lists(REGIONS, max_size=8))
    return pack("=II", len(regions), 0) + b"".join(pack("=QQQQ", *region) for region in regions)


@st.composite
def bodies(draw, request):
    """A payload of the request's size, more often than not with fields that could be meant."""
    payload = SPEC[request].payload
    if payload is MemoryTable:
        return draw(tables())
    if payload in (OneRegion, RegionKey):
        return pack("=QQQQQ", draw(WORD), *draw(REGIONS))
    if payload is VringAddr:
        areas = draw(st.tuples(UVA, UVA, UVA, UVA))
        return pack("=IIQQQQ", draw(SMALL), draw(SMALL) // 2, *areas)
    if payload is VringFile:
        return pack("=Q", draw(SMALL) | draw(st.sampled_from([0, 0x100, 0x100, 0x200])))
    if issubclass(payload, OfVring):
        return pack("=II", draw(SMALL), draw(HALF))
    if payload is LogBase:
        return pack("=QQ", draw(st.sampled_from([1, 4, 5, 6, 0x1000]) | WORD), 0)
    if payload is U64:
        return pack("=Q", draw(st.sampled_from(FEATURES) | WORD))
    return b"".join(pack("=Q", draw(WORD)) for _ in range(payload.sizes()[0] // 8))


def announced_fds(request, payload):
    """As many as a well-meaning front-end would send with this payload."""
    if SPEC[request].payload is MemoryTable:
        return len(payload) // 32
    if SPEC[request].payload is VringFile:
        return int(not payload[1] & 1)
    return SPEC[request].fds[0]


@st.composite
def messages(draw):
    """(header, payload, number of fds): mostly legal in form, sometimes in nothing."""
    flags = draw(st.sampled_from([1, 9]))
    if draw(st.integers(0, 4)):
        request = draw(st.sampled_from(list(SPEC)))
        payload = draw(bodies(request))
        return pack("=III", request, flags, len(payload)), payload, announced_fds(request, payload)
    payload = draw(st.binary(max_size=64))
    size = draw(st.just(len(payload)) | HALF)
    header = pack("=III", draw(NUMBERS), draw(st.just(flags) | HALF), size)
    return header, payload, draw(st.integers(0, 9))
