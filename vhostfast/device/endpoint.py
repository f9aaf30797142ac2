"""A vhost-user port's socket: who listens, who connects, and what happens when the peer leaves.

A server's socket file is guarded by a lock file beside it (PATH.lock), held while the switch
lives. The lock decides between two switches that start at once; connect() decides whether a
socket that some other program left behind is still listened on. Only a dead one is replaced.

    lock PATH.lock -> probe PATH -> unlink if dead -> bind under a umask -> chown -> listen

Nobody can connect before listen(), so mode and group hold from the first moment.

What a connection does is not known here: `serve` is called with each connected socket, owns it,
and returns the reason why it ended. One front-end at a time; its successor is accepted when it
leaves. Whoever is turned away is told nothing, and `refused` is called.

Who a peer is the kernel says (SO_PEERCRED): the process that connected or, where we connect, that
listens, and the user that it was then.
"""

import asyncio
import contextlib
import errno
import fcntl
import functools
import logging
import os
import select
import socket
import stat
import struct
from collections.abc import Awaitable, Callable

from vhostfast.backend.closing import Closer, aside, close_fds, hang_up
from vhostfast.errors import EnvironmentLacks

log = logging.getLogger("vhostfast")

Serve = Callable[[socket.socket], Awaitable[str]]
Refused = Callable[[], None]

BACKLOG = 16  # those beyond the first are accepted only to be refused
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 2.0
REFUSED_AT_ONCE = 16  # then there is a pause: who tries again at once gets no more of us than that
REFUSED_PAUSE_S = 0.05
ACCEPT_PAUSE_S = 0.5  # after a failed accept(), such as for lack of file descriptors


class Listener:
    """A server's socket, from its lock to the last front-end. Close it, or use it by `with`.

    Of `uids` alone a front-end is taken; None: of any that the socket's mode lets in. Raises
    EnvironmentLacks, with what to do about it, if the socket can't be made at `path`.
    """

    def __init__(
        self,
        name: str,
        path: str,
        mode: int = 0o600,
        group: int | None = None,
        uids: frozenset[int] | None = None,
    ) -> None:
        self.name = name
        self.path = path
        self._uids = uids
        with contextlib.ExitStack() as undo:
            self._lock = _take_lock(path)
            undo.callback(os.close, self._lock)
            undo.callback(_unlink, path + ".lock")
            _remove_dead(path)
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(_stop_listening, self._sock)
            self._file = _bind(self._sock, path, mode, group)
            undo.callback(self._unlink_own)
            self._sock.listen(BACKLOG)
            self._sock.setblocking(False)
            self._undo = undo.pop_all()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the socket and its lock. More than once is harmless."""
        self._undo.close()

    def _unlink_own(self) -> None:
        """Someone may have put another file there: that one is not ours to remove."""
        with contextlib.suppress(FileNotFoundError):
            if _file_id(self.path) == self._file:
                os.unlink(self.path)

    async def run(self, serve: Serve, refused: Refused = lambda: None) -> None:
        """Serve one front-end after the other until cancelled."""
        current: asyncio.Task[None] | None = None
        sock: socket.socket | None = None
        peer: socket.socket | None = None
        refusals, closer = 0, Closer(self.name)
        log.info("%s: listening on %s", self.name, self.path)
        try:
            while True:
                sock = await self._accept()
                why = _unwelcome(sock, self._uids)
                if current and peer and not current.done() and not _left(peer):
                    why = why or "a front-end is connected"
                if why:
                    await _refuse(self.name, sock, why, refused, closer)
                    refusals += 1
                    if refusals % REFUSED_AT_ONCE == 0:
                        await asyncio.sleep(REFUSED_PAUSE_S)
                    continue
                if current:
                    await asyncio.wait([current])  # its rings must be down before the next
                peer = sock
                current = asyncio.create_task(_serve_one(self.name, sock, serve, closer))
        finally:
            if current:
                current.cancel()
                await asyncio.wait([current])
            if sock:  # it may not have been served yet
                closer.close(hang_up(sock))

    async def _accept(self) -> socket.socket:
        """Not by loop.sock_accept(): cancelled, it may drop a connection, which is then closed."""
        while True:
            try:
                await _readable(self._sock)
                sock, _ = self._sock.accept()
                sock.setblocking(False)
                return sock
            except BlockingIOError:  # who came has gone
                continue
            except OSError as error:
                log.error("%s: cannot accept on %s: %s", self.name, self.path, error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE_S)


class Connector:
    """A client's side: connects to a socket that the front-end listens on, for ever; of `uids` as
    Listener."""

    def __init__(self, name: str, path: str, uids: frozenset[int] | None = None) -> None:
        self.name = name
        self.path = path
        self._uids = uids

    def __enter__(self) -> "Connector":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing: there is no file of ours."""

    async def run(self, serve: Serve, refused: Refused = lambda: None) -> None:
        """Connect, serve, and connect again until cancelled.

        Attempts are 0.1 s apart at first, then twice as long each, 2 s at most. A connection
        that held for longer than that starts the count anew; one that ends at once doesn't.
        """
        clock = asyncio.get_running_loop().time
        delay, told, closer = RETRY_FIRST_S, 0, Closer(self.name)
        while True:
            try:
                sock, error = _connect(self.path)
            except OSError as failed:  # no file descriptor is left: there may be one later
                sock, error = None, failed.errno or 0
            if sock is not None and (why := _unwelcome(sock, self._uids)):
                await _refuse(self.name, sock, why, refused, closer)
            elif sock is not None:
                began, told = clock(), 0
                await _serve_one(self.name, sock, serve, closer)
                if clock() - began > RETRY_MAX_S:
                    delay = RETRY_FIRST_S
            elif error != told:  # once a cause, not once an attempt
                told = error
                log.info("%s: waiting for %s: %s", self.name, self.path, os.strerror(error))
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX_S)


