"""Ring owns a struct ring: where its areas lie in our memory, and when it may be walked.

The fds that it signals and is kicked by stay the caller's. Whoever calls start, stop, remap or a
setter does so while no worker walks the ring.
"""

cimport cython
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import numpy as np

from vhostfast.core.memory cimport log_tell, region, region_of_uva
from vhostfast.errors import ProtocolError


cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "ring.h" nogil:
    enum:
        CACHE_LINE
        FAULT_COUNT
        FRAME_SIZE_MAX
        NET_HEADER_SIZE
        DEVICE_READS
        POP_GOT
        POP_BROKEN

    enum:
        FAULT_NONE

    struct span
    struct chain:
        uint64_t size
        span *span
    struct taken:
        uint32_t head
        uint32_t size
    struct cursor:
        pass

    cursor chain_start(const chain *chain)
    void chain_clear(chain *chain)
    void cursor_read(cursor *source, void *to, uint32_t size)
    void cursor_write(cursor *to, marker *marker, const void *source, uint32_t size)

cdef extern from "nethdr.h" nogil:
    bint nethdr_read(cursor *cursor, const chain *chain, uint32_t header_size, uint32_t *size)
    void nethdr_write(cursor *cursor, marker *marker, uint32_t header_size, uint16_t num_buffers)

cdef extern from "split.h" nogil:
    void split_start(ring *ring)
    int split_pop(ring *ring, chain *chain, taken *taken, int direction)
    void split_push(ring *ring, uint32_t head, uint32_t size)
    bint split_want_kicks(ring *ring, bint wanted)

cdef extern from "forward.h" nogil:
    enum delivery:
        pass
    struct burst:
        chain sent
        chain room
        taken *taken
        span *sent_span
        span *room_span

    uint32_t take_room(burst *burst, ring *ring, uint64_t size, delivery *why)
    void push_room(burst *burst, ring *ring, uint32_t count, uint64_t size)
    void ring_call(ring *ring)
    void ring_complete(ring *ring)


FAULTS = (
    "none",
    "avail.idx is ahead by more than the ring's size",
    "a head or next descriptor outside of its table",
    "a chain with more descriptors than the ring has",
    "a buffer outside of guest memory",
    "a writable buffer to be sent, or a read-only one to be filled",
    "an indirect table that is not negotiated, nested, chained or of a wrong length",
    "a chain of 4 GiB or more, or of too many pieces",
    "a mergeable receive buffer smaller than the header",
)
assert len(FAULTS) == FAULT_COUNT


