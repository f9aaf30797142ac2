"""One front-end's connection: receive, decode, apply, reconcile, reply, in this order only.

Nothing is acknowledged before the world is so. Whatever the front-end does wrong ends the
connection with a reason in the log and a count, or is refused where it asked for an answer;
whatever its guest does wrong ends it too. Neither touches another port.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from vhostfast.backend.budget import TURN_MAX_S, Budget
from vhostfast.backend.channel import Channel, RawMessage
from vhostfast.backend.closing import Closer
from vhostfast.backend.reconcile import Dataplane, World
from vhostfast.backend.sharable import identity, readable_name
from vhostfast.errors import Disconnected, ProtocolError
from vhostfast.protocol.features import Offer
from vhostfast.protocol.message import (
    REGIONS_MAX,
    Message,
    OneRegion,
    Region,
    Request,
    VringFile,
    decode,
)
from vhostfast.protocol.session import Session

logger = logging.getLogger("vhostfast")

MESSAGES_AT_ONCE = 64  # or TURN_MAX_S, all that is counted: then another connection has its turn
STALLED_S = 10.0  # from the first part of a message that is seen to its last
LOOK_AGAIN_S = 1.0  # whether a front-end that has to wait is still there
MEMORY_AFTER_S = 2.0  # from the features on; a front-end that can share its memory does so at once
MEMORY_LOOK = 4 << 20  # bytes; no running VM has left all of them zero
LOOK_PIECE = 1 << 16  # bytes at once: they stay in the cache


class Backend(Dataplane, Protocol):
    """What a connection serves: a dataplane that can be told more than rings."""

    @property
    def fault(self) -> str | None:
        """Why the guest's rings were given up, if they were: a sentence."""

    @property
    def event_fd(self) -> int:
        """Readable once there is a fault."""

    @property
    def budget(self) -> Budget:
        """What the port may take of the control plane."""

    def announce(self, mac: bytes) -> None:
        """The guest with this address is behind this port now (SEND_RARP)."""

    def reset(self) -> None:
        """The front-end has left."""


