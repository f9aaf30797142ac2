# cython: boundscheck=False, wraparound=False
"""Traffic over driver rings: owns the senders, receivers and flow tables of csrc/driver/traffic.h.

`run` enters the loop once, without the GIL; whatever else is called meanwhile only sets a word or
reads counters.
"""

cimport cython
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import struct

import numpy as np

from vhostfast.core.driver cimport (
    VRING_DESC_WRITE,
    DriverRing,
    driver_ring,
    vring_desc,
)

cdef extern from "driver/traffic.h" nogil:
    enum:
        FRAME_ETHERTYPE
        FRAME_PROVEN_MIN
        FRAME_SIZE_MAX
        POOL_DIRECT
        POOL_CHAINED
        POOL_INDIRECT
        TRAFFIC_SIZES_MAX
        TRAFFIC_FLOWS_MAX
        TRAFFIC_LANES_MAX
        LOAD_FULL
        LOAD_TOUCH
        LOAD_LEAN
        IDLE_SPIN
        IDLE_YIELD
        IDLE_WAIT

    enum pool_layout:
        pass

    enum load_kind "load":
        pass

    enum idle_kind "idle":
        pass

    struct flow:
        uint64_t received
        uint64_t missing
        uint64_t reordered
        uint64_t repeated

    struct pool:
        driver_ring *ring
        uint8_t *base
        uint64_t gpa
        uint32_t stride
        uint32_t gap
        uint32_t header_size
        uint32_t frame_offset
        uint32_t slot_count
        uint32_t head_shift
        pool_layout layout
        uint16_t desc_flags
        vring_desc *tables
        uint64_t tables_gpa
        uint32_t table_size
        uint16_t *free
        uint8_t *offered

    struct sender:
        pool pool
        uint64_t station[2]
        uint32_t size[16]
        uint32_t size_count
        uint64_t limit
        uint64_t sent
        uint64_t done
        uint64_t bytes

    struct receiver:
        pool pool
        flow *flows
        uint8_t *scratch
        bint mergeable
        uint32_t verify_every
        uint64_t packets
        uint64_t bytes
        uint64_t corrupt
        uint64_t foreign
        uint64_t foreign_bytes
        uint64_t verified
        uint64_t buffers
        uint32_t buffers_each
        uint32_t frame_size

    struct lane:
        sender *sender
        receiver *receiver

    struct traffic:
        lane lane[64]
        uint32_t lane_count
        load_kind load
        idle_kind idle
        uint32_t stop
        uint32_t quiet
        uint64_t deadline_ns
        uint64_t linger_ns
        uint64_t expected
        uint64_t busy_cycles
        uint64_t idle_cycles

cdef extern from "driver/pace.h" nogil:
    enum:
        HISTOGRAM_BUCKETS

    struct histogram:
        uint64_t max
        uint64_t count[1]

    struct pace:
        sender *sender
        receiver *receiver
        receiver *asked
        sender *answering
        double period
        uint64_t count
        uint64_t first
        uint64_t patience
        uint64_t deadline
        uint64_t held
        uint64_t held_most
        uint64_t noted
        uint64_t gap
        uint64_t last
        uint64_t busy_cycles
        uint64_t idle_cycles
        uint32_t stop
        histogram histogram

    uint64_t histogram_top(uint32_t)
    void histogram_note(histogram *, uint64_t)
    double clock_rate(uint32_t)
    int pace_run(pace *)

cdef extern from "driver/traffic.h" nogil:
    uint32_t pool_room(pool *)
    void sender_prepare(sender *, load_kind)
    void receiver_prepare(receiver *, load_kind)
    void receiver_finish(receiver *, load_kind)
    uint64_t traffic_now_ns()
    int traffic_run(traffic *)

LOADS = {"full": LOAD_FULL, "touch": LOAD_TOUCH, "lean": LOAD_LEAN}
IDLES = {"spin": IDLE_SPIN, "yield": IDLE_YIELD, "wait": IDLE_WAIT}
LAYOUTS = {"direct": POOL_DIRECT, "chained": POOL_CHAINED, "indirect": POOL_INDIRECT}
FRAME_MIN = FRAME_PROVEN_MIN
FLOWS_MAX = TRAFFIC_FLOWS_MAX
LANES_MAX = TRAFFIC_LANES_MAX
cdef uint32_t APART = 64  # from a header to its frame, where each has a descriptor


@cython.final
cdef class Flows:
    """What became of each flow's frames at one guest, whichever ring they came by."""

    cdef flow *_flow

    def __cinit__(self):
        self._flow = <flow *>calloc(TRAFFIC_FLOWS_MAX, sizeof(flow))
        if self._flow == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._flow)

    def __getitem__(self, uint16_t number):
        if number >= TRAFFIC_FLOWS_MAX:
            raise IndexError(number)
        cdef flow *it = &self._flow[number]
        return it.received, it.missing, it.reordered, it.repeated


