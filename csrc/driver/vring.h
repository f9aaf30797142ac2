/* The guest's side of a split virtqueue (virtio 1.3, 2.7), for tests, demo, bench and audit.
 *
 * A back-end is under test here, so what it writes is not trusted: a used element must name a chain
 * that is outstanding, and used.idx may not pass what was offered. Who is descriptor i's successor,
 * and how long a chain is, stands in memory of our own that the back-end can't reach.
 *
 * Barriers A to D pair with the back-end's half in split.h; sync.h lists them.
 */
#ifndef VHOSTFAST_VRING_H
#define VHOSTFAST_VRING_H

#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "spec.h"
#include "sync.h"

enum driver_take { DRIVER_BROKEN = -1, DRIVER_EMPTY = 0, DRIVER_GOT = 1 };

/* What a device did wrong with a used ring. */
enum driver_fault {
    DRIVER_FAULT_NONE = 0,
    DRIVER_FAULT_USED_INDEX, /* used.idx passed what was offered */
    DRIVER_FAULT_USED_ID,    /* an element names no outstanding chain */
};

struct driver_ring {
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    uint16_t *next;  /* [size] successor of a descriptor, free or in a chain */
    uint16_t *count; /* [size] descriptors of the outstanding chain that starts here, or 0 */
    uint32_t size;   /* entries, a power of two */
    bool event_idx;
    int kick_fd; /* -1: the back-end polls */
    int call_fd; /* -1: never signalled */

    uint16_t avail_next;  /* the next entry of the avail ring to fill; runs free modulo 65536 */
    uint16_t avail_told;  /* avail.idx as published */
    uint16_t kick_tested; /* avail.idx at the last test whether to kick */
    uint16_t used_next;   /* the next used element to take */
    uint16_t free_head;
    uint32_t free_count;
    uint32_t fault;  /* enum driver_fault */
    uint32_t bad_id; /* what DRIVER_FAULT_USED_ID saw */
    uint64_t kicks;  /* signals sent */
    uint64_t calls;  /* signals received, where somebody waits for them */
};

ALWAYS_INLINE uint16_t *driver_used_event(struct driver_ring *ring)
{
    return &ring->avail->ring[ring->size];
}

ALWAYS_INLINE const uint16_t *driver_avail_event(const struct driver_ring *ring)
{
    return (const uint16_t *)&ring->used->ring[ring->size];
}

/* Bytes of the avail and used areas; the event word is there only with EVENT_IDX. */
ALWAYS_INLINE size_t driver_avail_bytes(uint32_t size, bool event_idx)
{
    return sizeof(struct vring_avail) + sizeof(uint16_t) * (size + event_idx);
}

ALWAYS_INLINE size_t driver_used_bytes(uint32_t size, bool event_idx)
{
    return sizeof(struct vring_used) + sizeof(struct vring_used_element) * size +
           sizeof(uint16_t) * event_idx;
}

/* Everything free, nothing offered, the areas blank; both indices begin at `index`. */
static inline void driver_reset(struct driver_ring *ring, uint16_t index)
{
    memset(ring->desc, 0, ring->size * sizeof *ring->desc);
    memset(ring->avail, 0, driver_avail_bytes(ring->size, ring->event_idx));
    memset(ring->used, 0, driver_used_bytes(ring->size, ring->event_idx));
    for (uint32_t i = 0; i < ring->size; i++) {
        ring->next[i] = (uint16_t)((i + 1) & (ring->size - 1));
        ring->count[i] = 0;
    }
    ring->free_head = 0;
    ring->free_count = ring->size;
    ring->avail_next = ring->avail_told = ring->kick_tested = ring->used_next = index;
    ring->fault = DRIVER_FAULT_NONE;
    ring->avail->idx = ring->used->idx = index;
    if (ring->event_idx)
        *driver_used_event(ring) = index;
}

/* --- Offering --- */

/* Puts a chain at the next place of the avail ring; not yet visible. */
ALWAYS_INLINE void driver_offer(struct driver_ring *ring, uint16_t head)
{
    store_once_u16(&ring->avail->ring[ring->avail_next & (ring->size - 1)], head);
    ring->avail_next++;
}