async def _serve_one(name: str, sock: socket.socket, serve: Serve, closer: Closer) -> None:
    """One connection, to its end; what escapes from it is a bug, and costs only this port."""
    log.info("%s: %s connected", name, _who(sock))
    try:
        await serve(sock)
    except Exception:
        log.exception("%s: connection closed by a bug in vhostfast", name)
    finally:
        closer.close(hang_up(sock))


def _connect(path: str) -> tuple[socket.socket | None, int]:
    """A connected socket, or None and why not. Never blocks.

    A unix socket connects at once or fails: EAGAIN says that the queue of the listener is full,
    not that the connection is under way, so asyncio's sock_connect() would misread it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    error = sock.connect_ex(path)
    if error == 0:
        return sock, 0
    sock.close()
    return None, error


async def _readable(sock: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)


def _left(peer: socket.socket) -> bool:
    """Whether a connection is over, though the task that serves it may not have seen it yet."""
    if peer.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(peer, select.POLLRDHUP)
    return bool(poll.poll(0))


def _credentials(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the peer."""
    layout = struct.Struct("iII")
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size)
    pid, uid, _ = layout.unpack(data)
    return pid, uid


def _who(sock: socket.socket) -> str:
    """The peer as the kernel knows it, such as 'pid 123 (uid 0)'."""
    pid, uid = _credentials(sock)
    return f"pid {pid} (uid {uid})"


def _unwelcome(sock: socket.socket, uids: frozenset[int] | None) -> str | None:
    """Why the peer is not to be served, if so."""
    if uids is None or _credentials(sock)[1] in uids:
        return None
    return f"of users only {', '.join(str(uid) for uid in sorted(uids))} may (--allow-uid)"


async def _refuse(
    name: str, sock: socket.socket, why: str, refused: Refused, closer: Closer
) -> None:
    """The peer is told at once; the next one has to wait until what it has sent is closed."""
    log.warning("%s: refused %s: %s", name, _who(sock), why)
    closer.close(hang_up(sock))
    refused()
    await closer.idle()


def _stop_listening(sock: socket.socket) -> None:
    """Whoever waits to be accepted may have sent fds, which would be closed with the socket."""
    sock.shutdown(socket.SHUT_RDWR)
    try:
        waiting = [sock.accept()[0].detach()]
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EINVAL):  # nobody does
            sock.close()
            return
        waiting = []
    left = [*waiting, sock.detach()]
    # Where no thread is to be had the process's end closes them.
    with contextlib.suppress(RuntimeError, MemoryError):
        aside(functools.partial(close_fds, left))


def _take_lock(path: str) -> int:
    """The fd of PATH.lock, locked and holding our pid. Raises EnvironmentLacks."""
    while True:
        try:
            fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _no_socket(path, error) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(fd, 16).decode(errors="replace").strip() or "?"
            os.close(fd)
            raise EnvironmentLacks(
                f"socket {path} belongs to another vhostfast process (pid {owner}):"
                " stop that one or choose another path"
            ) from None
        # The last owner may have removed the file between our open() and flock().
        with contextlib.suppress(FileNotFoundError):
            if _file_id(path + ".lock") == _identity(os.fstat(fd)):
                os.truncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                return fd
        os.close(fd)


def _remove_dead(path: str) -> None:
    """Remove a socket file that nobody listens on; raise EnvironmentLacks for anything else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise EnvironmentLacks(
                f"{path} exists and is not a socket: remove it or choose another path"
            )
    except FileNotFoundError:
        return
    sock, error = _connect(path)
    if error == errno.ECONNREFUSED:
        _unlink(path)
        return
    if error == errno.EACCES:
        raise _no_socket(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    owner = "another process"
    if sock is not None:
        owner = _who(sock)
        sock.close()
    raise EnvironmentLacks(
        f"socket {path} is in use by {owner}: stop that process or choose another path"
    )


def _bind(sock: socket.socket, path: str, mode: int, group: int | None) -> tuple[int, int]:
    """Create the socket's file with its mode and group; give its identity."""
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    except OSError as error:
        raise _no_socket(path, error) from None
    finally:
        os.umask(before)
    if group is not None:
        try:
            os.chown(path, -1, group)
        except PermissionError:
            _unlink(path)
            raise EnvironmentLacks(
                f"socket {path} cannot be given to group {group}:"
                " be a member of it, be root, or leave --socket-group out"
            ) from None
    return _file_id(path)


def _no_socket(path: str, error: OSError) -> EnvironmentLacks:
    folder = os.path.dirname(path) or "."
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return EnvironmentLacks(
            f"socket {path}: there is no folder {folder}: create it or choose another path"
        )
    if isinstance(error, PermissionError):
        return EnvironmentLacks(
            f"socket {path}: no permission for {error.filename or folder}:"
            " choose another path or run as a user who may write there"
        )
    return EnvironmentLacks(f"socket {path} cannot be made: {error.strerror}")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _file_id(path: str) -> tuple[int, int]:
    return _identity(os.lstat(path))


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
