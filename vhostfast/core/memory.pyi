"""Guest memory and the migration log, mapped from the fds that came with a message."""

from collections.abc import Iterable
from typing import final

import numpy as np
from numpy.typing import NDArray

@final
class GuestMemory:
    """The regions of SET_MEM_TABLE, mapped shared; vhost-user, "Memory region description".

    `regions` holds (gpa, size, uva, mmap_offset, fd) for each, sizes and offsets in bytes; the fds
    may be closed afterwards. Raises ProtocolError for a file that isn't memory, is shorter than
    its region, or can't be mapped.
    """

    def __new__(cls, regions: Iterable[tuple[int, int, int, int, int]]) -> GuestMemory: ...
    @property
    def regions(self) -> tuple[tuple[int, int, int], ...]:
        """(gpa, size, uva) of each, in order of gpa."""

    def view(self, gpa: int, size: int) -> NDArray[np.uint8]:
        """Guest memory itself, shape (size,): the guest sees what is written and may change what
        is read. It keeps the map alive. Raises ValueError unless it lies in one region."""

@final
class Log:
    """The migration log of SET_LOG_BASE: `size` bytes at `offset` of a file; vhost-user,
    "Migration". Raises ProtocolError like GuestMemory."""

    def __new__(cls, fd: int, size: int, offset: int) -> Log: ...
    @property
    def page_count(self) -> int:
        """Pages of 4096 bytes that it covers, from guest address 0."""

    @property
    def beyond(self) -> int:
        """Marks that fell past its end: a bug of ours, each."""
