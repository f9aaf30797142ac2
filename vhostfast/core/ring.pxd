from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from vhostfast.core.memory cimport GuestMemory, Log, log, log_turn, marker, region_table


cdef extern from "ring.h" nogil:
    struct vring_desc
    struct vring_avail
    struct vring_used

    struct ring:
        vring_desc *desc
        vring_avail *avail
        vring_used *used
        const region_table *regions
        uint64_t used_log
        uint32_t size
        uint32_t header_size
        uint32_t frame_size_max
        uint8_t offloads
        bint marks_used
        bint event_idx
        bint indirect
        bint mergeable
        bint shared
        int call_fd
        uint16_t last_avail
        uint32_t last_region
        uint32_t fault
        uint64_t calls
        marker marker


cdef extern from "device.h" nogil:
    struct hands


cdef class Ring:
    cdef ring *c
    cdef readonly int index
    cdef readonly bint running
    cdef readonly GuestMemory memory
    cdef readonly Log log
    cdef readonly int kick_fd
    cdef readonly uint64_t malformed
    cdef readonly uint64_t too_big
    cdef object areas
    cdef hands *hands
    cdef int place(self, GuestMemory memory) except -1
    cdef int prepare(self) except -1
