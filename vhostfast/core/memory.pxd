from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "region.h" nogil:
    enum:
        REGION_COUNT_MAX
        LOG_PAGE_SHIFT

    struct region:
        uint64_t gpa
        uint64_t size
        uint64_t uva
        uint8_t *host

    struct region_table:
        uint32_t count
        region region[0]

    void region_table_index(region_table *table)
    bint region_table_holds(const region_table *table, const uint8_t *host)
    const region *region_of_uva(const region_table *table, uint64_t uva, uint64_t size)
    uint8_t *region_at(const region_table *table, uint32_t *last, uint64_t gpa, uint64_t *reach)


cdef extern from "log.h" nogil:
    struct log:
        uint64_t *word
        uint64_t page_count
        uint64_t beyond
        uint64_t *marked
        int event_fd

    struct marker:
        log *log

    void log_turn(marker *marker, log *log)
    bint log_holds(const log *log, const uint8_t *host)
    void log_mark(marker *marker, uint64_t gpa, uint64_t size)
    void log_flush(marker *marker, bint fenced)
    void log_tell(log *log)


cdef struct copying:
    uint8_t *to
    const uint8_t *source
    size_t size


cdef struct mapping:
    uint64_t first  # of the file: a whole page's
    void *address  # where that is
    size_t size
    uint64_t page  # bytes of a page of the map
    uint64_t device  # of the file
    uint64_t inode
    uint8_t *start  # the byte that was asked for; NULL: it isn't mapped


cdef struct area:
    void *address
    size_t size


cdef class GuestMemory:
    cdef region_table *told  # as they were told
    cdef region_table *table  # as they are looked up: those that adjoin are one
    cdef mapping *maps  # of each that was told
    cdef area *areas  # of each that is looked up
    cdef bint adjoin(self, uint32_t a, uint32_t b, list regions)
    cdef int map_run(self, uint32_t begin, uint32_t end, list regions) except -1
    cdef uint8_t *find(self, uint64_t gpa, uint64_t size) except NULL
    cdef int copy(self, copying it) except -1


cdef class Log:
    cdef log c
    cdef mapping map
