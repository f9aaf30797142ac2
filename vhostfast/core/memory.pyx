"""Guest memory and the migration log, mapped from the fds that came with a message.

A map is MAP_SHARED and never reaches beyond the file as it is now. Objects here own their maps;
the fds stay the caller's and may be closed at once.
"""

cimport cython
from libc.stdlib cimport calloc, free
from libc.errno cimport errno
from libc.string cimport memcpy, memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE,
    PROT_READ, PROT_WRITE, mmap, munmap,
)

import os
import stat

import numpy as np

from vhostfast.errors import MemoryVanished, ProtocolError


cdef extern from "region.h" nogil:
    size_t sizeof_region_table "sizeof(struct region_table)"

cdef extern from "guard.h" nogil:
    struct guard:
        bint (*holds)(const void *owner, const uint8_t *address) noexcept
        const void *owner

    void guard_install()
    bint bell_install()
    bint guard_run(guard *guard, void (*body)(void *) noexcept, void *argument)

cdef extern from "linux/magic.h" nogil:
    long HUGETLBFS_MAGIC

cdef extern from "sys/vfs.h" nogil:
    struct statfs:
        long f_type
    int fstatfs(int fd, statfs *result)

cdef struct marking:
    marker marker
    uint64_t gpa
    uint64_t size


cdef bint table_holds(const void *table, const uint8_t *address) noexcept nogil:
    return region_table_holds(<const region_table *>table, address)


cdef bint one_log_holds(const void *log_, const uint8_t *address) noexcept nogil:
    return log_holds(<const log *>log_, address)


cdef void copy_body(void *argument) noexcept nogil:
    cdef copying *it = <copying *>argument
    memcpy(it.to, it.source, it.size)


cdef void mark_body(void *argument) noexcept nogil:
    cdef marking *it = <marking *>argument
    log_mark(&it.marker, it.gpa, it.size)
    log_flush(&it.marker, False)


bell_install()


cdef mapping look_at(int fd, uint64_t offset, uint64_t size, str what):
    """How [offset, offset + size) of a file would be mapped: from the page that holds `offset`. To
    look may wait for who serves the file: of a peer's, backend/sharable.py looks first."""
    cdef mapping result
    cdef statfs of_file
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ProtocolError(what, "fd", f"a {stat.filemode(status.st_mode)[0]!r} file",
                            "a regular file or memfd: memory that can be shared (share=on)")
    if fstatfs(fd, &of_file) < 0:
        raise ProtocolError(what, "fd", os.strerror(errno), "on a file system that can be asked")
    if offset > <uint64_t>status.st_size or size > status.st_size - offset:
        raise ProtocolError(what, "its end in the file", offset + size,
                            f"at most the file's size, {status.st_size}")
    cdef uint64_t file_size = status.st_size
    cdef uint64_t page = max(status.st_blksize, 4096)  # a hugetlb file's block is its page
    result.page = page if of_file.f_type == HUGETLBFS_MAGIC else 4096
    result.first = offset // page * page
    result.size = min((offset + size - result.first + page - 1) // page * page,
                      file_size - result.first)
    result.device, result.inode = status.st_dev, status.st_ino
    result.address = result.start = NULL
    return result


cdef int map_file(mapping *it, int fd, uint64_t offset, str what, uint8_t *start) except -1:
    """Map what was looked at; where `start` isn't NULL, with the byte at `offset` there."""
    cdef void *address = NULL if start == NULL else start - (offset - it.first)
    cdef int flags = MAP_SHARED | (0 if start == NULL else MAP_FIXED)
    it.address = mmap(address, it.size, PROT_READ | PROT_WRITE, flags, fd, it.first)
    if it.address == MAP_FAILED:
        raise ProtocolError(what, "mmap", os.strerror(errno), "possible, for reading and writing")
    it.start = <uint8_t *>it.address + (offset - it.first)
    return 0