@cython.final
cdef class Ring:
    def __cinit__(self, int index):
        self.c = <ring *>aligned_alloc(CACHE_LINE, sizeof(ring))
        if self.c == NULL:
            raise MemoryError
        memset(self.c, 0, sizeof(ring))
        self.c.call_fd = self.kick_fd = -1
        self.index = index

    def __dealloc__(self):
        free(self.c)
        free(self.hands)

    def start(self, GuestMemory memory not None, *, uint32_t size, uint64_t desc, uint64_t used,
              uint64_t avail, bint event_idx=False, bint indirect=False, bint mergeable=False,
              uint32_t header_size=NET_HEADER_SIZE, uint32_t frame_size_max=FRAME_SIZE_MAX,
              int call_fd=-1, int kick_fd=-1, Log log=None, used_log=None):
        if self.running:
            raise RuntimeError(f"ring {self.index} runs already")
        self.c.size = size
        self.c.event_idx = event_idx
        self.c.indirect = indirect
        self.c.mergeable = mergeable
        self.c.header_size = header_size
        self.c.frame_size_max = min(frame_size_max, <uint32_t>FRAME_SIZE_MAX)
        self.c.call_fd = call_fd
        self.kick_fd = kick_fd
        self.areas = (desc, avail, used)
        self.place(memory)
        self.set_log(log, used_log)
        split_start(self.c)
        self.running = True

    def stop(self):
        self.running = False
        self.c.call_fd = self.kick_fd = -1
        self.c.regions = NULL
        self.memory = None
        self.set_log(None, None)
        return self.c.last_avail

    cdef int place(self, GuestMemory memory) except -1:
        """Find the three areas in `memory`; nothing changes if one isn't there."""
        cdef uint32_t size = self.c.size, event = 2 if self.c.event_idx else 0
        lengths = (16 * size, 4 + 2 * size + event, 4 + 8 * size + event)
        alignments = (16, 2, 4)
        cdef uint8_t *host[3]
        cdef const region *found
        for i, name in enumerate(("desc", "avail", "used")):
            found = region_of_uva(memory.table, self.areas[i], lengths[i])
            if found == NULL:
                raise ProtocolError(f"vring {self.index}", name, hex(self.areas[i]),
                                    f"{lengths[i]} bytes within one region of guest memory")
            host[i] = found.host + (<uint64_t>self.areas[i] - found.uva)
            if <size_t>host[i] % alignments[i]:
                raise ProtocolError(f"vring {self.index}", name, hex(self.areas[i]),
                                    f"aligned to {alignments[i]} in its file")
        self.c.desc = <vring_desc *>host[0]
        self.c.avail = <vring_avail *>host[1]
        self.c.used = <vring_used *>host[2]
        self.c.regions = memory.table
        self.c.last_region = 0
        self.memory = memory
        return 0

    def remap(self, GuestMemory memory not None):
        self.place(memory)

    def set_call(self, int fd):
        self.c.call_fd = fd
        ring_call(self.c)

    def set_log(self, Log log, used_log):
        self.log = log
        self.c.marker.log = NULL if log is None else &log.c
        self.c.marks_used = log is not None and used_log is not None
        self.c.used_log = 0 if used_log is None else used_log

    @property
    def call_fd(self):
        return self.c.call_fd

    @property
    def used_log(self):
        return self.c.used_log if self.c.marks_used else None

    @property
    def base(self):
        return self.c.last_avail

    @property
    def calls(self):
        return self.c.calls

    @property
    def fault(self):
        return FAULTS[self.c.fault] if self.c.fault != FAULT_NONE else None

    # What a device in Python does with a ring of its own.

    def want_kicks(self, bint wanted):
        cdef bint more = split_want_kicks(self.c, wanted)
        log_tell(self.c.marker.log)
        return more

    cdef int prepare(self) except -1:
        if not self.running:
            raise RuntimeError(f"ring {self.index} does not run")
        if self.hands == NULL:
            self.hands = <burst *>calloc(1, sizeof(burst))
            if self.hands == NULL:
                raise MemoryError
            self.hands.sent.span = self.hands.sent_span
            self.hands.room.span = self.hands.room_span
        return 0

    def receive(self, int limit=64):
        cdef taken taken
        cdef cursor frame
        cdef uint32_t size
        cdef uint8_t[::1] bytes_
        self.prepare()
        packets = []
        while len(packets) < limit:
            chain_clear(&self.hands.sent)
            if split_pop(self.c, &self.hands.sent, &taken, DEVICE_READS) != POP_GOT:
                break
            frame = chain_start(&self.hands.sent)
            if nethdr_read(&frame, &self.hands.sent, self.c.header_size, &size):
                packet = np.empty(size, np.uint8)
                bytes_ = packet
                cursor_read(&frame, &bytes_[0], size)
                packets.append(packet)
            split_push(self.c, taken.head, 0)
        ring_complete(self.c)
        log_tell(self.c.marker.log)
        return packets

    def send(self, packets):
        cdef cursor room
        cdef uint32_t count, sent = 0
        cdef uint64_t whole
        cdef delivery why
        cdef const uint8_t[::1] bytes_
        self.prepare()
        try:
            for packet in packets:
                bytes_ = packet
                whole = self.c.header_size + <uint64_t>bytes_.shape[0]
                count = take_room(self.hands, self.c, whole, &why)
                if count == 0:
                    break
                room = chain_start(&self.hands.room)
                nethdr_write(&room, &self.c.marker, self.c.header_size, <uint16_t>count)
                cursor_write(&room, &self.c.marker, &bytes_[0], <uint32_t>bytes_.shape[0])
                push_room(self.hands, self.c, count, whole)
                sent += 1
        finally:  # whatever a packet turns out to be, those before it are published
            ring_complete(self.c)
            log_tell(self.c.marker.log)
        return sent
