"""What the kernel saw written through maps of this process: Linux's record, not ours.

userfaultfd write-protection in asynchronous mode notes each page that is written through a
registered map, also with the bytes that it had; PAGEMAP_SCAN reads that record and begins it anew
in one step (both Linux 6.7, include/uapi/linux/userfaultfd.h and fs.h). Writes of others, through
maps of their own, are not in it. A page here is the map's: 4 KiB of a memfd, 2 MiB of hugepages.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress

import numpy as np

from vhostfast.errors import EnvironmentLacks

SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY = 1  # needs no privilege; what is recorded is never handed to anyone
_API = struct.Struct("=QQQ")  # api, features, ioctls
_API_VERSION = 0xAA
_WP_SHARED, _WP_UNPOPULATED, _WP_ASYNC = 1 << 12, 1 << 13, 1 << 15
_RANGE = struct.Struct("=QQ")  # start, bytes
_REGISTER = struct.Struct("=QQQQ")  # start, bytes, mode, ioctls
_REGISTER_WP = 2
_WRITEPROTECT = struct.Struct("=QQQ")  # start, bytes, mode
_WRITEPROTECT_ON = 1
# size, flags, start, end, walk_end, vec, vec_len, max_pages, category: inverted, all, any, return
_SCAN = struct.Struct("=12Q")
_SCAN_WALK_END = 4 * 8
_SCAN_REARM, _SCAN_CHECK = 1, 2
_PAGE_IS_WRITTEN = 2
_FOUND = 1024  # ranges that one scan gives at most


def _ioctl_number(direction: int, kind: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | kind << 8 | number


_UFFDIO_API = _ioctl_number(3, 0xAA, 0x3F, _API.size)
_UFFDIO_REGISTER = _ioctl_number(3, 0xAA, 0x00, _REGISTER.size)
_UFFDIO_UNREGISTER = _ioctl_number(2, 0xAA, 0x01, _RANGE.size)
_UFFDIO_WRITEPROTECT = _ioctl_number(3, 0xAA, 0x06, _WRITEPROTECT.size)
_PAGEMAP_SCAN = _ioctl_number(3, ord("f"), 16, _SCAN.size)


class Witness:
    """The record of `maps`, (address, bytes) of whole pages, from the moment this is made.

    The maps must stay mapped until `close`. Raises EnvironmentLacks, with what to do, where the
    kernel keeps no such record or forbids it.
    """

    def __init__(self, maps: Iterable[tuple[int, int]]) -> None:
        self.maps = list(maps)
        self._fd = _userfaultfd()
        self._pagemap = -1
        try:
            self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            for address, size in self.maps:
                register = _REGISTER.pack(address, size, _REGISTER_WP, 0)
                fcntl.ioctl(self._fd, _UFFDIO_REGISTER, bytearray(register))
                protect = _WRITEPROTECT.pack(address, size, _WRITEPROTECT_ON)
                fcntl.ioctl(self._fd, _UFFDIO_WRITEPROTECT, bytearray(protect))
        except OSError as error:
            self.close()
            raise EnvironmentLacks(f"no record of written pages: {error.strerror}") from error

    def written(self) -> list[tuple[int, int]]:
        """(address, bytes) of what was written since this was made or last asked; whole pages, in
        order. Asking begins the record anew: a later write is in the next answer."""
        return [found for address, size in self.maps for found in self._scan(address, size)]

    def _scan(self, start: int, size: int) -> Sequence[tuple[int, int]]:
        ranges = np.empty((_FOUND, 3), np.uint64)  # start, end, categories
        found: list[tuple[int, int]] = []
        end = start + size
        while start < end:
            argument = bytearray(
                _SCAN.pack(
                    _SCAN.size, _SCAN_REARM | _SCAN_CHECK, start, end, 0, ranges.ctypes.data,
                    _FOUND, 0, 0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN,
                )
            )  # fmt: skip
            count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, argument)
            found += [(int(at), int(to - at)) for at, to, _ in ranges[:count]]
            (start,) = struct.unpack_from("=Q", argument, _SCAN_WALK_END)
        return found

    def close(self) -> None:
        """Let go of the maps. May be called twice."""
        while self._fd >= 0:
            for address, size in self.maps:
                with suppress(OSError):  # it may not have been registered yet
                    fcntl.ioctl(self._fd, _UFFDIO_UNREGISTER, _RANGE.pack(address, size))
            os.close(self._fd)
            if self._pagemap >= 0:
                os.close(self._pagemap)
            self._fd = -1


def _userfaultfd() -> int:
    """A userfaultfd that records. Raises EnvironmentLacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = SYS_USERFAULTFD.get(os.uname().machine, -1)
    fd = int(libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY))
    if fd < 0:
        raise _lacks(ctypes.get_errno())
    features = _WP_SHARED | _WP_UNPOPULATED | _WP_ASYNC
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(_API.pack(_API_VERSION, features, 0)))
    except OSError as error:
        os.close(fd)
        raise _lacks(error.errno or 0) from None
    return fd


def _lacks(code: int) -> EnvironmentLacks:
    if code in (errno.EPERM, errno.EACCES):
        return EnvironmentLacks(
            "the kernel's record of written pages is forbidden here: allow the system call"
            " userfaultfd (a container's seccomp profile often does not)"
        )
    if code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return EnvironmentLacks(f"no record of written pages: {os.strerror(code)}")
    return EnvironmentLacks(
        f"Linux {os.uname().release} keeps no record of written pages"
        f" ({os.strerror(code)}): it takes 6.7 or newer, built with userfaultfd"
    )
