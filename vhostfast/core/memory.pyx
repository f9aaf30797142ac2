"""Guest memory and the migration log, mapped from the fds that came with a message.

A map is MAP_SHARED and never reaches beyond the file as it is now. Objects here own their maps;
the fds stay the caller's and may be closed at once.
"""

cimport cython
from libc.stdlib cimport calloc, free
from libc.errno cimport errno
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

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
    long BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, HUGETLBFS_MAGIC, RAMFS_MAGIC, TMPFS_MAGIC
    long XFS_SUPER_MAGIC

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


cdef bint never_waits(long kind) noexcept:
    """Others, such as FUSE, may let a worker that touches a page wait for ever, and all with it."""
    return (kind == TMPFS_MAGIC or kind == HUGETLBFS_MAGIC or kind == RAMFS_MAGIC
            or kind == EXT4_SUPER_MAGIC or kind == XFS_SUPER_MAGIC or kind == BTRFS_SUPER_MAGIC)


cdef mapping map_file(int fd, uint64_t offset, uint64_t size, str what):
    """Map [offset, offset + size) of a file; the map begins at the page that holds `offset`."""
    cdef mapping result
    cdef statfs of_file
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ProtocolError(what, "fd", f"a {stat.filemode(status.st_mode)[0]!r} file",
                            "a regular file or memfd: memory that can be shared (share=on)")
    if fstatfs(fd, &of_file) < 0 or not never_waits(of_file.f_type):
        raise ProtocolError(what, "fd", f"on a file system of type {of_file.f_type:#x}",
                            "a memfd or on tmpfs, hugetlbfs, ext4, xfs or btrfs")
    if offset > <uint64_t>status.st_size or size > status.st_size - offset:
        raise ProtocolError(what, "its end in the file", offset + size,
                            f"at most the file's size, {status.st_size}")
    cdef uint64_t file_size = status.st_size
    cdef uint64_t page = max(status.st_blksize, 4096)  # a hugetlb file's block is its page
    result.page = page if of_file.f_type == HUGETLBFS_MAGIC else 4096
    cdef uint64_t first = offset // page * page
    result.size = min((offset + size - first + page - 1) // page * page, file_size - first)
    result.address = mmap(NULL, result.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, first)
    if result.address == MAP_FAILED:
        raise ProtocolError(what, "mmap", os.strerror(errno), "possible, for reading and writing")
    result.start = <uint8_t *>result.address + (offset - first)
    return result


@cython.final
cdef class GuestMemory:
    def __cinit__(self, regions):
        cdef region *entry
        cdef mapping one
        guard_install()
        regions = sorted(regions)
        if len(regions) > REGION_COUNT_MAX:
            raise ProtocolError("memory", "number of regions", len(regions),
                                f"at most {REGION_COUNT_MAX}")
        self.table = <region_table *>calloc(1, sizeof_region_table)
        self.maps = <mapping *>calloc(max(len(regions), 1), sizeof(mapping))
        if self.table == NULL or self.maps == NULL:
            raise MemoryError
        for gpa, size, uva, offset, fd in regions:
            one = map_file(fd, offset, size, "guest memory")
            self.maps[self.map_count] = one
            entry = &self.table.region[self.map_count]
            entry.gpa = gpa
            entry.size = size
            entry.uva = uva
            entry.host = one.start
            self.map_count += 1
            self.table.count = self.map_count
        region_table_index(self.table)

    def __dealloc__(self):
        if self.maps != NULL:
            for i in range(self.map_count):
                munmap(self.maps[i].address, self.maps[i].size)
        free(self.maps)
        free(self.table)

    @property
    def regions(self):
        return tuple(
            (self.table.region[i].gpa, self.table.region[i].size, self.table.region[i].uva)
            for i in range(self.table.count)
        )

    @property
    def maps(self):
        return tuple(
            (self.table.region[i].gpa, self.table.region[i].size, <size_t>self.maps[i].start,
             self.maps[i].page)
            for i in range(self.map_count)
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
        self.map = map_file(fd, offset, size, "SET_LOG_BASE")
        self.c.word = <uint64_t *>self.map.start
        self.c.page_count = size * 8
        self.c.event_fd = event_fd
        if witness:
            self.c.marked = <uint64_t *>calloc((size + 7) // 8, 8)
            if self.c.marked == NULL:
                raise MemoryError

    def __dealloc__(self):
        free(self.c.marked)
        if self.map.size != 0:
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
