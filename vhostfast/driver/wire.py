"""The front-end's end of the socket: blocking, one message at a time, exact reads."""

import os
import socket
import stat
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

from vhostfast.errors import Disconnected, EnvironmentLacks, ProtocolError, UsageError
from vhostfast.protocol.message import (
    EMPTY,
    HEADER_SIZE,
    Payload,
    Request,
    decode_reply,
    encode,
    parse_header,
)

_RETRY_S = 0.005
_PATH_MAX = 107  # sockaddr_un's 108 bytes, less the closing zero


def _is_no_socket(path: str | Path) -> bool:
    """Whether something else is there; a back-end that restarts may take its socket away."""
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return False


def connect(path: str | Path, timeout_s: float) -> socket.socket:
    """Connect to the back-end that listens at `path`, waiting for it to come up.

    Raises UsageError for a path that no socket can have, EnvironmentLacks if nobody serves it in
    time, if it is no socket, or if we may not.
    """
    size = len(os.fsencode(path))
    if not 1 <= size <= _PATH_MAX or str(path) == ".":
        raise UsageError(f"socket '{path}': give a path of 1 to {_PATH_MAX} bytes, it has {size}")
    deadline = time.monotonic() + timeout_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
            return sock
        except (FileNotFoundError, ConnectionRefusedError) as error:
            sock.close()
            if _is_no_socket(path):
                raise EnvironmentLacks(f"{path} is not a socket") from error
            if time.monotonic() > deadline:
                raise EnvironmentLacks(f"nobody serves {path}: start the back-end") from error
        except OSError as error:
            sock.close()
            may = " (it takes the right to write to it: --socket-mode of a switch)"
            why = f"{error.strerror}{may if isinstance(error, PermissionError) else ''}"
            raise EnvironmentLacks(f"cannot connect to {path}: {why}") from error
        time.sleep(_RETRY_S)


def accept(path: str | Path, timeout_s: float) -> socket.socket:
    """Listen at `path` until one back-end has come, then no more.

    Raises EnvironmentLacks if none comes in time.
    """
    path = Path(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        try:
            listener.listen(1)
            listener.settimeout(timeout_s)
            return listener.accept()[0]
        except TimeoutError as error:
            raise EnvironmentLacks(f"no back-end has connected to {path}") from error
        finally:
            path.unlink(missing_ok=True)


class Wire:
    """Requests out, answers in, over `sock`, which it owns. No answer in time: TimeoutError."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        sock.settimeout(timeout_s)
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def send(
        self,
        request: int,
        payload: Payload = EMPTY,
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        """Send a request; the fds stay the caller's. Raises Disconnected."""
        self.send_bytes(encode(request, payload, need_reply=need_reply), fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send anything at all, the fds on its first byte. Raises Disconnected."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        try:
            sent = self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
            if sent < len(data):  # even an empty send fails once the peer has gone
                self._sock.sendall(data[sent:])
        except ConnectionError as error:
            raise Disconnected(f"the back-end has gone: {error}") from error

    def receive(self, request: Request) -> Payload:
        """The answer to `request`. Raises Disconnected, or ProtocolError if it is another's."""
        header = self._read(HEADER_SIZE)
        return decode_reply(request, header, self._read(parse_header(header).size))

    def answered(self, request: Request) -> bytes:
        """An answer on whose size implementations disagree. Raises as `receive`."""
        header = parse_header(self._read(HEADER_SIZE))
        if header.request != request:
            raise ProtocolError(request.name, "answered request", header.request, str(int(request)))
        return self._read(header.size)

    def acknowledged(self, request: Request) -> None:
        """Wait for the acknowledgement. Raises ProtocolError if the request was refused."""
        value = getattr(self.receive(request), "value", None)
        if value != 0:
            raise ProtocolError(request.name, "acknowledgement", value, "0: it was refused")

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self._sock.recv(size - len(data))
            except ConnectionError as error:
                raise Disconnected(f"the back-end has gone: {error}") from error
            if not part:
                raise Disconnected("the back-end closed the socket")
            data += part
        return data