@cython.final
cdef class Sender:
    """Fills a transmit ring."""

    cdef sender _sender
    cdef DriverRing _ring
    cdef object _buffers

    def __cinit__(
        self,
        DriverRing ring not None,
        uint8_t[::1] buffers not None,
        uint64_t gpa,
        *,
        uint32_t stride,
        uint32_t gap=0,
        uint32_t header_size,
        str layout,
        bytes destination,
        bytes source,
        uint16_t flow,
        sizes,
        limit=None,
    ):
        self._ring, self._buffers = ring, buffers
        if not 1 <= len(sizes) <= TRAFFIC_SIZES_MAX:
            raise ValueError(f"{len(sizes)} frame sizes, must be 1 to {TRAFFIC_SIZES_MAX}")
        if len(destination) != 6 or len(source) != 6:
            raise ValueError("a MAC address has 6 bytes")
        if flow >= TRAFFIC_FLOWS_MAX:
            raise ValueError(f"flow is {flow}, must be under {TRAFFIC_FLOWS_MAX}")
        _pool_init(&self._sender.pool, ring, buffers, gpa, stride, gap, header_size, layout, 0)
        cdef uint32_t room = pool_room(&self._sender.pool) - header_size
        for number, size in enumerate(sizes):
            if not FRAME_PROVEN_MIN <= size <= room:
                raise ValueError(f"frame size is {size}, must be {FRAME_PROVEN_MIN} to {room}")
            self._sender.size[<uint32_t>number] = size
        self._sender.size_count = <uint32_t>len(sizes)
        cdef bytes head = destination + source + struct.pack(">H", FRAME_ETHERTYPE)
        head += struct.pack("<H", flow)
        memcpy(self._sender.station, <const uint8_t *>head, sizeof(self._sender.station))
        self._sender.limit = UINT64_MAX if limit is None else <uint64_t>limit

    def __dealloc__(self):
        _pool_free(&self._sender.pool)

    def counters(self):
        return self._sender.sent, self._sender.done, self._sender.bytes


