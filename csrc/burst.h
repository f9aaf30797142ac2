/* What a worker holds while it forwards, and the ring that is in its hands.
 *
 * Rings that were written to are published once, at the end of the burst; one that several workers
 * fill at once, before it is let go. The transmit ring comes first: a switch that is killed between
 * the two has lost frames, and its successor sends none twice.
 */
#ifndef VHOSTFAST_BURST_H
#define VHOSTFAST_BURST_H

#include <unistd.h>

#include "account.h"
#include "port.h"
#include "split.h"

/* What a worker holds of the packet in its hands, and what it counted. */
struct burst {
    struct fabric *fabric;
    struct ring *sending; /* the transmit ring that has its turn */
    struct ring *held;    /* the receive ring in its hands, locked if it is shared */
    struct ring *touched; /* rings to be published */
    uint16_t full_at;     /* avail.idx of the ring that was full last */
    uint32_t pieces;      /* spans that it has seen this turn */
    struct chain sent, room;
    struct taken taken[VRING_SIZE_MAX];
    struct span sent_span[SPAN_COUNT_MAX], room_span[SPAN_COUNT_MAX];
    uint8_t copy[FRAME_SIZE_MAX]; /* of a frame whose offloads a receiver has not taken */
    struct counters counters[PORT_COUNT_MAX];
    struct accounts accounts;
};

static inline void burst_init(struct burst *burst, struct fabric *fabric)
{
    burst->fabric = fabric;
    burst->sent.span = burst->sent_span;
    burst->room.span = burst->room_span;
}

ALWAYS_INLINE void count(struct burst *burst, const struct port *port, enum counter counter,
                         uint64_t amount)
{
    burst->counters[port->index].value[counter] += amount;
}

/* Its port takes no more part, and the control plane is told why. */
static inline void port_break(struct port *port, uint32_t fault)
{
    const uint64_t one = 1;
    if (port_fault(port) != FAULT_NONE)
        return;
    store_once_u32(&port->fault, fault);
    ssize_t told = write(port->event_fd, &one, sizeof one);
    (void)told; /* our own eventfd: full only where it is readable anyway */
}

static inline void ring_call(struct ring *ring)
{
    if (ring->call_fd < 0)
        return;
    ring->calls++;
    bell_ring(ring->call_fd);
}

/* Calls the guest for what was published since it was last thought of. */
static inline void ring_tell(struct ring *ring)
{
    if (ring->used_published != ring->used_tested && split_wants_call(ring))
        ring_call(ring);
}

static inline void ring_complete(struct ring *ring, bool fenced)
{
    split_publish(ring, fenced);
    ring_tell(ring);
}

/* A ring that other workers fill too is held until it has been published; others wait for the
 * burst's end. */
ALWAYS_INLINE void ring_lock(struct burst *burst, struct ring *ring)
{
    while (ring->shared && exchange_acquire_u32(&ring->lock, 1))
        relax();
    burst->held = ring;
}

ALWAYS_INLINE void ring_unlock(struct burst *burst, struct ring *ring)
{
    burst->held = NULL;
    if (ring->shared)
        store_release_u32(&ring->lock, 0);
}

static inline void ring_release_shared(struct burst *burst, struct ring *ring)
{
    bool fenced = burst->sending != NULL && split_publish(burst->sending, false);
    ring_complete(ring, fenced);
    ring_unlock(burst, ring);
}

/* To be published at the burst's end. */
ALWAYS_INLINE void ring_touch(struct burst *burst, struct ring *ring)
{
    if (!ring->touched) {
        ring->touched = true;
        ring->next_touched = burst->touched;
        burst->touched = ring;
    }
}

ALWAYS_INLINE void ring_release(struct burst *burst, struct ring *ring)
{
    if (ring->shared) {
        ring_release_shared(burst, ring);
        return;
    }
    burst->held = NULL;
    ring_touch(burst, ring);
}

/* What has been sent, then who has got it. The first one's fence does for the marks of all. */
static inline void publish_touched(struct burst *burst)
{
    struct ring *sending = burst->sending;
    bool fenced = sending != NULL && split_publish(sending, false);
    while (burst->touched != NULL) {
        struct ring *ring = burst->touched;
        ring_lock(burst, ring); /* one that is shared is here only where a burst broke off */
        burst->touched = ring->next_touched;
        ring->touched = false;
        ring_complete(ring, fenced);
        ring_unlock(burst, ring);
    }
    if (sending != NULL)
        ring_tell(sending);
    burst->sending = NULL;
}

ALWAYS_INLINE struct port *fixed_target(const struct fabric *fabric, struct port *from)
{
    return fabric->policy == POLICY_PATCH      ? from->peer
           : fabric->policy == POLICY_LOOPBACK ? from
                                               : NULL;
}

#endif