cdef uint8_t *reserve(size_t size, size_t page) except NULL:
    """Addresses for `size` bytes, whole pages, from a whole page on, of which none is memory."""
    cdef void *address = mmap(NULL, size + page, PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if address == MAP_FAILED:
        raise ProtocolError("guest memory", "mmap", os.strerror(errno), "possible: so many bytes")
    cdef size_t before = (page - <size_t>address % page) % page
    if before:
        munmap(address, before)
    munmap(<uint8_t *>address + before + size, page - before)
    return <uint8_t *>address + before


@cython.final
cdef class GuestMemory:
    def __cinit__(self, regions):
        guard_install()
        regions = sorted(regions)
        if len(regions) > REGION_COUNT_MAX:
            raise ProtocolError("memory", "number of regions", len(regions),
                                f"at most {REGION_COUNT_MAX}")
        self.told = <region_table *>calloc(1, sizeof_region_table)
        self.table = <region_table *>calloc(1, sizeof_region_table)
        self.maps = <mapping *>calloc(max(len(regions), 1), sizeof(mapping))
        self.areas = <area *>calloc(max(len(regions), 1), sizeof(area))
        if self.told == NULL or self.table == NULL or self.maps == NULL or self.areas == NULL:
            raise MemoryError
        for i, (gpa, size, uva, offset, fd) in enumerate(regions):
            self.maps[i] = look_at(fd, offset, size, "guest memory")
            self.told.region[i] = region(gpa, size, uva, NULL)
        self.told.count = len(regions)
        cdef uint32_t begin = 0, end
        while begin < self.told.count:
            end = begin + 1
            while end < self.told.count and self.adjoin(end - 1, end, regions):
                end += 1
            self.map_run(begin, end, regions)
            begin = end
        region_table_index(self.table)

    cdef bint adjoin(self, uint32_t a, uint32_t b, list regions):
        """Whether b follows a for the guest, and can for us: at the end of a page in both files, or
        wherever it is cut if one file goes on."""
        (gpa, size, _, offset, _), (next_gpa, _, _, next_offset, _) = regions[a], regions[b]
        cdef mapping *one = &self.maps[a]
        cdef mapping *other = &self.maps[b]
        at_page = (offset + size) % one.page == 0 and next_offset % one.page == 0
        goes_on = (one.device == other.device and one.inode == other.inode
                   and offset + size == next_offset)
        return gpa + size == next_gpa and one.page == other.page and (at_page or goes_on)

    cdef int map_run(self, uint32_t begin, uint32_t end, list regions) except -1:
        """Regions that adjoin lie so for us too, and are one in the table. A page that is cut is
        mapped for both, at one address: the second map takes the place of the first's."""
        cdef region *run = &self.table.region[self.table.count]
        cdef area *area = &self.areas[self.table.count]
        cdef uint64_t before, page = self.maps[begin].page
        cdef uint8_t *start = NULL
        run.gpa, _, run.uva, offset, _ = regions[begin]
        run.size = regions[end - 1][0] + regions[end - 1][1] - run.gpa
        self.table.count += 1
        if run.size >> 63:  # rounded up to pages it may be 0
            raise ProtocolError("guest memory", "bytes side by side", hex(run.size), "below 2^63")
        if end - begin > 1:
            before = offset % page
            area.size = (before + run.size + page - 1) // page * page
            area.address = reserve(area.size, page)
            start = <uint8_t *>area.address + before
        for i in range(begin, end):
            gpa, _, _, offset, fd = regions[i]
            map_file(&self.maps[i], fd, offset, "guest memory",
                     NULL if start == NULL else start + (<uint64_t>gpa - run.gpa))
            self.told.region[i].host = self.maps[i].start
        run.host = self.maps[begin].start
        if start == NULL:
            area.address, area.size = self.maps[begin].address, self.maps[begin].size
        return 0

    def __dealloc__(self):
        if self.areas != NULL and self.table != NULL:
            for i in range(self.table.count):
                if self.areas[i].address != NULL:
                    munmap(self.areas[i].address, self.areas[i].size)
        free(self.areas)
        free(self.maps)
        free(self.table)
        free(self.told)

    @property
    def regions(self):
        return tuple(
            (self.told.region[i].gpa, self.told.region[i].size, self.told.region[i].uva)
            for i in range(self.told.count)
        )

    @property
    def maps(self):
        return tuple(
            (self.told.region[i].gpa, self.told.region[i].size, <size_t>self.maps[i].start,
             self.maps[i].page)
            for i in range(self.told.count)
        )

    cdef uint8_t *find(self, uint64_t gpa, uint64_t size) except NULL:
        cdef uint64_t reach = 0
        cdef uint32_t last = 0
        cdef uint8_t *host = region_at(self.table, &last, gpa, &reach)
        if host == NULL or size > reach:
            raise ValueError(f"no {size} bytes of guest memory in one region at {gpa:#x}")
        return host

    cdef int copy(self, copying it) except -1:
        cdef guard guard
        guard.holds = table_holds
        guard.owner = self.table
        if not guard_run(&guard, copy_body, &it):
            raise MemoryVanished("guest memory", "a page", "gone",
                                 "there for as long as it is shared")
        return 0

    def read(self, uint64_t gpa, uint64_t size):
        cdef uint8_t *host = self.find(gpa, size)
        result = np.empty(size, np.uint8)
        cdef uint8_t[::1] to = result
        if size:
            self.copy(copying(&to[0], host, size))
        return result

    def write(self, uint64_t gpa, const uint8_t[::1] data not None):
        cdef uint8_t *host = self.find(gpa, data.shape[0])
        if data.shape[0]:
            self.copy(copying(host, &data[0], data.shape[0]))


class _View:
    """What numpy asks for; the array holds it, and it holds the map."""

    def __init__(self, owner, address, size):
        self.owner = owner
        self.__array_interface__ = {
            "version": 3, "typestr": "|u1", "shape": (size,), "data": (address, False),
        }


@cython.final
cdef class Log:
    def __cinit__(self, int fd, uint64_t size, uint64_t offset, *, int event_fd=-1,
                  bint witness=False):
        guard_install()
        self.map = look_at(fd, offset, size, "SET_LOG_BASE")
        map_file(&self.map, fd, offset, "SET_LOG_BASE", NULL)
        self.c.word = <uint64_t *>self.map.start
        self.c.page_count = size * 8
        self.c.event_fd = event_fd
        if witness:
            self.c.marked = <uint64_t *>calloc((size + 7) // 8, 8)
            if self.c.marked == NULL:
                raise MemoryError

    def __dealloc__(self):
        free(self.c.marked)
        if self.map.start != NULL:
            munmap(self.map.address, self.map.size)

    @property
    def page_count(self):
        return self.c.page_count

    @property
    def beyond(self):
        return self.c.beyond

    @property
    def marked(self):
        if self.c.marked == NULL:
            raise ValueError("a log without a witness doesn't remember its marks")
        return np.asarray(_View(self, <size_t>self.c.marked, self.c.page_count // 8))

    def mark(self, uint64_t gpa, uint64_t size):
        cdef guard guard
        cdef marking it
        memset(&it, 0, sizeof(it))
        it.marker.log = &self.c
        it.gpa = gpa
        it.size = size
        guard.holds = one_log_holds
        guard.owner = &self.c
        if not guard_run(&guard, mark_body, &it):
            raise MemoryVanished("migration log", "a page", "gone", "there until it is replaced")
        log_tell(&self.c)
