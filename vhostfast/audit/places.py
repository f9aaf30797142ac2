"""What lies where in an audited guest's memory, and what of it a back-end may write.

Each area has its pages to itself (`GuestMemory(apart=…)`), so a page is the back-end's or not.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vhostfast.driver.traffic import Pool
from vhostfast.driver.vring import Vring
from vhostfast.protocol.message import LOG_PAGE

Span = tuple[int, int]  # GPA, bytes

_ELEMENT_SIZE = 8
_ELEMENTS = 4  # before them: flags, idx


def pages_of(gpa: int, size: int) -> range:
    """The numbers of the pages that hold [gpa, gpa + size)."""
    return range(gpa // LOG_PAGE, (gpa + size - 1) // LOG_PAGE + 1) if size else range(0)


def used_spans(vring: Vring, before: int, after: int) -> Iterator[Span]:
    """What a back-end stores when used.idx goes from `before` to `after`: elements and idx."""
    count = min((after - before) % 65536, vring.size)
    for number in range(count):
        yield vring.used_gpa + _ELEMENTS + (before + number) % vring.size * _ELEMENT_SIZE, 8
    if count:
        yield vring.used_gpa + 2, 2


@dataclass(frozen=True, slots=True)
class _Area:
    gpa: int
    size: int
    name: str
    writable: bool  # by the back-end
    vring: Vring | None = None  # of a used ring
    pool: Pool | None = None


class Places:
    """The areas of `vrings` and of `pools`; buffers have a header of `header_size` bytes."""

    def __init__(self, vrings: Iterable[Vring], pools: Iterable[Pool], header_size: int) -> None:
        self._header_size = header_size
        self._areas = [area for vring in vrings for area in _ring_areas(vring)]
        for pool in pools:
            receives = pool.vring.index % 2 == 0
            name = f"{'receive' if receives else 'transmit'} buffer of vring {pool.vring.index}"
            self._areas.append(_Area(pool.gpa, pool.size, name, receives, pool=pool))

    def writable(self) -> NDArray[np.int64]:
        """The pages that a back-end may write: used rings, and buffers to receive into."""
        areas = [area for area in self._areas if area.writable]
        return np.unique(np.concatenate([pages_of(area.gpa, area.size) for area in areas]))

    def name(self, gpa: int) -> str:
        """What lies at `gpa`, for people."""
        for area in self._areas:
            if area.gpa <= gpa < area.gpa + area.size:
                return area.name + self._part(area, gpa - area.gpa)
        return "nothing of the rings'"

    def name_page(self, page: int) -> str:
        """What lies in a page: the area that it belongs to."""
        start = page * LOG_PAGE
        for area in self._areas:
            if area.gpa < start + LOG_PAGE and start < area.gpa + area.size:
                return area.name
        return "nothing of the rings'"

    def _part(self, area: _Area, offset: int) -> str:
        if area.pool is not None:
            slot, within = divmod(offset, area.pool.stride)
            return f", number {slot}, {'header' if within < self._header_size else 'frame'}"
        if area.vring is None:
            return ""
        if offset < _ELEMENTS:
            return ", flags" if offset < 2 else ", idx"
        element = (offset - _ELEMENTS) // _ELEMENT_SIZE
        return f", element {element}" if element < area.vring.size else ", avail_event"


def _ring_areas(vring: Vring) -> Iterator[_Area]:
    index, size = vring.index, vring.size
    yield _Area(vring.desc_gpa, 16 * size, f"descriptors of vring {index}", False)
    yield _Area(vring.avail_gpa, 6 + 2 * size, f"avail ring of vring {index}", False)
    yield _Area(vring.used_gpa, 6 + 8 * size, f"used ring of vring {index}", True, vring)
