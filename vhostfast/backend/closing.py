"""Closing what a peer has sent, without waiting for it.

close() of a file may ask whoever is behind it, and wait for ever: a FUSE server for its flush, a
TCP connection with SO_LINGER for its peer; even an eventfd, when it is the last reference to it,
for the lock of an epoll of the peer's, who holds it while a page of its own doesn't come. The same
happens in close() of a socket in whose queue such fds lie. So no peer's fd, and no socket of a
peer's, is closed by the thread that serves all: each connection has a thread for it when there is
something to close, one at most. While more than WAITING_MAX fds wait for it nothing more is read.
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import groupby

logger = logging.getLogger("vhostfast")

WAITING_MAX = 8  # switch/share.py counts on it
LATE_S = 1.0  # to close takes less, unless whoever is behind a file doesn't answer
NO_THREAD_S = 1.0  # then it is tried again


def close_fds(fds: Iterable[int]) -> None:
    """Wait for each, as long as it takes. What a flush says of a file is not our business."""
    for _, run in groupby(enumerate(sorted(fds)), lambda pair: pair[1] - pair[0]):
        numbers = [fd for _, fd in run]
        os.closerange(numbers[0], numbers[-1] + 1)  # for all of them, without the GIL


def aside(work: Callable[[], None]) -> None:
    """Do it in a thread that the process doesn't wait for at its end. Raises RuntimeError or
    MemoryError if there is none to be had."""
    threading.Thread(target=work, name="vhostfast-closing", daemon=True).start()


def hang_up(sock: socket.socket) -> list[int]:
    """End a connection, which the peer sees at once; its fd, if it has one yet, is to be closed."""
    if sock.fileno() < 0:
        return []
    sock.shutdown(socket.SHUT_RDWR)
    return [sock.detach()]


class Closer:
    """Of one connection, or of those that a port turns away. For use in a running event loop.

    `closed` is called whenever all has been closed.
    """

    def __init__(self, name: str, closed: Callable[[], None] = lambda: None) -> None:
        self._name = name
        self._closed = closed
        self._lock = threading.Lock()  # of the next three, which the thread changes as well
        self._waiting: list[int] = []
        self._in_hand = 0
        self._running = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._late: asyncio.TimerHandle | None = None
        self._told = False

    @property
    def full(self) -> bool:
        return len(self._waiting) + self._in_hand > WAITING_MAX

    async def idle(self) -> None:
        """Wait until all is closed."""
        await self._idle.wait()

    def close(self, fds: Iterable[int]) -> None:
        """From here on they are ours. Never waits."""
        with self._lock:
            self._waiting += fds
            begins = bool(self._waiting) and not self._running
            self._running |= begins
        if begins:
            self._idle.clear()
            self._begin()

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            aside(lambda: self._run(loop))
        except (RuntimeError, MemoryError):  # there is no thread to be had
            loop.call_later(NO_THREAD_S, self._begin)
        self._watch()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while fds := self._take():
            close_fds(fds)
        with suppress(RuntimeError):  # the loop has ended: nobody waits for us
            loop.call_soon_threadsafe(self._done)

    def _take(self) -> list[int]:
        with self._lock:
            fds, self._waiting = self._waiting, []
            self._in_hand = len(fds)
            self._running = bool(fds)
        return fds

    def _done(self) -> None:
        self._watch()
        if not self._running:
            self._idle.set()
            self._closed()

    def _watch(self) -> None:
        """Whether the thread is late, from now on."""
        if self._late is not None:
            self._late.cancel()
        loop = asyncio.get_running_loop()
        self._late = loop.call_later(LATE_S, self._tell) if self._running else None

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            logger.warning(
                "%s: whoever is behind a file that it sent doesn't let us close it:"
                " the port may have to wait for that",
                self._name,
            )
