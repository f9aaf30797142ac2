"""Guest memory and the migration log, mapped from the fds that came with a message."""

from collections.abc import Iterable
from typing import final

import numpy as np
from numpy.typing import NDArray

@final
class GuestMemory:
    """The regions of guest memory, mapped shared; vhost-user, "Memory region description".

    `regions` holds (gpa, size, uva, mmap_offset, fd) for each, sizes and offsets in bytes; the fds
    may be closed afterwards. Where one follows another in GPA, and a page of both files ends there,
    the two are mapped side by side and looked up as one region, as a guest's DIMMs are. Raises
    ProtocolError for a file that isn't memory, is shorter than its region, or can't be mapped.
    """

    def __new__(cls, regions: Iterable[tuple[int, int, int, int, int]]) -> GuestMemory: ...
    @property
    def regions(self) -> tuple[tuple[int, int, int], ...]:
        """(gpa, size, uva) of each, as told, in order of gpa."""

    @property
    def maps(self) -> tuple[tuple[int, int, int, int], ...]:
        """(gpa, size, our address, bytes of a page of the map) of each, in order of gpa."""

    def read(self, gpa: int, size: int) -> NDArray[np.uint8]:
        """A private copy, shape (size,). Raises ValueError unless it lies in one region,
        MemoryVanished if the front-end has taken it away."""

    def write(self, gpa: int, data: bytes | bytearray | NDArray[np.uint8]) -> None:
        """Store `data` at `gpa`, which marks nothing: amid a migration that is for Log.mark, after
        it. Raises like `read`; then some of it may be stored."""

@final
class Log:
    """The migration log of SET_LOG_BASE: `size` bytes at `offset` of a file; vhost-user,
    "Migration". `event_fd` is told when bits were set, once a slice (SET_LOG_FD). With `witness` it
    remembers its marks. Raises ProtocolError like GuestMemory."""

    def __new__(
        cls, fd: int, size: int, offset: int, *, event_fd: int = -1, witness: bool = False
    ) -> Log: ...
    @property
    def page_count(self) -> int:
        """Pages of 4096 bytes that it covers, from guest address 0."""

    @property
    def beyond(self) -> int:
        """Marks that fell past its end: a bug of ours, each."""

    @property
    def marked(self) -> NDArray[np.uint8]:
        """Every bit that we have set, as the log has them, shape (page_count / 8,). Raises
        ValueError without `witness`."""

    def mark(self, gpa: int, size: int) -> None:
        """Mark the pages of `size` bytes that have been stored at `gpa`. Raises MemoryVanished if
        the log has."""
