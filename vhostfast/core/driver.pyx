# cython: boundscheck=False, wraparound=False
"""The guest's side of split rings; its words and its packets are in csrc/driver.

DriverRing owns the private half of a ring (free list, indices) and borrows its three areas, which
lie in guest memory. Mapping owns a map of a file; take_words empties a migration log.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from posix.mman cimport MAP_FAILED, MAP_POPULATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

import os
import select

import numpy as np

from vhostfast.errors import ProtocolError

cdef extern from "driver/dirty.h" nogil:
    void dirty_take(uint64_t *word, uint64_t *taken, size_t count)

DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])
ELEMENT = np.dtype([("id", "<u4"), ("len", "<u4")])
RING_SIZE_MAX = VRING_SIZE_MAX


@cython.final
cdef class Mapping:
    """A shared map of a file's first `size` bytes; unmapped when the last array of it is gone."""

    cdef void *_address
    cdef size_t _size

    def __cinit__(self, int fd, size_t size, *, bint populate=False):
        self._address = MAP_FAILED
        flags = MAP_SHARED | MAP_POPULATE if populate else MAP_SHARED
        self._address = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0)
        if self._address == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self._size = size

    def __dealloc__(self):
        if self._address != MAP_FAILED:
            munmap(self._address, self._size)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._address, <Py_ssize_t>self._size, False, flags)

    def array(self):
        return np.frombuffer(self, np.uint8)


def take_words(uint64_t[::1] words not None):
    cdef uint64_t[::1] taken = np.empty(words.shape[0], np.uint64)
    if words.shape[0]:
        with nogil:
            dirty_take(&words[0], &taken[0], <size_t>words.shape[0])
    return np.asarray(taken)