class Connection:
    """Serves the front-end on `sock`, which it owns. Must be made in a running event loop.

    `witness`: hold the kernel's record of written pages against the log of each migration.
    """

    def __init__(
        self, sock: socket.socket, backend: Backend, offer: Offer, *, witness: bool = False
    ) -> None:
        self.backend = backend
        self.session = Session(offer)
        self._channel = Channel(sock)
        self._closer = Closer(backend.name, self._closed)
        self._world = World(backend, witness=witness)
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._look: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._waits: asyncio.TimerHandle | None = None
        self._waited = False

    async def serve(self) -> str:
        """Until the front-end leaves or breaks a rule, and its fds are closed, which may be long
        after; returns the reason, which is logged at once."""
        self._loop.add_reader(self.backend.event_fd, self._faulted)
        self._loop.add_reader(self._channel.fileno(), self._readable)
        self._wait_if_due()
        self.backend.count("connections")
        try:
            reason = await self._ended
            logger.info("%s: disconnected: %s", self.backend.name, reason)
        finally:
            self._close()
        await self._closer.idle()
        return reason

    def _close(self) -> None:
        for timer in (self._look, self._stalled, self._waits):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self.backend.event_fd)
        self._loop.remove_reader(self._channel.fileno())
        self._loop.remove_writer(self._channel.fileno())
        with ExitStack() as stack, self.backend.budget.spending():
            stack.callback(lambda: self._closer.close(self.session.fds() + self._channel.hang_up()))
            stack.callback(self.backend.reset)
            stack.callback(self._world.close)  # the first; each is done, whatever the others raise

    def _end(self, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result(reason)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Whatever leaves the block ends the connection: nobody else would see it."""
        try:
            yield
        except Disconnected as error:
            self._end(str(error))
        except ProtocolError as error:
            self._refused(error)
            self._end(str(error))
        except (OSError, MemoryError) as error:
            self._end(f"this machine lacks something: {str(error) or 'memory'}")
        except Exception as error:  # a bug: for whoever awaits `serve`
            if not self._ended.done():
                self._ended.set_exception(error)

    # --- What wakes us ----------------------------------------------------------------------------

    def _readable(self) -> None:
        with self._ending(), self.backend.budget.spending() as spent_s:
            for _ in range(MESSAGES_AT_ONCE):
                over = self._ended.done() or self._closer.full or spent_s() >= TURN_MAX_S
                raw = None if over else self._channel.receive()
                if raw is None:
                    break
                self._watch_for_stall(False)
                self._handle(raw)
        self._watch_for_stall(self._channel.amid_message)
        self._wait_if_due()

    def _watch_for_stall(self, amid_message: bool) -> None:
        if amid_message and self._stalled is None:
            reason = f"a message is not whole {STALLED_S:.0f} s after it began"
            self._stalled = self._loop.call_later(STALLED_S, self._end, reason)
        elif not amid_message and self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _wait_if_due(self) -> None:
        """Read no more while the port is in debt to the others for what it has had done, or while
        too many of its fds wait to be closed."""
        wait_s = self.backend.budget.wait_s(self._loop.time())
        if self._ended.done() or (wait_s == 0.0 and not self._closer.full):
            return
        self._loop.remove_reader(self._channel.fileno())
        self._watch_for_stall(False)
        look_s = LOOK_AGAIN_S if self._closer.full else min(wait_s, LOOK_AGAIN_S)
        self._waits = self._loop.call_later(look_s, self._waited_for)
        if wait_s > 0.0 and not self._waited:
            self._waited = True
            logger.warning(
                "%s: its messages take more than its share of the control plane: they have to wait",
                self.backend.name,
            )

    def _waited_for(self) -> None:
        self._waits = None
        if self._ended.done():
            return
        if self._channel.peer_left():
            self._end("the peer closed the socket")
        else:
            with self._ending():
                self._loop.add_reader(self._channel.fileno(), self._readable)
            self._wait_if_due()

    def _closed(self) -> None:
        """Some fds have been closed, for which we may have waited."""
        if self._waits is not None:
            self._waits.cancel()
            self._waited_for()

    def _writable(self) -> None:
        with self._ending():
            self._channel.flush()
        if not self._channel.want_write:
            self._loop.remove_writer(self._channel.fileno())

    def _faulted(self) -> None:
        os.eventfd_read(self.backend.event_fd)
        if not self._ended.done() and (fault := self.backend.fault) is not None:
            self.backend.count("faults")
            logger.warning("%s: %s", self.backend.name, fault)
            self._end(fault)

    def _look_at_memory(self) -> None:
        """Nothing fails if a VM keeps its memory to itself: nothing comes, and nobody knows why."""
        regions = self.session.regions[:REGIONS_MAX]  # of 509 a look would take too long
        with self._ending(), self.backend.budget.spending():
            if not any(_is_written(region, fd) for region, fd in regions):
                logger.warning(
                    "%s: the VM's memory is not shared: %s. "
                    "Give QEMU a memory backend with share=on",
                    self.backend.name,
                    "nothing is ever written to its file" if regions else "none has come",
                )

    # --- A message's path -------------------------------------------------------------------------

    def _handle(self, raw: RawMessage) -> None:
        try:
            message = self._record(raw)
        except ProtocolError as error:
            self._refused(error)
            self._answer_no(raw.header, error)
            return
        try:
            self._world.reconcile(self.session, message.vrings)
        except ProtocolError as error:  # the record can't be made true: nothing can follow
            self._answer_no(raw.header, error)
            raise
        self._after(message)

    def _record(self, raw: RawMessage) -> Message:
        """From here on the fds are the session's, or closed."""
        try:
            message = decode(raw.header, raw.payload, raw.fds, self.session)
            _check_kind(message, raw.fds)
            _check_known(message, self.session)
            self.session.apply(message)
        except BaseException:
            self._closer.close(raw.fds)
            raise
        return message

    def _after(self, message: Message) -> None:
        logger.debug("%s: %s %s", self.backend.name, message.request.name, message.payload)
        if message.request is Request.SET_FEATURES and self._look is None:
            self._look = self._loop.call_later(MEMORY_AFTER_S, self._look_at_memory)
        for mac in self.session.rarps:
            self.backend.announce(mac)
        self.session.rarps.clear()
        if (reply := self.session.reply(message)) is not None:
            self._send(reply)
        self._closer.close(self.session.discarded)
        self.session.discarded.clear()

    def _refused(self, error: ProtocolError) -> None:
        self.backend.count("messages_refused")
        logger.warning("%s: refused: %s", self.backend.name, str(error))  # no traceback is kept

    def _answer_no(self, header: bytes, error: ProtocolError) -> None:
        answer = self.session.failure(header)
        if answer is None:
            self._end(str(error))
        else:
            self._send(answer)

    def _send(self, data: bytes) -> None:
        self._channel.send(data)
        if self._channel.want_write:
            self._loop.add_writer(self._channel.fileno(), self._writable)


def _check_kind(message: Message, fds: Sequence[int]) -> None:
    """Kick, call, err and log fds are eventfds: writing to one never blocks nor raises a signal."""
    if not isinstance(message.payload, VringFile) and message.request is not Request.SET_LOG_FD:
        return
    for fd in fds:
        kind = readable_name(fd)
        if kind != "anon_inode:[eventfd]":
            raise ProtocolError(message.request.name, "fd", kind, "an eventfd")
        os.set_blocking(fd, False)


def _check_known(message: Message, session: Session) -> None:
    """A region that is told again comes with the file it came with: else it is another's memory."""
    if isinstance(message.payload, OneRegion):
        known, name = dict(session.regions).get(message.payload.region), message.request.name
        if known is not None and identity(known, name) != identity(message.fds[0], name):
            raise ProtocolError(name, "file", "another", "that of the region that is there")


def _is_written(region: Region, fd: int) -> bool:
    """Pages that a private map took a copy of are in the file too, but all zero."""
    begin, size = region.mmap_offset, min(region.size, MEMORY_LOOK)
    return not all(
        _is_zero(fd, begin + at, min(size - at, LOOK_PIECE)) for at in range(0, size, LOOK_PIECE)
    )


def _is_zero(fd: int, offset: int, size: int) -> bool:
    """What can't be read at once, from a disk or for who writes to the file and holds its lock, may
    be something else."""
    data = bytearray(size)
    try:
        count = os.preadv(fd, [data], offset, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        count = os.preadv(fd, [data], offset)  # tmpfs and the like never wait
    return count == size and data == bytes(size)
