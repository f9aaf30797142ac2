"""A unix stream socket that carries whole messages with their fds, for either side.

fds ride on the first byte of a header, so a header is read alone (12 bytes, never more: a longer
read could swallow the next message's fds). More than a message may have, or fds with the payload,
end the connection. Where in the header they came can't be told, for the kernel may join two parts,
and doesn't matter.

fds for which we had no room the kernel would close, in our own call, and that may wait for whoever
is behind a file. So the queue is looked at before it is read: that gives us the fds that come next,
which may be a later message's; then it is read without room for fds, and MSG_CTRUNC says that it
was theirs that were read: what the kernel closes then is not the last reference. A byte out of band
is received in line, for else it would be thrown away unseen, and its fds with it.

An fd has one owner: here the channel, while its message is incomplete; then the RawMessage.
"""

import os
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from vhostfast.backend.closing import close_fds, hang_up
from vhostfast.errors import Disconnected, ProtocolError
from vhostfast.protocol.message import FDS_MAX, HEADER_SIZE, parse_header

UNSENT_MAX = 65536  # bytes of answers that a peer may leave unread, over 3,000 of them
LOOK_SIZE = 512  # bytes; more than most messages have
_FDS_SPACE = socket.CMSG_SPACE(FDS_MAX * array("i").itemsize)


@dataclass(slots=True)
class RawMessage:
    """A whole message as it came; the fds belong to whoever holds it."""

    header: bytes
    payload: bytes
    fds: list[int]


class Channel:
    """Whole messages over `sock`, which the channel owns and makes non-blocking.

    A connection waits for `fileno()` and calls `receive` when it is readable, `flush` when it is
    writable and `want_write` is true. Raises Disconnected when the peer is gone, ProtocolError
    for what no message may be; after either only `hang_up` is of use.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._sock = sock
        self._data = bytearray()  # of the message that is on its way, header and payload
        self._fds: list[int] = []
        self._ahead: list[int] = []  # those that come next, with bytes that are still in the queue
        self._seen = 0  # bytes there that come with these fds or none
        self._size = HEADER_SIZE  # how long it is, as far as known
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def amid_message(self) -> bool:
        """Whether a part of a message has been received, and not all of it."""
        return bool(self._data)

    def peer_left(self) -> bool:
        """Whether the peer has closed, though there may be messages of it still."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def hang_up(self) -> list[int]:
        """End the connection. What is left to be closed: the socket, and every fd that has not been
        handed on."""
        fds = hang_up(self._sock) + self._fds + self._ahead
        self._fds, self._ahead = [], []
        while self._unsent:
            fds += self._unsent.popleft()[1]
        return fds

    # --- In ---------------------------------------------------------------------------------------

    def receive(self) -> RawMessage | None:
        """The next whole message, or None if it is not all here yet. Never blocks.

        Raises Disconnected, or ProtocolError for a wrong version, a size over the limit (before
        the payload is read), more than 8 fds, or fds that come with the payload.
        """
        while len(self._data) < self._size:
            if not self._read():
                return None
            if len(self._data) == HEADER_SIZE:
                self._size += parse_header(bytes(self._data)).size
        message = RawMessage(
            bytes(self._data[:HEADER_SIZE]), bytes(self._data[HEADER_SIZE:]), self._fds
        )
        self._data, self._fds, self._size = bytearray(), [], HEADER_SIZE
        return message

    def receive_blocking(self, timeout_s: float) -> RawMessage:
        """The next message, sending what is unsent meanwhile. Raises TimeoutError as well."""
        deadline = time.monotonic() + timeout_s
        while (message := self.receive()) is None:
            self._wait(deadline, select.POLLIN)
        return message

    def _read(self) -> bool:
        """Whatever has come of the message on its way; False if nothing has."""
        try:
            if not self._ahead and not self._seen:
                self._look_ahead()
            size = self._size - len(self._data)
            data, _, flags, _ = self._sock.recvmsg(size if self._ahead else min(size, self._seen))
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise Disconnected(str(error)) from error
        self._seen = max(self._seen - len(data), 0)
        if flags & socket.MSG_CTRUNC:  # to these bytes belong the fds that we hold
            self._fds += self._ahead
            self._ahead = []
            if len(self._data) >= HEADER_SIZE or len(self._fds) > FDS_MAX:
                raise _too_many_fds()
        if not data:
            where = " in the middle of a message" if self._data else ""
            raise Disconnected(f"the peer closed the socket{where}")
        self._data += data
        return True

    def _look_ahead(self) -> None:
        """Hold the fds that come next, and know of how many bytes that they have no others."""
        data, ancillary, flags, _ = self._sock.recvmsg(
            LOOK_SIZE, _FDS_SPACE, socket.MSG_CMSG_CLOEXEC | socket.MSG_PEEK
        )
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._ahead.extend(array("i", content))
        if flags & socket.MSG_CTRUNC:
            raise _too_many_fds()
        self._seen = len(data)

    # --- Out --------------------------------------------------------------------------------------

    @property
    def want_write(self) -> bool:
        """Whether something waits for the socket to become writable."""
        return bool(self._unsent)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send, or keep what the socket does not take. The fds stay the caller's.

        Never blocks. Raises Disconnected, or ProtocolError if the peer leaves too much unread.
        """
        waiting = len(data) + sum(len(rest) for rest, _ in self._unsent)
        if waiting > UNSENT_MAX:
            limit = f"at most {UNSENT_MAX} bytes"
            raise ProtocolError("channel", "answers left unread", waiting, limit)
        self._unsent.append((memoryview(data), [os.dup(fd) for fd in fds]))
        self.flush()

    def send_blocking(self, data: bytes, fds: Sequence[int], timeout_s: float) -> None:
        """Send all of it. Raises TimeoutError as well."""
        deadline = time.monotonic() + timeout_s
        self.send(data, fds)
        while self.want_write:
            self._wait(deadline, 0)

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it. Raises Disconnected."""
        while self._unsent:
            data, fds = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
            try:
                sent = self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise Disconnected(str(error)) from error
            close_fds(fds)
            if sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = (data[sent:], [])

    def _wait(self, deadline: float, events: int) -> None:
        """Until one of `events`, or until something unsent has gone. Raises TimeoutError."""
        poll = select.poll()
        poll.register(self._sock, events | (select.POLLOUT if self.want_write else 0))
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(left_s * 1000):
            raise TimeoutError("the peer does not answer")
        self.flush()


def _too_many_fds() -> ProtocolError:
    limit = f"at most {FDS_MAX} with the header"
    return ProtocolError("channel", "number of fds", "too large", limit)
