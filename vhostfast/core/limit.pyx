# cython: boundscheck=False, wraparound=False
"""What a measurement stands beside: the copy without checks, and how far apart two CPUs are."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t

from vhostfast.core.ring cimport Ring, ring


cdef extern from "driver/bare.h" nogil:
    enum:
        BARE_LANES_MAX

    struct bare_lane:
        ring *source "from"
        ring *target "to"
        uint32_t rounded

    struct bare:
        bare_lane lane[1024]
        uint32_t lane_count
        bint null
        uint32_t stop

    void bare_run(bare *)

cdef extern from "driver/distance.h" nogil:
    struct distance:
        uint32_t word
        uint64_t deadline_ns

    uint64_t distance_now_ns()
    bint distance_answer(distance *)
    double distance_ask(distance *)

cdef extern from "sync.h" nogil:
    void store_release_u32(uint32_t *at, uint32_t value)


@cython.final
cdef class Bare:
    """Copies from ring to ring and checks nothing."""

    cdef bare c
    cdef list rings

    def __cinit__(self, lanes, *, bint null=False):
        lanes = list(lanes)
        if len(lanes) > BARE_LANES_MAX:
            raise ValueError(f"{len(lanes)} lanes, must be {BARE_LANES_MAX} at most")
        self.c.null = null
        self.rings = lanes
        for source, target in lanes:
            self.add(source, target)

    cdef int add(self, Ring source, Ring target) except -1:
        if not source.running or not target.running:
            raise ValueError("a ring of a lane doesn't run")
        self.c.lane[self.c.lane_count].source = source.c
        self.c.lane[self.c.lane_count].target = target.c
        self.c.lane_count += 1
        return 0

    def run(self):
        with nogil:
            bare_run(&self.c)

    def stop(self):
        store_release_u32(&self.c.stop, 1)


@cython.final
cdef class Distance:
    """A cache line that goes to and fro between two threads."""

    cdef distance *c
    cdef object memory

    def __cinit__(self, double patience_s=10.0):
        self.memory = bytearray(3 * sizeof(distance))
        cdef char *at = self.memory
        self.c = <distance *>(<size_t>at + sizeof(distance) - <size_t>at % sizeof(distance))
        self.c.deadline_ns = distance_now_ns() + <uint64_t>(patience_s * 1e9)

    def answer(self):
        cdef bint done
        with nogil:
            done = distance_answer(self.c)
        return done

    def ask(self):
        cdef double ns
        with nogil:
            ns = distance_ask(self.c)
        return None if ns < 0 else ns
