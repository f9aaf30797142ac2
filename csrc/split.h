/* The split virtqueue (virtio 1.3, 2.7): the verbs of ring.h.
 *
 *   desc[size]   addr u64, len u32, flags u16, next u16                  read
 *   avail        flags u16, idx u16, ring[size] u16, used_event u16      read
 *   used         flags u16, idx u16, ring[size] {id, len}, avail_event   written
 */
#ifndef VHOSTFAST_SPLIT_H
#define VHOSTFAST_SPLIT_H

#include "ring.h"

enum split_used_offset { SPLIT_USED_FLAGS = 0, SPLIT_USED_IDX = 2, SPLIT_USED_RING = 4 };

ALWAYS_INLINE uint16_t *split_used_event(struct ring *ring)
{
    return &ring->avail->ring[ring->size];
}
ALWAYS_INLINE uint16_t *split_avail_event(struct ring *ring)
{
    return (uint16_t *)&ring->used->ring[ring->size];
}

/* How many chains wait, looking again only if we know of fewer than `wanted`; POP_BROKEN if the
 * guest lies. */
ALWAYS_INLINE int split_waiting(struct ring *ring, uint32_t wanted)
{
    uint16_t waiting = (uint16_t)(ring->avail_seen - ring->last_avail);
    if (waiting < wanted) {
        ring->avail_seen = load_acquire_u16(&ring->avail->idx); /* A; step: pop */
        waiting = (uint16_t)(ring->avail_seen - ring->last_avail);
    }
    if (unlikely(waiting > ring->size))
        return ring_break(ring, FAULT_AVAIL_INDEX);
    return waiting;
}

/* A descriptor of an indirect table that is all memory; where regions meet it may be cut, 2.7.5.3.
 */
static inline struct vring_desc split_table_entry(struct ring *ring, uint64_t gpa)
{
    struct vring_desc desc;
    uint64_t reach = 0;
    const uint8_t *host = region_at(ring->regions, &ring->last_region, gpa, &reach);
    if (likely(reach >= sizeof desc))
        return load_once_desc((const struct vring_desc *)host);
    struct span part[sizeof desc];
    struct chain cut = {.span = part};
    chain_append(&cut, ring->regions, &ring->last_region, gpa, sizeof desc);
    struct cursor cursor = chain_start(&cut);
    cursor_read(&cursor, &desc, sizeof desc);
    return desc;
}

/* Each descriptor is loaded once, then checked, then used; a chain has no more of them than the
 * ring, tables included (2.7.5.2, 2.7.5.3.1). */
static inline enum fault split_walk(struct ring *ring, uint32_t index, struct chain *chain,
                                    enum direction direction)
{
    uint64_t table = 0; /* GPA of the indirect table, once in one */
    uint32_t count = ring->size;
    const uint64_t before = chain->size;
    bool nested = false;
    for (uint32_t step = 0; step < ring->size;) {
        if (unlikely(index >= count))
            return FAULT_HEAD;
        struct vring_desc desc;
        if (nested)
            desc = split_table_entry(ring, table + (uint64_t)index * sizeof desc);
        else
            desc = load_once_desc(&ring->desc[index]);
        if (desc.flags & VRING_DESC_INDIRECT) {
            count = desc.len / sizeof desc;
            if (!ring->indirect || nested || desc.flags & VRING_DESC_NEXT ||
                desc.len % sizeof desc || count == 0 || count > ring->size)
                return FAULT_INDIRECT;
            if (!region_covers(ring->regions, &ring->last_region, desc.addr, desc.len))
                return FAULT_ADDRESS;
            table = desc.addr;
            nested = true;
            index = 0;
            continue;
        }
        if (unlikely((desc.flags & VRING_DESC_WRITE) != direction))
            return FAULT_DIRECTION;
        enum fault fault =
            chain_append(chain, ring->regions, &ring->last_region, desc.addr, desc.len);
        if (unlikely(fault))
            return fault;
        if (unlikely(chain->size - before > UINT32_MAX))
            return FAULT_LENGTH;
        if (!(desc.flags & VRING_DESC_NEXT))
            return FAULT_NONE;
        index = desc.next;
        step++;
    }
    return FAULT_LOOP;
}

/* Appends the spans of the next chain to `chain`. */
static inline int split_pop(struct ring *ring, struct chain *chain, struct taken *taken,
                            enum direction direction)
{
    int waiting = split_waiting(ring, 1);
    if (waiting <= 0)
        return waiting;
    uint64_t size = chain->size;
    taken->head = load_once_u16(&ring->avail->ring[ring->last_avail & (ring->size - 1)]);
    enum fault fault = split_walk(ring, taken->head, chain, direction);
    if (unlikely(fault))
        return ring_break(ring, fault);
    taken->size = (uint32_t)(chain->size - size);
    ring->last_avail++;
    return POP_GOT;
}

ALWAYS_INLINE void split_rewind(struct ring *ring, uint32_t count)
{
    ring->last_avail -= (uint16_t)count;
}

ALWAYS_INLINE void split_push(struct ring *ring, uint32_t head, uint32_t size)
{
    /* step: element */
    store_once_used(&ring->used->ring[ring->used_next & (ring->size - 1)], head, size);
    ring->used_next++;
}

