from collections.abc import Sequence
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

DESC: np.dtype[np.void]
ELEMENT: np.dtype[np.void]
RING_SIZE_MAX: int

@final
class Mapping:
    """A shared map of a file's first `size` bytes. Unmapped when it and its arrays are collected.

    `populate` takes the pages now rather than at the first touch. Raises OSError.
    """

    def __new__(cls, fd: int, size: int, *, populate: bool = False) -> Self: ...
    def array(self) -> NDArray[np.uint8]:
        """The mapped bytes, writable, shape (size,)."""

def take_words(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What stood in `words`, shape (n,), each exchanged with zero in one step, without the GIL."""

@final
class DriverRing:
    """The driver's half of one split ring of `size` entries (virtio 1.3, 2.7).

    `desc`, `avail`, `used` are its areas in guest memory, bytes of shape (n,), n at least 16 size,
    6 + 2 size and 6 + 8 size (two less without EVENT_IDX). They are blanked, and both indices begin
    at `start_index`. `tables`, at GPA `tables_gpa`, has room for the indirect tables: size of it /
    16 / size descriptors each. The eventfds are borrowed; -1 for none. Raises ValueError for areas
    that are too small or not aligned. One thread at a time.
    """

    def __new__(
        cls,
        desc: NDArray[np.uint8],
        avail: NDArray[np.uint8],
        used: NDArray[np.uint8],
        *,
        size: int,
        event_idx: bool = False,
        start_index: int = 0,
        kick_fd: int = -1,
        call_fd: int = -1,
        tables: NDArray[np.uint8] | None = None,
        tables_gpa: int = 0,
    ) -> Self: ...
    @property
    def size(self) -> int:
        """Entries."""
    @property
    def event_idx(self) -> bool:
        """Whether VIRTIO_F_EVENT_IDX is in use."""
    @property
    def kick_fd(self) -> int:
        """The eventfd that tells the back-end, or -1."""
    @property
    def call_fd(self) -> int:
        """The eventfd by which the back-end tells us, or -1."""
    @property
    def free_count(self) -> int:
        """Free descriptors."""
    @property
    def avail_index(self) -> int:
        """The free-running index of the next entry to offer, modulo 65536."""
    @property
    def used_index(self) -> int:
        """The free-running index of the next used element to take, modulo 65536."""
    @property
    def kicks(self) -> int:
        """Signals sent so far."""
    @property
    def calls(self) -> int:
        """Signals received so far, by `wait_call` or a traffic loop that waits."""
    @property
    def desc(self) -> NDArray[np.void]:
        """The raw descriptors, writable: records of addr, len, flags, next; shape (size,)."""
    @property
    def avail(self) -> np.void:
        """The raw avail area: a record of flags, idx, ring and, with EVENT_IDX, used_event."""
    @property
    def used(self) -> np.void:
        """The raw used area: a record of flags, idx, ring of (id, len), avail_event."""
    def reset(self, start_index: int = 0) -> None:
        """Forget all chains, blank the areas, begin at `start_index`."""
    def attach(self, kick_fd: int, call_fd: int) -> None:
        """Borrow other eventfds; -1 for none."""
    def add(
        self,
        chain: Sequence[tuple[int, int, bool]],
        *,
        indirect: bool = False,
        publish: bool = True,
    ) -> int:
        """Offer a chain of buffers (gpa, bytes, device-writable); its head, by which it comes back.

        Nothing is checked but that there is room, so that a test may break any rule. Raises
        ValueError without room in the ring, or for the buffers in an indirect table.
        """
    def publish(self) -> None:
        """Make visible what was added with `publish=False`: stores avail.idx."""
    def kick_wanted(self) -> bool:
        """Whether the back-end wants a kick for what was published since the last test (2.7.10)."""
    def kick(self, *, force: bool = False) -> bool:
        """Signal the back-end if it wants that, or anyway; whether it was signalled."""
    def take(self) -> tuple[int, int] | None:
        """The next used chain, (head, bytes written), or None.

        Raises ProtocolError for a used.idx ahead of what was offered, or an id not on offer.
        """
    def take_all(self) -> list[tuple[int, int]]:
        """All used chains, in the order of their return. Raises as `take`."""
    def check(self) -> None:
        """Raise ProtocolError if the back-end has broken the rules of the used ring."""
    def want_calls(self, wanted: bool = True) -> bool:
        """Ask for a call at the next used chain, or for none (2.7.7).

        True if something is used already: for that no call may come.
        """
    def wait_call(self, timeout_s: float) -> bool:
        """Wait for the call eventfd and clear it; False when the time is up."""