@cython.final
cdef class Receiver:
    """Keeps a receive ring supplied, and judges what comes."""

    cdef receiver _receiver
    cdef DriverRing _ring
    cdef object _buffers, _flows

    def __cinit__(
        self,
        DriverRing ring not None,
        uint8_t[::1] buffers not None,
        uint64_t gpa,
        Flows flows not None,
        *,
        uint32_t stride,
        uint32_t gap=0,
        uint32_t header_size,
        str layout,
        bint mergeable,
        uint32_t verify_every,
        uint32_t frame_size=0,
    ):
        self._ring, self._buffers, self._flows = ring, buffers, flows
        if not verify_every or verify_every & (verify_every - 1):
            raise ValueError(f"verify_every is {verify_every}, must be a power of two")
        _pool_init(
            &self._receiver.pool, ring, buffers, gpa, stride, gap, header_size, layout,
            VRING_DESC_WRITE,
        )
        self._receiver.flows = flows._flow
        self._receiver.mergeable = mergeable
        self._receiver.verify_every = verify_every
        self._receiver.frame_size = frame_size
        cdef uint32_t room = pool_room(&self._receiver.pool)
        self._receiver.buffers_each = max(1, (header_size + frame_size + room - 1) // room)
        self._receiver.scratch = <uint8_t *>calloc(1, FRAME_SIZE_MAX)
        if self._receiver.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        _pool_free(&self._receiver.pool)
        free(self._receiver.scratch)

    def counters(self):
        cdef receiver *it = &self._receiver
        return it.packets, it.bytes, it.corrupt, it.foreign, it.foreign_bytes, it.verified


@cython.final
cdef class Loop:
    """Turns lanes of (Sender or None, Receiver or None)."""

    cdef traffic _traffic
    cdef list _lanes

    def __cinit__(self, lanes, *, str load, str idle):
        if not 1 <= len(lanes) <= TRAFFIC_LANES_MAX:
            raise ValueError(f"{len(lanes)} lanes, must be 1 to {TRAFFIC_LANES_MAX}")
        self._traffic.load = <load_kind><int>LOADS[load]
        self._traffic.idle = <idle_kind><int>IDLES[idle]
        self._lanes = list(lanes)
        for side_out, side_in in self._lanes:
            self._add(side_out, side_in)

    cdef int _add(self, Sender side_out, Receiver side_in) except -1:
        cdef lane *it = &self._traffic.lane[self._traffic.lane_count]
        if side_out is not None:
            it.sender = &side_out._sender
            sender_prepare(it.sender, self._traffic.load)
        if side_in is not None:
            it.receiver = &side_in._receiver
            receiver_prepare(it.receiver, self._traffic.load)
        self._traffic.lane_count += 1
        return 0

    def run(self, seconds=None, *, double linger_s=0.2, expected=None):
        cdef int moved
        self._traffic.deadline_ns = UINT64_MAX
        if seconds is not None:
            self._traffic.deadline_ns = traffic_now_ns() + <uint64_t>(seconds * 1e9)
        self._traffic.expected = UINT64_MAX if expected is None else <uint64_t>expected
        self._traffic.linger_ns = <uint64_t>(linger_s * 1e9)
        with nogil:
            moved = traffic_run(&self._traffic)
        if moved < 0:
            self._blame()

    def stop_sending(self):
        self._traffic.quiet = 1

    def stop(self):
        self._traffic.stop = 1

    def finish(self):
        for _, side_in in self._lanes:
            if side_in is not None:
                receiver_finish(&(<Receiver>side_in)._receiver, self._traffic.load)
        self._blame()

    def cycles(self):
        return self._traffic.busy_cycles, self._traffic.idle_cycles

    cdef int _blame(self) except -1:
        return _blame_rings(self._lanes)


@cython.final
cdef class Pace:
    """Packets on a schedule through lanes that a Loop with load "touch" has prepared."""

    cdef pace _pace
    cdef list _lanes

    def __cinit__(self, lanes, *, double period, uint64_t count, uint64_t first):
        self._lanes = list(lanes)
        if not 1 <= len(self._lanes) <= 2:
            raise ValueError(f"{len(self._lanes)} lanes, must be 1, or 2 of two guests")
        if first >= count or not 0 <= period < 1e12:
            raise ValueError(f"{count} packets, {period} cycles apart, from {first} on")
        cdef Sender sender = self._lanes[0][0]
        cdef Receiver receiver = self._lanes[0][1]
        cdef Sender answering = None
        cdef Receiver asked = None
        if len(self._lanes) == 2:
            answering, asked = self._lanes[1]
        if receiver is None:
            receiver, asked = asked, None
        if sender is None or receiver is None or (asked is None) != (answering is None):
            raise ValueError("nobody sends, receives or answers")
        self._pace.sender, self._pace.receiver = &sender._sender, &receiver._receiver
        if asked is not None:
            self._pace.asked, self._pace.answering = &asked._receiver, &answering._sender
        self._pace.period, self._pace.count, self._pace.first = period, count, first

    def run(self, uint64_t patience, uint64_t deadline, uint64_t held_most):
        cdef int moved
        self._pace.patience, self._pace.deadline = patience, deadline
        self._pace.held_most = held_most
        with nogil:
            moved = pace_run(&self._pace)
        if moved < 0:
            _blame_rings(self._lanes)

    def stop(self):
        self._pace.stop = 1

    def counters(self):
        cdef pace *it = &self._pace
        return it.noted, it.held, it.gap, it.last

    def cycles(self):
        return self._pace.busy_cycles, self._pace.idle_cycles

    def histogram(self):
        return _histogram(&self._pace.histogram)


def histogram_of(values):
    """(counts, highest value of each bucket, max) of numbers below 2^64."""
    cdef histogram *it = <histogram *>calloc(1, sizeof(histogram))
    if it == NULL:
        raise MemoryError
    try:
        for value in values:
            histogram_note(it, value)
        return _histogram(it)
    finally:
        free(it)


def cycles_per_ns(uint32_t milliseconds=50):
    cdef double rate
    with nogil:
        rate = clock_rate(milliseconds)
    return rate


cdef tuple _histogram(histogram *it):
    counts, tops = np.empty((2, HISTOGRAM_BUCKETS), np.uint64)
    cdef uint64_t[::1] count = counts, top = tops
    cdef uint32_t bucket
    for bucket in range(HISTOGRAM_BUCKETS):
        count[bucket] = it.count[bucket]
        top[bucket] = histogram_top(bucket)
    return counts, tops, it.max


cdef int _blame_rings(list lanes) except -1:
    for side_out, side_in in lanes:
        if side_out is not None:
            (<Sender>side_out)._ring.check()
        if side_in is not None:
            (<Receiver>side_in)._ring.check()
    return 0


cdef int _pool_init(
    pool *it,
    DriverRing ring,
    uint8_t[::1] buffers,
    uint64_t gpa,
    uint32_t stride,
    uint32_t gap,
    uint32_t header_size,
    str layout,
    uint16_t desc_flags,
) except -1:
    it.layout = <pool_layout><int>LAYOUTS[layout]
    it.head_shift = layout == "chained"
    it.slot_count = ring._ring.size >> it.head_shift
    it.frame_offset = header_size if layout == "direct" else APART
    cdef uint64_t whole = <uint64_t>stride * it.slot_count
    if stride <= it.frame_offset + <uint64_t>gap or whole > <uint64_t>buffers.shape[0]:
        raise ValueError(f"{buffers.shape[0]} bytes for {it.slot_count} buffers of {stride}")
    if layout == "indirect" and ring._table_size < 2:
        raise ValueError("the ring has no indirect tables")
    it.ring = &ring._ring
    it.base = &buffers[0]
    it.gpa = gpa
    it.stride = stride
    it.gap = gap
    it.header_size = header_size
    it.desc_flags = desc_flags
    it.tables = ring._tables
    it.tables_gpa = ring._tables_gpa
    it.table_size = ring._table_size
    it.free = <uint16_t *>calloc(it.slot_count, sizeof(uint16_t))
    it.offered = <uint8_t *>calloc(it.slot_count, 1)
    if it.free == NULL or it.offered == NULL:
        raise MemoryError
    return 0


cdef void _pool_free(pool *it):
    free(it.free)
    free(it.offered)
