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
from messages import NET, messages

from vhostfast.backend.channel import Channel
from vhostfast.backend.closing import close_fds
from vhostfast.errors import Disconnected, ProtocolError
from vhostfast.protocol.message import (
    HEADER_SIZE,
    LOG_BYTE_SPAN,
    SPEC,
    LogBase,
    MemoryTable,
    OneRegion,
    Region,
    RegionKey,
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
        issubclass(SPEC[message.request].payload, MemoryTable | OneRegion | RegionKey)
        or message.request.name == "SEND_RARP"
    ):
        assert len(again) == 12 + len(payload)  # these have padding that is ignored
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
    channel = Channel(ours)
    with theirs:
        theirs.setblocking(False)
        with suppress(ProtocolError, Disconnected):
            for (header, payload, fd_count), cut in raws:
                stream = header + payload
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file] * fd_count))
                theirs.sendmsg([stream[:cut]], [rights] if fd_count else [])
                serve(channel, session)
                theirs.sendmsg([stream[cut:]])
                serve(channel, session)
    close_fds([*session.fds(), *channel.hang_up(), file])
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
