"""Any bytes, in any order: decode and apply raise ProtocolError or nothing, and no fd is lost.

FUZZ_EXAMPLES=100000 looks longer.
"""

import os
import socket
from array import array
from contextlib import suppress
from copy import deepcopy
from itertools import count
from struct import pack

from hypothesis import example, given, settings
from hypothesis import strategies as st

from vhostfast.backend.channel import Channel, close_fds
from vhostfast.errors import Disconnected, ProtocolError
from vhostfast.protocol.features import Offer, VirtioFeature
from vhostfast.protocol.message import (
    HEADER_SIZE,
    LOG_BYTE_SPAN,
    SPEC,
    U64,
    LogBase,
    MemoryTable,
    OfVring,
    Region,
    Request,
    VringAddr,
    VringFile,
    VringState,
    decode,
    decode_reply,
    encode,
)
from vhostfast.protocol.session import Session, Vring

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
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


@st.composite
def tables(draw):
    rows = st.tuples(UVA, st.sampled_from([0x1000, 0x10000]), UVA, SMALL)
    rows |= st.tuples(WORD, WORD, WORD, WORD)
    regions = draw(st.lists(rows, max_size=8))
    return pack("=II", len(regions), 0) + b"".join(pack("=QQQQ", *region) for region in regions)


@st.composite
def bodies(draw, request):
    """A payload of the request's size, more often than not with fields that could be meant."""
    payload = SPEC[request].payload
    if payload is MemoryTable:
        return draw(tables())
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


def changed(session, before):
    """Whether a refused message left a trace; a ring may have been made by being named."""
    for index in session.vrings.keys() - before.vrings.keys():
        before.vrings[index] = Vring(index, enabled=before.rings_begin_enabled)
    return session != before


@given(
    st.binary(max_size=16) | messages().map(lambda raw: raw[0]),
    st.binary(max_size=300),
    st.integers(0, 300),
)
@settings(deadline=None, max_examples=EXAMPLES)
@example(pack("=III", Request.SET_FEATURES, 1, 8), bytes(7), 0)
def test_any_bytes(header, payload, fd_count):
    session = Session(NET, protocol_features=NET.protocol_features)
    try:
        decode(header, payload, range(fd_count), session)
    except ProtocolError:
        session.failure(header)


@given(messages())
@settings(deadline=None, max_examples=EXAMPLES)
def test_what_is_decoded_encodes_to_the_same_bytes(raw):
    header, payload, fd_count = raw
    try:
        message = decode(header, payload, range(fd_count), Session(NET))
    except ProtocolError:
        return
    again = encode(message.request, message.payload, need_reply=message.need_reply)
    if (
        issubclass(SPEC[message.request].payload, MemoryTable)
        or message.request.name == "SEND_RARP"
    ):
        assert len(again) == 12 + len(payload)  # both have padding that is ignored
    else:
        assert again == header + payload


@given(st.sampled_from(list(SPEC)), st.binary(min_size=12, max_size=12), st.binary(max_size=40))
@example(next(iter(SPEC)), pack("=III", 1, 5, 8), bytes(8))
@settings(deadline=None, max_examples=EXAMPLES)
def test_any_answer(request_, header, payload):
    with suppress(ProtocolError):
        decode_reply(request_, header, payload)


def begun(index, logged):
    """What starts a ring, so that the messages after it meet one that runs."""
    area = 0x10000 + 0x1000 * index
    requests = [
        (Request.SET_VRING_ENABLE, VringState(index, 1), 0),
        (Request.SET_MEM_TABLE, MemoryTable((Region(0x10000, 0x10000, 0x10000, 0),)), 1),
        (Request.SET_VRING_NUM, VringState(index, 16), 0),
        (Request.SET_VRING_BASE, VringState(index, 0), 0),
        (Request.SET_VRING_ADDR, VringAddr(index, 0, area, area, area, area), 0),
        (Request.SET_VRING_KICK, VringFile(index, True), 1),
    ]
    if logged:  # not enough for all memory that tables() may bring
        requests.append((Request.SET_LOG_BASE, LogBase(5, 0), 1))
    encoded = [(encode(request, payload), fds) for request, payload, fds in requests]
    return [(data[:HEADER_SIZE], data[HEADER_SIZE:], fds) for data, fds in encoded]


@given(
    st.lists(messages(), min_size=1, max_size=40), st.booleans(), st.booleans(), st.integers(0, 2)
)
@settings(deadline=None, max_examples=EXAMPLES)
def test_any_messages_in_any_order(raws, agreed, logged, rings):
    session = Session(NET)
    if agreed or logged:
        session.protocol_features = NET.protocol_features
    numbers, given_fds = count(100), []
    start = [message for index in range(rings) for message in begun(index, logged)]
    for header, payload, fd_count in start + raws:
        fds = [next(numbers) for _ in range(fd_count)]
        before = deepcopy(session)
        try:
            message = decode(header, payload, fds, session)
            session.apply(message)
        except ProtocolError:
            session.failure(header)
            assert not changed(session, before)
        else:
            given_fds += fds
            session.reply(message)
        assert sorted(session.fds()) == given_fds, "each fd has one place"
        check(session)


def check(session):
    """What must hold after every message."""
    assert session.features in session.offer.features
    assert session.protocol_features in session.offer.protocol_features
    assert all(index < 2 * session.offer.queue_pairs for index in session.vrings)
    for vring in session.vrings.values():
        if session.wants_running(vring):
            for uva, size in vring.areas():
                assert size
                assert any(region.holds(uva, size) for region, _ in session.regions)
        if session.log:
            assert vring.logged_end() <= session.log.size * LOG_BYTE_SPAN
    if session.log:
        assert all(r.gpa + r.size <= session.log.size * LOG_BYTE_SPAN for r, _ in session.regions)


# --- The same over a socket, with real files ------------------------------------------------------


@given(st.lists(st.tuples(messages(), st.integers(1, 40)), max_size=8))
@settings(deadline=None, max_examples=EXAMPLES)
def test_any_stream_loses_no_fd(raws):
    before = os.listdir("/proc/self/fd")
    ours, theirs = socket.socketpair()
    file = os.memfd_create("fuzz")
    session = Session(NET, protocol_features=NET.protocol_features)
    with Channel(ours) as channel, theirs:
        theirs.setblocking(False)
        with suppress(ProtocolError, Disconnected):
            for (header, payload, fd_count), cut in raws:
                stream = header + payload
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file] * fd_count))
                theirs.sendmsg([stream[:cut]], [rights] if fd_count else [])
                serve(channel, session)
                theirs.sendmsg([stream[cut:]])
                serve(channel, session)
    close_fds([*session.fds(), file])
    assert len(os.listdir("/proc/self/fd")) == len(before)


def serve(channel, session):
    """A connection without a world."""
    while (raw := channel.receive()) is not None:
        try:
            message = decode(raw.header, raw.payload, raw.fds, session)
            session.apply(message)
        except ProtocolError:
            close_fds(raw.fds)
            answer = session.failure(raw.header)
            if answer is None:
                raise
        else:
            answer = session.reply(message)
        close_fds(session.discarded)
        session.discarded.clear()
        if answer is not None:
            channel.send(answer)
