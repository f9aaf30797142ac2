"""A migration log as a front-end sees it: the file, and what it says to begin and end with."""

import os
from typing import Self

from vhostfast.driver import Frontend
from vhostfast.protocol.features import VirtioFeature
from vhostfast.protocol.message import U64, LogBase, Request

SIZE = 4096  # bytes: 128 MiB of guest memory


class LogFile:
    """`size` bytes at `offset` of a memfd of its own."""

    def __init__(self, size: int = SIZE, offset: int = 0) -> None:
        self.size, self.offset = size, offset
        self.fd = os.memfd_create("log")
        os.ftruncate(self.fd, offset + size)

    def base(self, frontend: Frontend) -> None:
        """SET_LOG_BASE; answered when it is so."""
        log = LogBase(self.size, self.offset)
        assert frontend.request(Request.SET_LOG_BASE, log, [self.fd]) == log

    def begin(self, frontend: Frontend) -> None:
        """As QEMU does while rings run: base, features, then the used rings' addresses."""
        self.base(frontend)
        log_all(frontend, True)
        for vring in frontend.rings:
            frontend.request(Request.SET_VRING_ADDR, vring.addresses(log=True), ack=True)

    def bytes(self) -> bytes:
        """All that may be marked."""
        return os.pread(self.fd, self.size, self.offset)

    def pages(self) -> set[int]:
        bits = int.from_bytes(self.bytes(), "little")
        return {page for page in range(8 * self.size) if bits >> page & 1}

    def clear(self) -> None:
        """For when nobody marks: others' bits would be lost."""
        os.pwrite(self.fd, bytes(self.size), self.offset)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def log_all(frontend: Frontend, on: bool) -> None:
    """SET_FEATURES with LOG_ALL or without, acknowledged."""
    bit = VirtioFeature.LOG_ALL if on else VirtioFeature(0)
    frontend.request(Request.SET_FEATURES, U64(frontend.features | bit), ack=True)


def end(frontend: Frontend) -> None:
    """A migration that was cancelled: the rings run on."""
    log_all(frontend, False)
    for vring in frontend.rings:
        frontend.request(Request.SET_VRING_ADDR, vring.addresses(), ack=True)