ALWAYS_INLINE void driver_publish(struct driver_ring *ring)
{
    store_release_u16(&ring->avail->idx, ring->avail_next); /* A */
    ring->avail_told = ring->avail_next;
}

/* Whether the back-end asked to be told of what was published since the last test (2.7.10). */
static inline bool driver_kick_wanted(struct driver_ring *ring)
{
    uint16_t before = ring->kick_tested, now = ring->avail_told;
    if (now == before)
        return false;
    fence_full(); /* D */
    ring->kick_tested = now;
    if (!ring->event_idx)
        return !(load_once_u16(&ring->used->flags) & VRING_USED_NO_NOTIFY);
    uint16_t event = load_once_u16(driver_avail_event(ring));
    return (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

static inline void driver_signal(struct driver_ring *ring)
{
    const uint64_t one = 1;
    if (ring->kick_fd >= 0 && write(ring->kick_fd, &one, sizeof one) == (ssize_t)sizeof one)
        ring->kicks++;
}

/* Takes `count` descriptors, known to be free, as a chain and returns its head. The caller fills
 * desc[head], desc[next[head]] and so on. */
static inline uint16_t driver_link(struct driver_ring *ring, uint32_t count)
{
    uint16_t head = ring->free_head, last = head;
    for (uint32_t i = 1; i < count; i++)
        last = ring->next[last];
    ring->free_head = ring->next[last];
    ring->free_count -= count;
    ring->count[head] = (uint16_t)count;
    return head;
}

/* --- Taking back --- */

/* How many used elements wait, or DRIVER_BROKEN. */
ALWAYS_INLINE int driver_used_count(struct driver_ring *ring)
{
    uint16_t used = load_acquire_u16(&ring->used->idx); /* B */
    uint16_t count = (uint16_t)(used - ring->used_next);
    if (unlikely(count > (uint16_t)(ring->avail_told - ring->used_next))) {
        ring->fault = DRIVER_FAULT_USED_INDEX;
        return DRIVER_BROKEN;
    }
    return count;
}

/* The used element at a free-running index that driver_used_count has seen. */
ALWAYS_INLINE struct vring_used_element driver_element(const struct driver_ring *ring,
                                                       uint16_t index)
{
    const struct vring_used_element *at = &ring->used->ring[index & (ring->size - 1)];
    struct vring_used_element element = {load_once_u32(&at->id), load_once_u32(&at->len)};
    return element;
}

static inline int driver_refuse_id(struct driver_ring *ring, uint32_t id)
{
    ring->fault = DRIVER_FAULT_USED_ID;
    ring->bad_id = id;
    return DRIVER_BROKEN;
}

/* Takes a used element and frees its chain's descriptors. */
static inline int driver_take(struct driver_ring *ring, struct vring_used_element *element)
{
    int waiting = driver_used_count(ring);
    if (waiting <= 0)
        return waiting;
    *element = driver_element(ring, ring->used_next);
    if (element->id >= ring->size || ring->count[element->id] == 0)
        return driver_refuse_id(ring, element->id);
    uint32_t count = ring->count[element->id];
    uint16_t last = (uint16_t)element->id;
    for (uint32_t i = 1; i < count; i++)
        last = ring->next[last];
    ring->next[last] = ring->free_head;
    ring->free_head = (uint16_t)element->id;
    ring->free_count += count;
    ring->count[element->id] = 0;
    ring->used_next++;
    return DRIVER_GOT;
}

/* Asks for a call at the next used element, or for none (2.7.7). With EVENT_IDX none means a
 * used_event that stays behind. Returns whether more is used by now: then none may come for it. */
static inline bool driver_want_calls(struct driver_ring *ring, bool wanted)
{
    if (ring->event_idx)
        store_once_u16(driver_used_event(ring), (uint16_t)(ring->used_next - !wanted));
    else
        store_once_u16(&ring->avail->flags, wanted ? 0 : VRING_AVAIL_NO_INTERRUPT);
    fence_full(); /* C */
    return load_once_u16(&ring->used->idx) != ring->used_next;
}

#endif