/* What we store into the used ring itself is guest memory too. Behind a full fence (E). */
static inline void split_mark_used(struct ring *ring, uint64_t offset, uint64_t size)
{
    if (!ring->marks_used)
        return;
    const uint64_t gpa = ring->used_log + offset; /* step: gather used */
    log_set_range(ring->marker.log, gpa, size);
}

/* used.idx and elements; of a ring on one page, as most are, it's that page whatever was written. A
 * guest that offers without waiting for what it gets back can have more pushed than it has room
 * for: then all of the ring was written, and nothing beyond. */
static inline void split_mark_elements(struct ring *ring, uint16_t from, uint16_t to)
{
    const uint64_t element = sizeof(struct vring_used_element), page = 1 << LOG_PAGE_SHIFT;
    const uint64_t end = SPLIT_USED_RING + ring->size * element;
    split_mark_used(ring, SPLIT_USED_IDX, sizeof(uint16_t));
    if (likely(ring->used_log % page + end <= page))
        return;
    uint32_t first = from & (ring->size - 1), count = (uint16_t)(to - from);
    if (unlikely(count > ring->size))
        count = ring->size;
    uint32_t before_wrap = ring->size - first < count ? ring->size - first : count;
    split_mark_used(ring, SPLIT_USED_RING, (count - before_wrap) * element);
    split_mark_used(ring, SPLIT_USED_RING + first * element, before_wrap * element);
}

/* False where nothing was pushed; else a full fence stands behind all that was stored before the
 * call. `fenced`: one does already. The bits of the used ring may follow used.idx: the front-end's
 * last look at the log comes after our answer to GET_VRING_BASE, and that comes after them. */
static inline bool split_publish(struct ring *ring, bool fenced)
{
    if (ring->used_next == ring->used_published)
        return false;
    log_flush(&ring->marker, fenced);
    store_release_u16(&ring->used->idx, ring->used_next); /* B; step: used.idx */
    fence_full(); /* C for wants_call, E for these marks; step: fence */
    if (unlikely(ring->marker.log != NULL))
        split_mark_elements(ring, ring->used_published, ring->used_next);
    ring->used_published = ring->used_next;
    return true;
}

/* 2.7.7.2; behind the fence (C) of publish. The first test after a start is always yes. */
static inline bool split_wants_call(struct ring *ring)
{
    uint16_t before = ring->used_tested;
    ring->used_tested = ring->used_published;
    if (!ring->event_idx)
        return !(load_once_u16(&ring->avail->flags) & VRING_AVAIL_NO_INTERRUPT);
    uint16_t event = load_once_u16(split_used_event(ring));
    uint16_t passed = (uint16_t)(ring->used_published - event - 1);
    bool wanted = !ring->tested || passed < (uint16_t)(ring->used_published - before);
    ring->tested = true;
    return wanted;
}

/* Two bytes of the used ring that are not its packets'. */
static inline void split_mark_word(struct ring *ring, uint64_t offset)
{
    if (ring->marker.log == NULL)
        return;
    fence_full(); /* E; step: fence */
    split_mark_used(ring, offset, sizeof(uint16_t));
}

/* Stores avail_event or used.flags: how the driver is asked for kicks, or not to kick (2.7.10).
 * With EVENT_IDX no kicks means an avail_event that stays behind. */
static inline void split_store_kicks(struct ring *ring, bool wanted)
{
    ring->kicks_wanted = wanted;
    if (ring->event_idx) {
        uint16_t event = wanted ? ring->avail_seen : (uint16_t)(ring->last_avail - 1);
        store_once_u16(split_avail_event(ring), event); /* step: kicks */
        split_mark_word(ring, SPLIT_USED_RING +
                                  (uint64_t)ring->size * sizeof(struct vring_used_element));
    } else {
        /* step: kicks */
        store_once_u16(&ring->used->flags, wanted ? 0 : VRING_USED_NO_NOTIFY);
        split_mark_word(ring, SPLIT_USED_FLAGS);
    }
}

/* Returns whether avail.idx has moved since we last looked, so that the caller looks again before
 * it sleeps. */
static inline bool split_want_kicks(struct ring *ring, bool wanted)
{
    uint16_t seen = ring->avail_seen;
    if (!wanted) {
        if (ring->kicks_wanted && !ring->event_idx)
            split_store_kicks(ring, false);
        ring->kicks_wanted = false;
        return false;
    }
    ring->avail_seen = load_acquire_u16(&ring->avail->idx); /* A */
    if (!ring->kicks_wanted || ring->event_idx)
        split_store_kicks(ring, true);
    fence_full(); /* D */
    return load_once_u16(&ring->avail->idx) != seen;
}

/* Where the ring goes on: after what the guest was told. An in-order back-end leaves nothing
 * between the two, so used.idx is right whatever the front-end's base says (docs/protocol.md). */
static inline void split_start(struct ring *ring)
{
    uint16_t index = load_once_u16(&ring->used->idx);
    ring->last_avail = ring->avail_seen = ring->used_next = ring->used_published =
        ring->used_tested = index;
    ring->tested = false;
    ring->segment = 0;
    ring->fault = FAULT_NONE;
    store_once_u16(&ring->used->flags, 0); /* step: kicks */
    split_mark_word(ring, SPLIT_USED_FLAGS);
    split_store_kicks(ring, false);
}

#endif
