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
from vhostfast.errors import MemoryVanished, ProtocolError


cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t alignment, size_t size)

cdef extern from "device.h" nogil:
    enum:
        CACHE_LINE
        FAULT_COUNT
        FAULT_NONE
        FRAME_SIZE_MAX
        NET_HEADER_SIZE
        DELIVERED
        TOO_BIG

    struct burst:
        uint8_t *copy
    struct hands:
        ring *ring
        uint32_t size
        burst burst

    void guard_install()
    bint bell_install()
    void burst_init(burst *burst, void *fabric)
    void ring_call(ring *ring)
    bint ring_start(ring *ring)
    bint ring_ask(ring *ring, bint wanted)
    bint ring_finish(ring *ring)
    bint hands_receive(hands *hands)
    int hands_send(hands *hands, const uint8_t *frame, uint32_t size)


_BROKE = "the guest broke its ring: "
FAULTS = (  # enum fault, as sentences
    "none",
    _BROKE + "avail.idx is ahead by more than the ring's size",
    _BROKE + "a head or next descriptor outside of its table",
    _BROKE + "a chain with more descriptors than the ring has",
    _BROKE + "a buffer outside of guest memory",
    _BROKE + "a writable buffer to be sent, or a read-only one to be filled",
    _BROKE + "an indirect table that is not negotiated, nested, chained or of a wrong length",
    _BROKE + "a chain of 4 GiB or more, or of too many pieces",
    _BROKE + "a mergeable receive buffer smaller than the header",
    "guest memory is gone: its file was cut short, or there was no huge page left for it",
    "the migration log is gone: its file was cut short",
    "the kernel has no room to wait for its kicks: free memory or raise fs.epoll.max_user_watches",
)
assert len(FAULTS) == FAULT_COUNT
bell_install()


@cython.final
cdef class Ring:
    def __cinit__(self, int index):
        self.c = <ring *>aligned_alloc(CACHE_LINE, sizeof(ring))
        if self.c == NULL:
            raise MemoryError
        memset(self.c, 0, sizeof(ring))
        guard_install()
        self.c.call_fd = self.kick_fd = -1
        self.index = index

    def __dealloc__(self):
        free(self.c)
        free(self.hands)

    def start(self, GuestMemory memory not None, *, uint32_t size, uint64_t desc, uint64_t used,
              uint64_t avail, bint event_idx=False, bint indirect=False, bint mergeable=False,
              uint32_t header_size=NET_HEADER_SIZE, uint32_t frame_size_max=FRAME_SIZE_MAX,
              uint8_t offloads=0, int call_fd=-1, int kick_fd=-1, Log log=None,
              used_log=None):
        if self.running:
            raise RuntimeError(f"ring {self.index} runs already")
        self.c.size = size
        self.c.event_idx = event_idx
        self.c.indirect = indirect
        self.c.mergeable = mergeable
        self.c.header_size = header_size
        self.c.frame_size_max = min(frame_size_max, <uint32_t>FRAME_SIZE_MAX)
        self.c.offloads = offloads
        self.c.call_fd = call_fd
        self.kick_fd = kick_fd
        self.areas = (desc, avail, used)
        self.place(memory)
        self.set_log(log, used_log)
        if not ring_start(self.c):
            raise MemoryVanished(f"vring {self.index}", "memory", "gone",
                                 "there for as long as it is shared")
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
            found = region_of_uva(memory.told, self.areas[i], lengths[i])
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
        log_turn(&self.c.marker, NULL if log is None else &log.c)
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
        cdef bint more = ring_ask(self.c, wanted)
        log_tell(self.c.marker.log)
        return more

    cdef int prepare(self) except -1:
        if not self.running:
            raise RuntimeError(f"ring {self.index} does not run")
        if self.hands == NULL:
            self.hands = <hands *>calloc(1, sizeof(hands))
            if self.hands == NULL:
                raise MemoryError
            self.hands.ring = self.c
            burst_init(&self.hands.burst, NULL)
        return 0

    def receive(self, int limit=64):
        self.prepare()
        packets = []
        for _ in range(limit):
            if not hands_receive(self.hands):
                break
            if self.hands.size:
                packets.append(np.array(<uint8_t[:self.hands.size]>self.hands.burst.copy))
            else:
                self.malformed += 1
        ring_finish(self.c)
        log_tell(self.c.marker.log)
        return packets

    def send(self, packets):
        cdef uint32_t done = 0
        cdef int why
        cdef const uint8_t[::1] bytes_
        self.prepare()
        try:
            for packet in packets:
                bytes_ = packet
                why = hands_send(self.hands, &bytes_[0], <uint32_t>bytes_.shape[0])
                if why == TOO_BIG:
                    self.too_big += 1
                elif why != DELIVERED:
                    break
                done += 1
        finally:  # whatever a packet turns out to be, those before it are published
            ring_finish(self.c)
            log_tell(self.c.marker.log)
        return done
