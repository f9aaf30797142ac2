/* struct ring: one virtqueue as the back-end sees it, and the contract of its verbs.
 *
 * The verbs are the same for each layout (split.h; packed.h will stand beside it):
 *   pop(ring, chain, taken, direction)  take the next chain, checked whole: got one, empty, broken
 *   rewind(ring, n)                     give the last n back, untaken; nothing of them was pushed
 *   push(ring, head, size)              used, `size` bytes written; not yet visible
 *   publish(ring)                       what was pushed becomes visible: bytes, log bits, used.idx,
 *                                       the used ring's own bits
 *   wants_call(ring)                    after publish: does the guest ask to be told?
 *   want_kicks(ring, wanted)            do we? Returns whether more has come since we last looked
 * A guest that breaks a rule sets ring->fault; the verb returns POP_BROKEN and the caller unhooks
 * the ring. Verbs know nothing of packet headers.
 */
#ifndef VHOSTFAST_RING_H
#define VHOSTFAST_RING_H

#include "chain.h"

enum pop { POP_BROKEN = -1, POP_EMPTY = 0, POP_GOT = 1 };
enum direction { DEVICE_READS = 0, DEVICE_WRITES = VRING_DESC_WRITE };

/* A chain that we hold, to be pushed or rewound. */
struct taken {
    uint32_t head;
    uint32_t size; /* bytes */
};

struct ring {
    /* set by the control plane while the workers pause */
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    const struct region_table *regions;
    uint64_t used_log; /* the used ring's address for the log (VHOST_VRING_F_LOG) */
    uint32_t size;     /* entries, a power of two */
    uint32_t header_size;
    uint32_t frame_size_max; /* what the guest may be sent: its MTU, where it took one */
    bool marks_used;
    bool event_idx;
    bool indirect;
    bool mergeable;
    uint8_t offloads; /* enum offload: what the guest has taken, as sender or receiver */
    bool shared;      /* more than one worker fills it: take `lock` */
    int call_fd; /* -1: never signal */

    /* written by the worker that holds it; each index runs free modulo 65536 */
    uint16_t last_avail __attribute__((aligned(CACHE_LINE))); /* the next to take */
    uint16_t avail_seen;                                      /* avail.idx when we last looked */
    uint16_t used_next;                                       /* the next to push */
    uint16_t used_published;                                  /* what used.idx holds */
    uint16_t used_tested;                                     /* used.idx at the last wants_call */
    bool tested;
    bool kicks_wanted;
    uint32_t last_region;
    uint32_t lock;
    uint32_t fault; /* enum fault */
    uint64_t calls; /* signals sent */
    struct ring *next_touched;
    bool touched;
    uint16_t segment; /* of the frame that waits: so many of its segments have gone */
    struct marker marker;
};

/* What has vanished where there was memory of this ring's front-end; FAULT_NONE: it's not its. */
static inline enum fault ring_lost(const struct ring *ring, const uint8_t *address)
{
    if (log_holds(ring->marker.log, address))
        return FAULT_LOG;
    bool ours = ring->regions != NULL && region_table_holds(ring->regions, address);
    return ours ? FAULT_MEMORY : FAULT_NONE;
}

/* Back to where what was taken is what was pushed, whichever is ahead: no packet is half done.
 * Nothing of it was published. */
static inline void ring_settle(struct ring *ring)
{
    if ((int16_t)(ring->used_next - ring->last_avail) > 0)
        ring->used_next = ring->last_avail;
    else
        ring->last_avail = ring->used_next;
}

ALWAYS_INLINE int ring_break(struct ring *ring, enum fault fault)
{
    ring->fault = fault;
    return POP_BROKEN;
}

#endif
