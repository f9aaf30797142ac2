"""Files that let wait whoever asks for, or closes, them: what a hostile front-end has to send.

Each is a context manager that gives an fd, and in the end lets all go that wait. Whoever drops the
last reference waits: who gives one away has to drop its own first.
"""

import ctypes
import fcntl
import mmap
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

libc = ctypes.CDLL(None, use_errno=True)
PATIENCE_S = 5.0

# --- FUSE: linux/fuse.h. The server is a process of its own, which ends by itself: who waits for an
# answer of its own process can't even be killed.

LOOKUP, GETATTR, OPEN, RELEASE, FLUSH, INIT = 1, 3, 14, 18, 25, 26
MNT_DETACH = 2
ENOSYS = 38
ROOT, FILE = 1, 2  # inodes
SIZE = 1 << 20
SERVED_S = 60


class Server:
    """A file system of one file, which answers until it gets a SIGUSR1."""

    def __init__(self, folder: str) -> None:
        signal.alarm(SERVED_S)
        signal.signal(signal.SIGUSR1, self._be_silent)
        self._silent = False
        try:
            self._device = os.open("/dev/fuse", os.O_RDWR)
        except OSError as error:
            sys.exit(f"/dev/fuse cannot be opened: {error.strerror}: is the module fuse there?")
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"fuse", folder.encode(), b"fuse", 0, options) != 0:
            sys.exit(f"FUSE cannot be mounted: {os.strerror(ctypes.get_errno())}: run as root")
        print("ready", flush=True)

    def _be_silent(self, *_: object) -> None:
        self._silent = True
        print("silent", flush=True)

    def serve(self) -> None:
        while True:
            message = os.read(self._device, 1 << 17)
            _, request, unique, inode = struct.unpack_from("<IIQQ", message)
            if self._silent:
                continue
            answer, error = self._answer(request, inode)
            head = struct.pack("<IiQ", 16 + len(answer), -error, unique)
            with suppress(FileNotFoundError):  # some want no answer
                os.write(self._device, head + answer)

    def _answer(self, request: int, inode: int) -> tuple[bytes, int]:
        mode = 0o40755 if inode == ROOT else 0o100666
        if request == INIT:
            numbers = (7, 31, 0, 0, 16, 12, 1 << 16, 1, 0, 0, 0, *[0] * 7)
            return struct.pack("<4I2H2I2HI7I", *numbers), 0
        if request == LOOKUP:
            return struct.pack("<4Q2I", FILE, 0, 0, 0, 0, 0) + _attributes(FILE, 0o100666), 0
        if request == GETATTR:
            return struct.pack("<Q2I", 0, 0, 0) + _attributes(inode, mode), 0
        if request == OPEN:
            return struct.pack("<Q2I", 1, 0, 0), 0
        return b"", 0 if request in (FLUSH, RELEASE) else ENOSYS


def _attributes(inode: int, mode: int) -> bytes:
    return struct.pack("<6Q10I", inode, SIZE, SIZE // 512, 0, 0, 0, 0, 0, 0, mode, *[1] + [0] * 5)


@contextmanager
def unanswered() -> Iterator[int]:
    """A file on FUSE whose server answers no more."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, folder]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as server:
            assert server.stdout
            assert server.stderr
            assert server.stdout.readline() == "ready\n", server.stderr.read()
            try:
                fd = os.open(f"{folder}/memory", os.O_RDWR | os.O_CLOEXEC)
                server.send_signal(signal.SIGUSR1)
                assert server.stdout.readline() == "silent\n"
                yield fd
            finally:
                server.kill()
                libc.umount2(folder.encode(), MNT_DETACH)


# --- TCP

LINGER_S = 600


@contextmanager
def lingering() -> Iterator[int]:
    """A connection that is to be closed when its peer has taken all, which it doesn't."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sock.connect(server.getsockname())
        peer, _ = server.accept()
        with peer:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    sock.send(bytes(1 << 16))
            linger = struct.pack("ii", 1, LINGER_S)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            yield sock.detach()


# --- An eventfd: userfaultfd(2)

USERFAULTFD = {"x86_64": 323, "aarch64": 282}
UFFDIO_API, UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00
UFFD_API, MODE_MISSING = 0xAA, 1


@contextmanager
def held() -> Iterator[int]:
    """An eventfd in an epoll whose lock is held."""
    with _held() as (_, fd):
        yield fd


@contextmanager
def held_epoll() -> Iterator[int]:
    """An epoll whose lock is held: whoever asks for its fdinfo waits as well."""
    with _held() as (poll, fd):
        yield os.dup(poll)
    os.close(fd)


@contextmanager
def _held() -> Iterator[tuple[int, int]]:
    """An epoll and an eventfd in it; its lock is held by who is to be told where no page is."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK  # without the second poll() says nothing
    faults = libc.syscall(USERFAULTFD[platform.machine()], flags)
    if faults < 0:
        why = os.strerror(ctypes.get_errno())
        raise AssertionError(f"userfaultfd is refused ({why}): run as root")
    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    fcntl.ioctl(faults, UFFDIO_API, bytearray(struct.pack("3Q", UFFD_API, 0, 0)))
    told = bytearray(struct.pack("4Q", address, mmap.PAGESIZE, MODE_MISSING, 0))
    fcntl.ioctl(faults, UFFDIO_REGISTER, told)
    with select.epoll() as poll:
        fd, other = os.eventfd(0), os.eventfd(1)
        poll.register(fd, select.EPOLLIN)
        poll.register(other, select.EPOLLIN)
        wait = (poll.fileno(), ctypes.c_void_p(address), 1, -1)
        thread = threading.Thread(target=libc.epoll_wait, args=wait)
        thread.start()
        try:
            assert select.select([faults], [], [], PATIENCE_S)[0], "nobody touches the page"
            yield poll.fileno(), fd
        finally:
            os.close(faults)
            thread.join()
            os.close(other)


Waiting = Callable[[], AbstractContextManager[int]]
KINDS: dict[str, Waiting] = {
    "a file on FUSE that isn't answered": unanswered,
    "a socket that lingers": lingering,
    "an eventfd in an epoll that is held": held,
}


def closing_takes(kind: Waiting, at_least_s: float) -> bool:
    """Whether the last close() of it waits, for so long at least."""
    with kind() as fd:
        thread = threading.Thread(target=close, args=(fd,))
        thread.start()
        time.sleep(at_least_s)
        waits = thread.is_alive()
    thread.join()
    return waits


def close(fd: int) -> None:
    with suppress(OSError):  # of a flush that was aborted
        os.close(fd)


if __name__ == "__main__":
    Server(sys.argv[1]).serve()
