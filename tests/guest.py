"""The guest of all tests: memory in awkward pieces, and the driver's half of its rings.

    with Guest() as guest:
        vring = guest.vring(size=8, event_idx=True, base=65534)
        head = vring.ring.add([(guest.store(b"…"), 1, False), (guest.blank(64), 64, True)])

What the back-end needs is in `guest.memory` (regions, fds) and `vring` (UVAs by `addresses()`).
Through a socket the same is done by `vhostfast.driver.Frontend(socket, guest.memory)`.
"""

from contextlib import ExitStack
from typing import Self

from vhostfast.driver.memory import GuestMemory
from vhostfast.driver.vring import Vring

# Cut inside of pages and of words, with a hole; the first is too small for most things, so that
# what is allocated soon lies across the cuts.
AWKWARD = ((0x0, 0x1235), (0x1235, 0x2001), (0x3236, 0x7DCA), (0x40000, 0x100_0000))


class Guest:
    """Guest memory of `regions` (gpa, size) and vrings in it; closes what it made."""

    def __init__(
        self,
        regions: tuple[tuple[int, int], ...] = AWKWARD,
        *,
        separate: bool = False,
        sealed: bool = True,
    ) -> None:
        self._stack = ExitStack()
        memory = GuestMemory(regions, separate=separate, sealed=sealed)
        self.memory = self._stack.enter_context(memory)

    def vring(
        self,
        size: int = 256,
        *,
        index: int = 0,
        event_idx: bool = False,
        indirect: bool = True,
        base: int = 0,
    ) -> Vring:
        """A fresh ring; `base` is the free-running index at which it begins."""
        vring = Vring(self.memory, index, size, event_idx, indirect, base)
        return self._stack.enter_context(vring)

    def store(self, data: bytes, align: int = 1) -> int:
        """The GPA of a new buffer that holds `data`."""
        gpa = self.memory.take(len(data), align)
        self.memory.write(gpa, data)
        return gpa

    def blank(self, size: int, align: int = 1, fill: int = 0xA5) -> int:
        """The GPA of a new buffer of `size` bytes, each `fill`."""
        return self.store(bytes([fill]) * size, align)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
