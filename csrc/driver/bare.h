/* A back-end that checks nothing: what a copy between two rings costs at least.
 *
 * It believes the guest: all memory is one region, every chain is a header and a frame (in a
 * descriptor each, or in one, or in a table), every receive buffer holds any packet, headers have
 * 12 bytes. It never calls. Only for our own driver, beside which it says what others could reach.
 *
 * A lane that is `null` copies once round the rings, so that what lies there is lawful, and then
 * gives back all it is offered as it is, by the index alone: what is measured then is the driver.
 */
#ifndef VHOSTFAST_BARE_H
#define VHOSTFAST_BARE_H

#include "copy.h"
#include "ring.h"

enum bare_limit {
    BARE_LANES_MAX = 1024,
    BARE_BURST = 64,
    BARE_GROUP = 16, /* packets that are looked at before the first of them is copied */
};

struct bare_lane {
    struct ring *from, *to;
    uint32_t rounded; /* packets copied, as far as once round both rings */
};

struct bare {
    struct bare_lane lane[BARE_LANES_MAX];
    uint32_t lane_count;
    bool null;
    uint32_t stop;
};

struct bare_packet {
    uint8_t *header, *frame;
    uint32_t size; /* of the frame, or of its buffer */
    uint32_t head;
};

ALWAYS_INLINE uint8_t *bare_host(const struct ring *ring, uint64_t gpa)
{
    const struct region *region = &ring->regions->region[0];
    return region->host + (gpa - region->gpa);
}

/* The packet, or the buffer for one, at the ring's next place but `ahead`. */
ALWAYS_INLINE struct bare_packet bare_look(const struct ring *ring, uint32_t ahead)
{
    uint32_t head = ring->avail->ring[(ring->last_avail + ahead) & (ring->size - 1)];
    const struct vring_desc *table = ring->desc, *desc = &table[head];
    if (desc->flags & VRING_DESC_INDIRECT)
        desc = table = (const struct vring_desc *)bare_host(ring, desc->addr);
    struct bare_packet packet = {.header = bare_host(ring, desc->addr), .head = head};
    packet.frame = packet.header + ring->header_size;
    packet.size = desc->len - ring->header_size;
    if (desc->flags & VRING_DESC_NEXT) {
        desc = &table[desc->next];
        packet.frame = bare_host(ring, desc->addr);
        packet.size = desc->len;
    }
    return packet;
}

ALWAYS_INLINE void bare_push(struct ring *ring, uint32_t ahead, uint32_t head, uint32_t size)
{
    store_once_used(&ring->used->ring[(ring->used_next + ahead) & (ring->size - 1)], head, size);
}

/* The driver has these lines, for it has read them. */
ALWAYS_INLINE void bare_prefetch_used(struct ring *ring, uint32_t ahead, uint32_t count)
{
    for (uint32_t i = 0; i < count; i += CACHE_LINE / sizeof(struct vring_used_element))
        __builtin_prefetch(&ring->used->ring[(ring->used_next + ahead + i) & (ring->size - 1)], 1);
}

ALWAYS_INLINE void bare_group(struct bare_lane *lane, uint32_t at, uint32_t count,
                              const uint32_t width)
{
    struct bare_packet from[BARE_GROUP], to[BARE_GROUP];
    const uint32_t header_size = lane->to->header_size;
    bare_prefetch_used(lane->from, at, count);
    bare_prefetch_used(lane->to, at, count);
    for (uint32_t i = 0; i < count; i++) {
        from[i] = bare_look(lane->from, at + i);
        to[i] = bare_look(lane->to, at + i);
        __builtin_prefetch(from[i].header, 0);
        __builtin_prefetch(from[i].header + CACHE_LINE, 0);
        __builtin_prefetch(to[i].header, 1);
        __builtin_prefetch(to[i].header + CACHE_LINE, 1);
    }
    for (uint32_t i = 0; i < count; i++) {
        *(u64_any *)to[i].header = 0;
        *(u32_any *)(to[i].header + sizeof(uint64_t)) = UINT32_C(1) << 16; /* num_buffers 1 */
        copy_bytes(to[i].frame, from[i].frame, from[i].size, width);
        bare_push(lane->from, at + i, from[i].head, 0);
        bare_push(lane->to, at + i, to[i].head, header_size + from[i].size);
    }
}

ALWAYS_INLINE uint32_t bare_waiting(const struct ring *ring)
{
    return (uint16_t)(load_acquire_u16(&ring->avail->idx) - ring->last_avail); /* A */
}

ALWAYS_INLINE void bare_publish(struct ring *ring, uint32_t count)
{
    ring->last_avail += (uint16_t)count;
    ring->used_next += (uint16_t)count;
    ring->used_published = ring->used_next;
    store_release_u16(&ring->used->idx, ring->used_next); /* B */
}

/* One burst; the number of packets. */
ALWAYS_INLINE uint32_t bare_burst(struct bare_lane *lane, bool null, const uint32_t width)
{
    uint32_t waiting = bare_waiting(lane->from);
    uint32_t room = waiting ? bare_waiting(lane->to) : 0;
    uint32_t count = waiting < room ? waiting : room;
    bool copies = !null || lane->rounded < lane->from->size + lane->to->size;
    if (copies && count > BARE_BURST)
        count = BARE_BURST;
    for (uint32_t at = 0; copies && at < count; at += BARE_GROUP)
        bare_group(lane, at, count - at < BARE_GROUP ? count - at : BARE_GROUP, width);
    if (copies)
        lane->rounded += count;
    if (count == 0)
        return 0;
    bare_publish(lane->to, count);
    bare_publish(lane->from, count);
    return count;
}

ALWAYS_INLINE void bare_loop(struct bare *bare, const uint32_t width)
{
    while (!load_acquire_u32(&bare->stop)) {
        uint32_t moved = 0;
        for (uint32_t i = 0; i < bare->lane_count; i++)
            moved += bare_burst(&bare->lane[i], bare->null, width);
        if (moved == 0)
            relax();
    }
}

/* The same body for each instruction-set level, as in forward.h. */

static void bare_baseline(struct bare *bare) { bare_loop(bare, 16); }

#if defined(__x86_64__)
__attribute__((target("avx2,prfchw"))) static void bare_avx2(struct bare *bare)
{
    bare_loop(bare, 32);
}

__attribute__((target("avx512f,avx512bw,avx512vl,prfchw"))) static void
bare_avx512(struct bare *bare)
{
    bare_loop(bare, 64);
}
#endif

/* Runs until `stop` is set, on the best level that this CPU has. */
static inline void bare_run(struct bare *bare)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        bare_avx512(bare);
    else if (__builtin_cpu_supports("avx2"))
        bare_avx2(bare);
    else
        bare_baseline(bare);
#else
    bare_baseline(bare);
#endif
}

#endif
