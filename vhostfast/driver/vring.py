"""A vring of the guest: its areas in guest memory, its eventfds, and the driver's half of it."""

import os
from dataclasses import dataclass, field
from typing import Self

from vhostfast.core.driver import DriverRing
from vhostfast.driver.memory import GuestMemory
from vhostfast.protocol.message import VringAddr

TABLE_SIZE = 8  # descriptors in the indirect table that each head has of its own
_DESC_SIZE = 16


@dataclass(slots=True)
class Vring:
    """A split ring of `size` entries, allocated in `memory`; the fields ending in _gpa say where.

    `ring` is the driver's half. The eventfds are non-blocking and belong to this object. `base` is
    where the back-end shall go on, or, once stopped, where it said it was (vhost-user
    SET_VRING_BASE).
    """

    memory: GuestMemory
    index: int
    size: int
    event_idx: bool = False
    indirect: bool = False
    base: int = 0
    desc_gpa: int = field(init=False)
    avail_gpa: int = field(init=False)
    used_gpa: int = field(init=False)
    ring: DriverRing = field(init=False)
    kick_fd: int = field(init=False)
    call_fd: int = field(init=False)
    err_fd: int = field(init=False)

    def __post_init__(self) -> None:
        take, view, size = self.memory.take, self.memory.view, self.size
        avail_bytes, used_bytes = 6 + 2 * size, 6 + 8 * size
        tables_bytes = TABLE_SIZE * _DESC_SIZE * size if self.indirect else 0
        self.desc_gpa = take(_DESC_SIZE * size)
        self.avail_gpa = take(avail_bytes)
        self.used_gpa = take(used_bytes)
        tables_gpa = take(tables_bytes)
        self.kick_fd, self.call_fd, self.err_fd = (
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3)
        )
        self.ring = DriverRing(
            view(self.desc_gpa, _DESC_SIZE * size),
            view(self.avail_gpa, avail_bytes),
            view(self.used_gpa, used_bytes),
            size=size,
            event_idx=self.event_idx,
            start_index=self.base,
            kick_fd=self.kick_fd,
            call_fd=self.call_fd,
            tables=view(tables_gpa, tables_bytes),
            tables_gpa=tables_gpa,
        )

    def addresses(self, *, log: bool = False) -> VringAddr:
        """The payload of SET_VRING_ADDR; with `log` the used ring is marked in the log."""
        uva = self.memory.uva
        return VringAddr(
            self.index,
            VringAddr.F_LOG if log else 0,
            uva(self.desc_gpa),
            uva(self.used_gpa),
            uva(self.avail_gpa),
            self.used_gpa,
        )

    def close(self) -> None:
        """Close the eventfds. May be called twice."""
        self.ring.attach(-1, -1)
        for name in ("kick_fd", "call_fd", "err_fd"):
            fd = getattr(self, name)
            if fd >= 0:
                os.close(fd)
                setattr(self, name, -1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
