"""Guest memory as a front-end sees it: memfds, told to the back-end region by region.

    GPA   |--region 0--|--region 1--|        |--region 2--|
    file  |-----------run-----------|  page  |----run-----|   adjacent regions are adjacent here too

The guest sees what is adjacent as one piece, wherever it is cut: so a buffer may lie across a cut,
and the back-end, which maps each region on its own, has to cope. The UVAs that we claim are not
the addresses of our own map: a back-end that relied on that would be caught.
"""

import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vhostfast.core.driver import Mapping
from vhostfast.errors import EnvironmentLacks
from vhostfast.protocol.message import LOG_PAGE, MemoryTable, Region

HUGE_PAGE_SIZE = 2 << 20
UVA_OFFSET = 0x7E00_0000_0000  # UVA = GPA + this: plausible, and nowhere near our own map


@dataclass(frozen=True, slots=True)
class _Run:
    """Adjacent regions: bytes from `gpa`, one piece for the guest; and the pages they lie in."""

    gpa: int
    data: NDArray[np.uint8]
    pages: NDArray[np.uint8]

    def holds(self, gpa: int, size: int) -> bool:
        return self.gpa <= gpa and gpa + size <= self.gpa + len(self.data)


class GuestMemory:
    """Memory of a guest: `regions` of (gpa, size) in bytes, cut anywhere, none overlapping.

    One memfd holds them all, as QEMU's does; with `separate` each region has its own, and then
    nothing is one piece across a cut. `hugepages` takes 2 MiB pages. `uva_offset` is added to a
    GPA to make the UVA that the back-end is told; 0 does as DPDK's virtio-user. With `apart`
    whatever is taken has its pages to itself and begins so many bytes into the first of them, so
    that a page tells who wrote it. The files are `sealed`, as QEMU's memfds are: nobody, and so no
    back-end, can cut them short.

    `regions` (Region payloads), `fds` (one a region, this object's) and `table` are what
    SET_MEM_TABLE tells (vhost-user "Memory regions description"). Views keep the map alive, so
    close() closes the fds alone. Raises EnvironmentLacks if there are too few hugepages.
    """

    def __init__(
        self,
        regions: Sequence[tuple[int, int]] = ((0, 64 << 20),),
        *,
        hugepages: bool = False,
        uva_offset: int = UVA_OFFSET,
        separate: bool = False,
        apart: int | None = None,
        sealed: bool = True,
    ) -> None:
        self._apart = apart
        self._hugepages = hugepages
        self._sealed = sealed
        self._runs: list[_Run] = []
        self._files: list[int] = []
        self.regions: tuple[Region, ...] = ()
        self.fds: list[int] = []
        regions = sorted(regions)
        for part in [[region] for region in regions] if separate else [regions]:
            self._back(part, uva_offset)
        self._position = self._runs[0].gpa

    def _back(self, regions: Sequence[tuple[int, int]], uva_offset: int) -> None:
        """A memfd for `regions`, and its map."""
        page = HUGE_PAGE_SIZE if self._hugepages else mmap.PAGESIZE
        places = list(_places(regions, page))
        size = -(-(places[-1] + regions[-1][1]) // page) * page
        fd, data = self._open(size)
        for (gpa, region_size), place in zip(regions, places, strict=True):
            self.regions += (Region(gpa, region_size, gpa + uva_offset, place),)
            self.fds.append(fd)
            last = self._runs[-1] if self._runs else None
            end = place + region_size
            if last and last.gpa + len(last.data) == gpa and fd == self.fds[-2]:
                place -= len(last.data)
                gpa = self._runs.pop().gpa
            first = place - place % LOG_PAGE
            whole = data[first : -(-end // LOG_PAGE) * LOG_PAGE].reshape(-1, LOG_PAGE)
            self._runs.append(_Run(gpa, data[place:end], whole))

    def _open(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        flags |= os.MFD_HUGETLB | os.MFD_HUGE_2MB if self._hugepages else 0
        fd = os.memfd_create("guest-memory", flags)
        self._files.append(fd)
        os.ftruncate(fd, size)
        if self._sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        try:
            # Populated, so that no first touch falls into somebody's measurement.
            mapping = Mapping(fd, size, populate=self._hugepages)
        except OSError as error:
            self.close()
            if not self._hugepages:
                raise
            raise EnvironmentLacks(
                f"{size >> 20} MiB in 2 MiB hugepages: {error.strerror}; as root: "
                f"echo {2 * size // HUGE_PAGE_SIZE} > /proc/sys/vm/nr_hugepages"
            ) from error
        return fd, mapping.array()

    # --- What the front-end tells ---

    @property
    def table(self) -> MemoryTable:
        """The payload of SET_MEM_TABLE; raises ProtocolError with more than 8 regions."""
        return MemoryTable(self.regions)

    def uva(self, gpa: int) -> int:
        """The address in the front-end, as claimed. Raises ValueError outside of memory."""
        for region in self.regions:
            if region.gpa <= gpa < region.gpa + region.size:
                return region.uva + gpa - region.gpa
        raise ValueError(f"GPA {gpa:#x} is not in guest memory")

    # --- What the guest does ---

    def view(self, gpa: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes at `gpa`, writable, shape (size,), across cuts. Raises ValueError."""
        for run in self._runs:
            if run.holds(gpa, size):
                return run.data[gpa - run.gpa : gpa - run.gpa + size]
        raise ValueError(f"{size} bytes at GPA {gpa:#x} are not in one piece of guest memory")

    def write(self, gpa: int, data: bytes) -> None:
        """Store `data` at `gpa`. Raises ValueError outside of memory."""
        self.view(gpa, len(data))[:] = np.frombuffer(data, np.uint8)

    def read(self, gpa: int, size: int) -> bytes:
        """A copy of `size` bytes at `gpa`. Raises ValueError outside of memory."""
        return self.view(gpa, size).tobytes()

    def pages(self) -> list[tuple[int, NDArray[np.uint8]]]:
        """All of memory as whole pages: (number of the first, bytes of shape (n, 4096)) for each
        piece. Where a piece ends within a page, the rest of that page is nobody's."""
        return [(run.gpa // LOG_PAGE, run.pages) for run in self._runs]

    def take(self, size: int, align: int = 64) -> int:
        """The GPA of `size` bytes that nobody has taken yet. Raises ValueError if there are none.

        Nothing is given back singly: remember `position` and set it again.
        """
        into = 0
        if self._apart is not None:
            align, into = mmap.PAGESIZE, self._apart
        for run in self._runs:
            gpa = -(-max(run.gpa, self._position) // align) * align + into
            if run.holds(gpa, size):
                self._position = gpa + size
                return gpa
        raise ValueError(f"no {size} bytes left in guest memory")

    @property
    def position(self) -> int:
        """The GPA up to which memory is taken; set it to an earlier value to give back."""
        return self._position

    @position.setter
    def position(self, gpa: int) -> None:
        self._position = gpa

    # --- Life ---

    def close(self) -> None:
        """Close the memfds; views stay good. May be called twice."""
        while self._files:
            os.close(self._files.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _places(regions: Sequence[tuple[int, int]], page: int) -> Iterator[int]:
    """Each region's offset in its file: behind its neighbour, or at a page, aligned as its GPA."""
    offset, end = 0, -1
    for gpa, size in regions:
        if gpa != end:
            offset = -(-offset // page) * page + gpa % page
        yield offset
        offset, end = offset + size, gpa + size
