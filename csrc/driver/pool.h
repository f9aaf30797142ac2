/* The buffers of one ring, one chain each: slot s is at base + s * stride, all but `gap` bytes of
 * it.
 *
 *   direct     header and frame in one descriptor; head = slot
 *   chained    header and frame in a descriptor each, apart; head = 2 slot
 *   indirect   as chained, in the slot's own table; head = slot
 *
 * The descriptors of a slot never move, so a head tells its slot and a back-end that names one that
 * is not outstanding is caught. Free slots queue in the order of their return.
 */
#ifndef VHOSTFAST_POOL_H
#define VHOSTFAST_POOL_H

#include "driver/vring.h"
#include "driver/frame.h"

enum pool_layout { POOL_DIRECT, POOL_CHAINED, POOL_INDIRECT };

struct pool {
    struct driver_ring *ring;
    uint8_t *base;
    uint64_t gpa;
    uint32_t stride;
    uint32_t gap; /* bytes at the end of a slot that nobody touches */
    uint32_t header_size;
    uint32_t frame_offset; /* of the frame within a slot */
    uint32_t slot_count;   /* a power of two */
    uint32_t head_shift;   /* head = slot << head_shift */
    enum pool_layout layout;
    uint16_t desc_flags; /* VRING_DESC_WRITE where the device fills */
    struct vring_desc *tables;
    uint64_t tables_gpa;
    uint32_t table_size; /* descriptors from one table to the next */

    uint16_t *free; /* [slot_count] a queue */
    uint32_t free_first, free_count;
    uint8_t *offered; /* [slot_count] */
};

ALWAYS_INLINE uint8_t *pool_slot(const struct pool *pool, uint32_t slot)
{
    return pool->base + (size_t)slot * pool->stride;
}

ALWAYS_INLINE uint8_t *pool_frame(const struct pool *pool, uint32_t slot)
{
    return pool_slot(pool, slot) + pool->frame_offset;
}

/* Bytes that a chain holds, header included. */
ALWAYS_INLINE uint32_t pool_room(const struct pool *pool)
{
    return pool->header_size + pool->stride - pool->gap - pool->frame_offset;
}

static inline void pool_split(const struct pool *pool, struct vring_desc *header,
                              struct vring_desc *frame, uint32_t slot, uint32_t size)
{
    uint64_t gpa = pool->gpa + (uint64_t)slot * pool->stride;
    header->addr = gpa;
    header->len = pool->header_size;
    header->flags = VRING_DESC_NEXT | pool->desc_flags;
    frame->addr = gpa + pool->frame_offset;
    frame->len = size - pool->header_size;
    frame->flags = pool->desc_flags;
    frame->next = 0;
}

/* Writes the slot's descriptors for `size` bytes, header included. */
ALWAYS_INLINE void pool_describe(const struct pool *pool, uint32_t slot, uint32_t size)
{
    uint16_t head = (uint16_t)(slot << pool->head_shift);
    struct vring_desc *desc = &pool->ring->desc[head];
    if (likely(pool->layout == POOL_DIRECT)) {
        desc->addr = pool->gpa + (uint64_t)slot * pool->stride;
        desc->len = size;
        desc->flags = pool->desc_flags;
    } else if (pool->layout == POOL_CHAINED) {
        pool_split(pool, desc, desc + 1, slot, size);
        desc->next = head + 1;
    } else {
        uint64_t first = (uint64_t)slot * pool->table_size;
        struct vring_desc *table = &pool->tables[first];
        pool_split(pool, &table[0], &table[1], slot, size);
        table[0].next = 1;
        desc->addr = pool->tables_gpa + first * sizeof *desc;
        desc->len = 2 * sizeof *desc;
        desc->flags = VRING_DESC_INDIRECT;
    }
}

/* All free, all described for `size` bytes, each header zero. */
static inline void pool_reset(struct pool *pool, uint32_t size)
{
    pool->free_first = 0;
    pool->free_count = pool->slot_count;
    for (uint32_t slot = 0; slot < pool->slot_count; slot++) {
        memset(pool_slot(pool, slot), 0, pool->stride - pool->gap);
        pool_describe(pool, slot, size);
        pool->free[slot] = (uint16_t)slot;
        pool->offered[slot] = 0;
    }
}

/* The slot that has been free longest; there is one. */
ALWAYS_INLINE uint32_t pool_get(struct pool *pool)
{
    uint32_t slot = pool->free[pool->free_first];
    pool->free_first = (pool->free_first + 1) & (pool->slot_count - 1);
    pool->free_count--;
    return slot;
}

/* The slot that `pool_get` gives after `ahead` others. */
ALWAYS_INLINE uint32_t pool_next(const struct pool *pool, uint32_t ahead)
{
    return pool->free[(pool->free_first + ahead) & (pool->slot_count - 1)];
}

ALWAYS_INLINE void pool_put(struct pool *pool, uint32_t slot)
{
    pool->free[(pool->free_first + pool->free_count) & (pool->slot_count - 1)] = (uint16_t)slot;
    pool->free_count++;
}

ALWAYS_INLINE void pool_offer(struct pool *pool, uint32_t slot)
{
    pool->offered[slot] = 1;
    driver_offer(pool->ring, (uint16_t)(slot << pool->head_shift));
}

/* The slot of a used element, no longer on offer; or DRIVER_BROKEN. */
ALWAYS_INLINE int pool_back(struct pool *pool, uint32_t id)
{
    uint32_t slot = id >> pool->head_shift;
    if (unlikely(slot >= pool->slot_count || slot << pool->head_shift != id ||
                 !pool->offered[slot]))
        return driver_refuse_id(pool->ring, id);
    pool->offered[slot] = 0;
    return (int)slot;
}

/* Copies the first `size` bytes of the slot's chain but for its first `skip`. */
static inline uint8_t *pool_gather(const struct pool *pool, uint32_t slot, uint32_t skip,
                                   uint32_t size, uint8_t *to)
{
    uint32_t header_end = size < pool->header_size ? size : pool->header_size;
    if (skip < header_end) {
        memcpy(to, pool_slot(pool, slot) + skip, header_end - skip);
        to += header_end - skip;
        skip = header_end;
    }
    if (size > skip) {
        memcpy(to, pool_frame(pool, slot) + skip - pool->header_size, size - skip);
        to += size - skip;
    }
    return to;
}

#endif
