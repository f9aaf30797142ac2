"""The channel over a real socketpair: cuts, fds, a full pipe, a peer that goes."""

import os
import socket
from array import array
from struct import pack

import pytest

from vhostfast.backend.channel import UNSENT_MAX, Channel
from vhostfast.backend.closing import close_fds
from vhostfast.errors import Disconnected, ProtocolError

MESSAGE = pack("=III", 5, 1, 8) + b"12345678"


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        yield channel, theirs
    close_fds(channel.hang_up())


@pytest.fixture
def files():
    """A maker of fds, all closed at the end."""
    made = []

    def make(count):
        fds = [os.memfd_create("file") for _ in range(count)]
        made.extend(fds)
        return fds

    yield make
    close_fds(made)


def send(sock, data, fds=()):
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    assert sock.sendmsg([data], rights) == len(data)


def same_file(one, other):
    return os.fstat(one).st_ino == os.fstat(other).st_ino


def test_nothing_has_come(pair):
    channel, _ = pair
    assert channel.receive() is None


def test_a_whole_message_with_its_fds(pair, files):
    channel, theirs = pair
    sent = files(8)
    send(theirs, MESSAGE, sent)
    message = channel.receive()
    assert (message.header, message.payload) == (MESSAGE[:12], MESSAGE[12:])
    assert all(same_file(*fds) for fds in zip(sent, message.fds, strict=True))
    assert not any(os.get_inheritable(fd) for fd in message.fds)
    close_fds(message.fds)
    assert channel.receive() is None


def test_a_message_without_payload(pair):
    channel, theirs = pair
    send(theirs, pack("=III", 1, 1, 0))
    assert channel.receive().payload == b""


def test_trickled_byte_by_byte(pair, files):
    channel, theirs = pair
    (fd,) = files(1)
    for position in range(len(MESSAGE)):
        assert channel.receive() is None
        send(theirs, MESSAGE[position : position + 1], [fd] if position == 0 else [])
    message = channel.receive()
    assert message.header + message.payload == MESSAGE
    assert same_file(fd, message.fds[0])
    close_fds(message.fds)


@pytest.mark.hostile("fds", "fds of two messages in one segment", "delivered")
def test_two_messages_in_one_segment_keep_their_own_fds(pair, files):
    channel, theirs = pair
    first, second = files(2)
    send(theirs, MESSAGE + MESSAGE, [first])
    send(theirs, MESSAGE, [second])
    got = [channel.receive().fds for _ in range(3)]
    assert [len(fds) for fds in got] == [1, 0, 1]
    assert same_file(first, got[0][0])
    assert same_file(second, got[2][0])
    close_fds(got[0] + got[2])


@pytest.mark.parametrize("in_one", [False, True])
def test_each_of_many_messages_has_its_own_fds(pair, files, in_one):
    """Whatever of them is in the queue when it is looked at."""
    channel, theirs = pair
    counts = (0, 1, 0, 0, 8, 2, 0, 7, 0)
    sent = [files(count) for count in counts]
    got = []
    for number, fds in enumerate(sent):
        data = MESSAGE if number % 2 else pack("=III", 3, 1, 0)
        for at in range(len(data)):
            send(theirs, data[at : at + 1], () if at else fds)
        if not in_one:
            got.append(channel.receive().fds)
    while in_one and (message := channel.receive()) is not None:
        got.append(message.fds)
    assert [len(fds) for fds in got] == list(counts)
    for ours, of_file in zip(got, sent, strict=True):
        assert all(same_file(*fds) for fds in zip(ours, of_file, strict=True))
        close_fds(ours)


@pytest.mark.parametrize("at", [0, 5, 11])
def test_a_byte_out_of_band_is_one_like_others(pair, files, at):
    channel, theirs = pair
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", files(1)))
    if at:
        send(theirs, MESSAGE[:at])
    theirs.sendmsg([MESSAGE[at : at + 1]], [rights], socket.MSG_OOB)
    send(theirs, MESSAGE[at + 1 :])
    message = channel.receive()
    assert (message.header + message.payload, len(message.fds)) == (MESSAGE, 1)
    close_fds(message.fds)


@pytest.mark.parametrize("cut", range(1, len(MESSAGE)))
def test_cut_anywhere_and_closed(pair, files, cut):
    channel, theirs = pair
    send(theirs, MESSAGE[:cut], files(2))
    assert channel.receive() is None
    theirs.close()
    with pytest.raises(Disconnected, match="middle"):
        channel.receive()


def test_closed_between_messages(pair):
    channel, theirs = pair
    send(theirs, MESSAGE)
    theirs.close()
    assert channel.receive().header == MESSAGE[:12]
    with pytest.raises(Disconnected, match=r"the peer closed the socket$"):
        channel.receive()


def test_reset_while_answers_are_unread(pair):
    channel, theirs = pair
    channel.send(MESSAGE)
    theirs.close()
    with pytest.raises(Disconnected):
        channel.receive()
    with pytest.raises(Disconnected):
        channel.send(MESSAGE)


@pytest.mark.parametrize("count", [9, 100, 253])
def test_too_many_fds(pair, files, count):
    channel, theirs = pair
    send(theirs, MESSAGE, files(count))
    with pytest.raises(ProtocolError, match="fds"):
        channel.receive()


@pytest.mark.parametrize("position", [12, 15])
def test_fds_with_the_payload(pair, files, position):
    channel, theirs = pair
    send(theirs, MESSAGE[:position])
    send(theirs, MESSAGE[position:], files(1))
    with pytest.raises(ProtocolError, match="with the header"):
        channel.receive()


