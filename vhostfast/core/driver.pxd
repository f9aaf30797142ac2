"""What the loops of traffic.pyx see of a DriverRing."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "driver/vring.h" nogil:
    enum:
        VRING_SIZE_MAX
        VRING_DESC_NEXT
        VRING_DESC_WRITE
        VRING_DESC_INDIRECT
        DRIVER_BROKEN
        DRIVER_GOT
        DRIVER_FAULT_USED_INDEX

    struct vring_desc:
        uint64_t addr
        uint32_t len
        uint16_t flags
        uint16_t next

    struct vring_avail:
        uint16_t idx

    struct vring_used:
        uint16_t idx

    struct vring_used_element:
        uint32_t id
        uint32_t len

    struct driver_ring:
        vring_desc *desc
        vring_avail *avail
        vring_used *used
        uint16_t *next
        uint16_t *count
        uint32_t size
        bint event_idx
        int kick_fd
        int call_fd
        uint16_t avail_next
        uint16_t avail_told
        uint16_t used_next
        uint32_t free_count
        uint32_t fault
        uint32_t bad_id
        uint64_t kicks
        uint64_t calls

    size_t driver_avail_bytes(uint32_t size, bint event_idx)
    size_t driver_used_bytes(uint32_t size, bint event_idx)
    void driver_reset(driver_ring *, uint16_t index)
    void driver_offer(driver_ring *, uint16_t head)
    void driver_publish(driver_ring *)
    bint driver_kick_wanted(driver_ring *)
    void driver_signal(driver_ring *)
    uint16_t driver_link(driver_ring *, uint32_t count)
    int driver_take(driver_ring *, vring_used_element *)
    bint driver_want_calls(driver_ring *, bint wanted)


cdef class DriverRing:
    cdef driver_ring _ring
    cdef object _areas  # keeps the memory mapped
    cdef vring_desc *_tables
    cdef uint64_t _tables_gpa
    cdef uint32_t _table_size

    cdef void _fill_chain(self, uint16_t head, chain)
    cdef void _fill_table(self, uint16_t head, chain)
