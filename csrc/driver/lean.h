/* The lean load: buffers, descriptors and the avail ring are prepared once, then only indices move.
 *
 * The avail ring is full of heads in their order, and what came back is offered again as it is:
 * the back-end must give back in order, and the end of each burst is held to that. Frames repeat,
 * so loss shows in the counts alone. Now and then a buffer is blanked and, when it has come back
 * filled, checked; receiver_check_all looks at them all when the ring has stopped.
 */
#ifndef VHOSTFAST_LEAN_H
#define VHOSTFAST_LEAN_H

#include "driver/station.h"

/* Every head, in order, all round the avail ring. */
static inline void lean_prepare(struct pool *pool)
{
    struct driver_ring *ring = pool->ring;
    for (uint32_t i = 0; i < ring->size; i++) {
        uint32_t slot = i & (pool->slot_count - 1);
        uint32_t place = (ring->avail_next + i) & (ring->size - 1);
        ring->avail->ring[place] = (uint16_t)(slot << pool->head_shift);
    }
}

ALWAYS_INLINE uint16_t lean_head(const struct pool *pool, uint16_t index)
{
    return pool->ring->avail->ring[index & (pool->ring->size - 1)];
}

static inline int lean_check_order(struct pool *pool, int count)
{
    struct driver_ring *ring = pool->ring;
    uint16_t last = (uint16_t)(ring->used_next + count - 1);
    uint32_t id = driver_element(ring, last).id;
    return id == lean_head(pool, last) ? count : driver_refuse_id(ring, id);
}

static inline int sender_lean(struct sender *sender, bool sending)
{
    struct pool *pool = &sender->pool;
    struct driver_ring *ring = pool->ring;
    int count = driver_used_count(ring);
    if (count > 0) {
        if (lean_check_order(pool, count) < 0)
            return DRIVER_BROKEN;
        ring->used_next += (uint16_t)count;
        count_up(&sender->done, (uint64_t)count);
    }
    uint64_t left = sending ? sender->limit - sender->sent : 0;
    uint32_t room = pool->slot_count - (uint16_t)(ring->avail_next - ring->used_next);
    room = left < room ? (uint32_t)left : room;
    if (count < 0 || room == 0)
        return count;
    uint64_t bytes = (uint64_t)room * sender->size[0];
    if (sender->size_count > 1) {
        bytes = 0;
        for (uint32_t i = 0; i < room; i++)
            bytes += sender_size(sender, (sender->sent + i) & (pool->slot_count - 1));
    }
    count_up(&sender->bytes, bytes);
    ring->avail_next += (uint16_t)room;
    count_up(&sender->sent, room);
    traffic_tell(ring);
    return (int)room;
}

/* Gathers the packet whose first buffer was `index` in the avail ring; its size, header apart. */
static inline uint32_t lean_gather(struct receiver *receiver, uint16_t index)
{
    const struct pool *pool = &receiver->pool;
    uint8_t *to = receiver->scratch;
    uint32_t left = pool->header_size + receiver->frame_size;
    for (uint32_t i = 0; i < receiver->buffers_each; i++, index++) {
        uint32_t part = left < pool_room(pool) ? left : pool_room(pool);
        uint32_t slot = (uint32_t)lean_head(pool, index) >> pool->head_shift;
        to = pool_gather(pool, slot, i == 0 ? pool->header_size : 0, part, to);
        left -= part;
    }
    return (uint32_t)(to - receiver->scratch);
}

static inline void lean_check(struct receiver *receiver, uint16_t index)
{
    uint32_t size = receiver->frame_size;
    const uint8_t *at = receiver->scratch;
    if (receiver->buffers_each > 1) {
        lean_gather(receiver, index);
    } else {
        uint32_t slot = (uint32_t)lean_head(&receiver->pool, index) >> receiver->pool.head_shift;
        at = pool_frame(&receiver->pool, slot);
    }
    struct frame frame = frame_load(at);
    if (size == 0 && frame_size(&frame) <= pool_room(&receiver->pool)) /* they differ: it says */
        size = frame_size(&frame);
    count_up(&receiver->verified, 1);
    if (size < FRAME_PROVEN_MIN || frame_look(&frame, size, false) != FRAME_GOOD ||
        !frame_holds(at, &frame))
        count_up(&receiver->corrupt, 1);
}

static inline void lean_blank(struct receiver *receiver, uint16_t index)
{
    const struct pool *pool = &receiver->pool;
    for (uint32_t i = 0; i < receiver->buffers_each; i++, index++)
        memset(pool_slot(pool, (uint32_t)lean_head(pool, index) >> pool->head_shift), 0,
               pool->stride - pool->gap);
}

/* From a packet's first buffer to where the same memory is filled again: once round the ring. */
static inline uint64_t lean_round(const struct receiver *receiver)
{
    uint64_t each = receiver->buffers_each;
    return (receiver->pool.slot_count + each - 1) / each * each;
}

/* Buffers up to number `end` are back: blanks those of the packet whose turn it is, or checks them
 * a round later. */
static inline void lean_sample(struct receiver *receiver, uint64_t end)
{
    uint64_t each = receiver->buffers_each;
    uint64_t pause = receiver->verify_every * each;
    uint16_t start = (uint16_t)(receiver->pool.ring->used_next - receiver->buffers);
    while (receiver->sample_at + each <= end) {
        uint16_t index = (uint16_t)(start + receiver->sample_at);
        if (receiver->sample_blank)
            lean_blank(receiver, index);
        else
            lean_check(receiver, index);
        receiver->sample_at += receiver->sample_blank ? lean_round(receiver) : pause;
        receiver->sample_blank = !receiver->sample_blank;
    }
}

static inline int receiver_lean(struct receiver *receiver)
{
    struct pool *pool = &receiver->pool;
    struct driver_ring *ring = pool->ring;
    int count = driver_used_count(ring);
    if (count <= 0)
        return count;
    if (lean_check_order(pool, count) < 0)
        return DRIVER_BROKEN;
    uint64_t buffers = receiver->buffers + (uint64_t)count;
    if (unlikely(receiver->sample_at + receiver->buffers_each <= buffers))
        lean_sample(receiver, buffers);
    ring->used_next += (uint16_t)count;
    ring->avail_next += (uint16_t)count;
    count_to(&receiver->buffers, buffers);
    count_to(&receiver->packets, buffers / receiver->buffers_each);
    count_to(&receiver->bytes, receiver->packets * receiver->frame_size);
    traffic_tell(ring);
    return count;
}

/* Checks every buffer that was ever filled, but for one that is blank still. Only when the back-end
 * has stopped the ring. */
static inline void lean_check_all(struct receiver *receiver)
{
    uint64_t each = receiver->buffers_each, slots = receiver->pool.slot_count;
    uint64_t packets = receiver->buffers / each;
    uint64_t first = packets > slots / each ? packets - slots / each : 0;
    bool blanked = !receiver->sample_blank;
    uint64_t blank = blanked ? receiver->sample_at - lean_round(receiver) : UINT64_MAX;
    uint16_t start = (uint16_t)(receiver->pool.ring->used_next - receiver->buffers);
    for (uint64_t packet = first; packet < packets; packet++) {
        if (packet * each != blank)
            lean_check(receiver, (uint16_t)(start + packet * each));
    }
}

#endif