@pytest.mark.hostile("fds", "fds on a later byte of the header", "delivered")
@pytest.mark.parametrize("read_between", [False, True])
@pytest.mark.parametrize("position", [1, 11])
def test_fds_on_a_later_byte_of_the_header(pair, files, position, read_between):
    channel, theirs = pair
    (fd,) = files(1)
    send(theirs, MESSAGE[:position])
    if read_between:
        assert channel.receive() is None
    send(theirs, MESSAGE[position:], [fd])
    message = channel.receive()
    assert same_file(fd, message.fds[0])
    close_fds(message.fds)


@pytest.mark.hostile("fds", "nine fds, one by one", "port closes")
def test_too_many_fds_one_by_one(pair, files):
    channel, theirs = pair
    with pytest.raises(ProtocolError, match="at most 8"):  # noqa: PT012
        for byte in MESSAGE[:9]:
            send(theirs, bytes([byte]), files(1))
            assert channel.receive() is None


def test_credentials_are_not_fds(pair):
    channel, theirs = pair
    channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    send(theirs, MESSAGE[:12])
    assert channel.receive() is None
    channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
    send(theirs, MESSAGE[12:])
    assert channel.receive().fds == []


@pytest.mark.parametrize("header", [(1, 0, 0), (1, 1, 4097), (1, 1, 0xFFFFFFFF)])
def test_a_header_is_refused_before_its_payload(pair, files, header):
    channel, theirs = pair
    send(theirs, pack("=III", *header), files(1))
    with pytest.raises(ProtocolError):
        channel.receive()


def test_what_is_left_to_be_closed_is_given_once(pair, files):
    channel, theirs = pair
    sent, fd = files(3), channel.fileno()
    send(theirs, MESSAGE[:5], sent)
    assert channel.receive() is None
    left = channel.hang_up()
    assert (left[0], len(left), theirs.recv(1)) == (fd, 4, b"")
    assert all(same_file(*fds) for fds in zip(sent, left[1:], strict=True))
    assert (channel.hang_up(), channel.fileno()) == ([], -1)
    close_fds(left)


# --- Out ------------------------------------------------------------------------------------------


def fill(channel):
    """Send until the socket takes no more; how much went in all."""
    total = 0
    while not channel.want_write:
        channel.send(bytes(4096))
        total += 4096
    return total


def drain(sock, size):
    while size:
        size -= len(sock.recv(size))


def test_sending_with_fds(pair, files):
    channel, theirs = pair
    sent = files(2)
    channel.send(MESSAGE, sent)
    assert not channel.want_write
    message = Channel(theirs).receive()
    assert all(same_file(*fds) for fds in zip(sent, message.fds, strict=True))
    close_fds(message.fds)


def test_a_full_socket_keeps_the_rest_in_order(pair, files):
    channel, theirs = pair
    theirs.settimeout(5)
    total = fill(channel)
    fd = os.memfd_create("file")
    channel.send(MESSAGE, [fd])
    os.close(fd)  # what waits has an fd of its own
    drain(theirs, total - 4096)
    channel.flush()
    assert not channel.want_write
    drain(theirs, 4096)
    message = Channel(theirs).receive()
    assert message.header + message.payload == MESSAGE
    assert len(message.fds) == 1
    close_fds(message.fds)


def test_a_part_that_fits_is_sent_once(pair):
    channel, theirs = pair
    theirs.settimeout(5)
    channel._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
    data = bytes(range(256)) * 240
    channel.send(data)
    assert channel.want_write
    got = b""
    while len(got) < len(data):
        got += theirs.recv(4096)
        channel.flush()
    assert got == data


def test_a_peer_that_never_reads(pair, files):
    channel, _ = pair
    fill(channel)
    channel.send(MESSAGE, files(1))
    with pytest.raises(ProtocolError, match=f"at most {UNSENT_MAX} bytes"):  # noqa: PT012
        for _ in range(UNSENT_MAX // 4096):
            channel.send(bytes(4096))


# --- Blocking, for front-ends ---------------------------------------------------------------------


def test_blocking_receive(pair):
    channel, theirs = pair
    send(theirs, MESSAGE)
    assert channel.receive_blocking(5).payload == MESSAGE[12:]


@pytest.mark.parametrize("timeout_s", [0, 0.01])
def test_blocking_receive_gives_up(pair, timeout_s):
    channel, _ = pair
    with pytest.raises(TimeoutError):
        channel.receive_blocking(timeout_s)


def test_blocking_receive_wakes_up_for_what_comes(pair):
    channel, theirs = pair
    send(theirs, MESSAGE[:3])
    assert channel.receive() is None
    send(theirs, MESSAGE[3:])
    assert channel.receive_blocking(5).header == MESSAGE[:12]


def test_blocking_send(pair):
    channel, theirs = pair
    channel.send_blocking(MESSAGE, (), 5)
    assert theirs.recv(100) == MESSAGE


def test_blocking_send_gives_up(pair):
    channel, _ = pair
    fill(channel)
    with pytest.raises(TimeoutError):
        channel.send_blocking(MESSAGE, (), 0.01)


def test_blocking_receive_sends_what_waits(pair):
    channel, theirs = pair
    theirs.settimeout(5)
    total = fill(channel)
    drain(theirs, total - 4096)
    send(theirs, MESSAGE[:3])
    with pytest.raises(TimeoutError):
        channel.receive_blocking(0.05)
    assert not channel.want_write
    drain(theirs, 4096)


def test_whether_a_message_is_on_its_way_and_whether_the_peer_is_there(pair):
    channel, theirs = pair
    assert (channel.amid_message, channel.peer_left()) == (False, False)
    send(theirs, MESSAGE[:13])
    assert channel.receive() is None
    assert channel.amid_message
    send(theirs, MESSAGE[13:])
    assert channel.receive() is not None
    theirs.close()
    assert (channel.amid_message, channel.peer_left()) == (False, True)