@cython.final
cdef class DriverRing:
    """The driver's half of one split ring."""

    def __cinit__(
        self,
        uint8_t[::1] desc,
        uint8_t[::1] avail,
        uint8_t[::1] used,
        *,
        uint32_t size,
        bint event_idx=False,
        uint16_t start_index=0,
        int kick_fd=-1,
        int call_fd=-1,
        uint8_t[::1] tables=None,
        uint64_t tables_gpa=0,
    ):
        if not 1 <= size <= VRING_SIZE_MAX or size & (size - 1):
            raise ValueError(f"size is {size}, must be a power of two up to {VRING_SIZE_MAX}")
        _require_area("desc", desc, <Py_ssize_t>(size * sizeof(vring_desc)), 16)
        _require_area("avail", avail, <Py_ssize_t>driver_avail_bytes(size, event_idx), 2)
        _require_area("used", used, <Py_ssize_t>driver_used_bytes(size, event_idx), 4)
        self._areas = (desc, avail, used, tables)
        self._ring.desc = <vring_desc *>&desc[0]
        self._ring.avail = <vring_avail *>&avail[0]
        self._ring.used = <vring_used *>&used[0]
        self._ring.size = size
        self._ring.event_idx = event_idx
        self._ring.kick_fd = kick_fd
        self._ring.call_fd = call_fd
        self._ring.next = <uint16_t *>calloc(size, sizeof(uint16_t))
        self._ring.count = <uint16_t *>calloc(size, sizeof(uint16_t))
        if self._ring.next == NULL or self._ring.count == NULL:
            raise MemoryError
        if tables is not None and tables.shape[0]:
            self._tables = <vring_desc *>&tables[0]
            self._tables_gpa = tables_gpa
            self._table_size = <uint32_t>(tables.shape[0] // <Py_ssize_t>sizeof(vring_desc) // size)
        driver_reset(&self._ring, start_index)

    def __dealloc__(self):
        free(self._ring.next)
        free(self._ring.count)

    # --- What it is and where it stands ---

    @property
    def size(self):
        return self._ring.size

    @property
    def event_idx(self):
        return self._ring.event_idx

    @property
    def kick_fd(self):
        return self._ring.kick_fd

    @property
    def call_fd(self):
        return self._ring.call_fd

    @property
    def free_count(self):
        return self._ring.free_count

    @property
    def avail_index(self):
        return self._ring.avail_next

    @property
    def used_index(self):
        return self._ring.used_next

    @property
    def kicks(self):
        return self._ring.kicks

    @property
    def calls(self):
        return self._ring.calls

    @property
    def desc(self):
        return np.asarray(self._areas[0])[: self.size * DESC.itemsize].view(DESC)

    @property
    def avail(self):
        return _words(self._areas[1], "<u2", self.size, ["used_event"] * self.event_idx)

    @property
    def used(self):
        return _words(self._areas[2], ELEMENT, self.size, ["avail_event"] * self.event_idx)

    def reset(self, uint16_t start_index=0):
        driver_reset(&self._ring, start_index)

    def attach(self, int kick_fd, int call_fd):
        self._ring.kick_fd = kick_fd
        self._ring.call_fd = call_fd

    # --- Offering ---

    def add(self, chain, *, bint indirect=False, bint publish=True):
        cdef uint32_t needed = 1 if indirect else <uint32_t>len(chain)
        if not len(chain):
            raise ValueError("a chain has at least one buffer")
        if needed > self._ring.free_count:
            raise ValueError(f"{needed} descriptors needed, {self._ring.free_count} free")
        if indirect and len(chain) > self._table_size:
            raise ValueError(f"{len(chain)} buffers; an indirect table has {self._table_size}")
        cdef uint16_t head = driver_link(&self._ring, needed)
        if indirect:
            self._fill_table(head, chain)
        else:
            self._fill_chain(head, chain)
        driver_offer(&self._ring, head)
        if publish:
            driver_publish(&self._ring)
        return head

    cdef void _fill_chain(self, uint16_t head, chain):
        cdef uint16_t index = head
        cdef vring_desc *desc = NULL
        for gpa, size, writable in chain:
            desc = &self._ring.desc[index]
            desc.addr = gpa
            desc.len = size
            desc.flags = VRING_DESC_NEXT | (VRING_DESC_WRITE if writable else 0)
            index = self._ring.next[index]
            desc.next = index
        desc.flags &= ~VRING_DESC_NEXT
        desc.next = 0

    cdef void _fill_table(self, uint16_t head, chain):
        cdef uint32_t first = head * self._table_size
        cdef vring_desc *desc = NULL
        cdef uint16_t step = 0
        for gpa, size, writable in chain:
            desc = &self._tables[first + step]
            step += 1
            desc.addr = gpa
            desc.len = size
            desc.flags = VRING_DESC_NEXT | (VRING_DESC_WRITE if writable else 0)
            desc.next = step
        desc.flags &= ~VRING_DESC_NEXT
        desc.next = 0
        desc = &self._ring.desc[head]
        desc.addr = self._tables_gpa + first * sizeof(vring_desc)
        desc.len = <uint32_t>(step * sizeof(vring_desc))
        desc.flags = VRING_DESC_INDIRECT
        desc.next = 0

    def publish(self):
        driver_publish(&self._ring)

    def kick_wanted(self):
        return driver_kick_wanted(&self._ring)

    def kick(self, *, bint force=False):
        cdef bint wanted = driver_kick_wanted(&self._ring) or force
        if wanted:
            driver_signal(&self._ring)
        return wanted

    # --- Taking back ---

    def take(self):
        cdef vring_used_element element
        cdef int got = driver_take(&self._ring, &element)
        if got == DRIVER_BROKEN:
            self.check()
        return (element.id, element.len) if got == DRIVER_GOT else None

    def take_all(self):
        taken = []
        while (element := self.take()) is not None:
            taken.append(element)
        return taken

    def check(self):
        if self._ring.fault == DRIVER_FAULT_USED_INDEX:
            limit = f"{self._ring.used_next} to {self._ring.avail_told}"
            raise ProtocolError("used ring", "idx", self._ring.used.idx, limit)
        if self._ring.fault:
            limit = "the head of a chain on offer"
            raise ProtocolError("used ring", "id", self._ring.bad_id, limit)

    def want_calls(self, bint wanted=True):
        return driver_want_calls(&self._ring, wanted)

    def wait_call(self, double timeout_s):
        if not select.select([self._ring.call_fd], [], [], timeout_s)[0]:
            return False
        os.eventfd_read(self._ring.call_fd)
        self._ring.calls += 1
        return True


cdef void _require_area(str name, uint8_t[::1] area, Py_ssize_t size, size_t align) except *:
    if area.shape[0] < size:
        raise ValueError(f"{name} has {area.shape[0]} bytes, needs {size}")
    if <size_t>&area[0] % align:
        raise ValueError(f"{name} must be aligned to {align} bytes")


cdef object _words(area, entry, size, event):
    """A used or avail area as one numpy record that writes through."""
    fields = [("flags", "<u2"), ("idx", "<u2"), ("ring", entry, (size,))]
    dtype = np.dtype(fields + [(name, "<u2") for name in event])
    return np.asarray(area)[: dtype.itemsize].view(dtype)[0]
