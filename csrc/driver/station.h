/* Senders and receivers of frames that prove themselves, in bursts.
 *
 *   full    each packet is written and described anew; what comes is checked, every byte of every
 *           verify_every-th frame
 *   touch   buffers and descriptors are prepared once; of each packet the ring entries and one
 *           line of the payload are read and written, its sequence among them
 *   lean    prepared once; only the indices move. What came back is offered again as it is, so
 *           this needs a back-end that gives back in order: the end of each burst is held to that.
 *           Now and then a buffer is blanked and, once filled again, checked.
 *
 * The loads touch and lean repeat the prepared frames, lean with their sequences.
 */
#ifndef VHOSTFAST_STATION_H
#define VHOSTFAST_STATION_H

#include "driver/flow.h"
#include "driver/pool.h"

enum traffic_limit {
    TRAFFIC_BURST = 64,
    TRAFFIC_SIZES_MAX = 16, /* of frames, taken in turn */
    TRAFFIC_FLOWS_MAX = 64,
};

enum load { LOAD_FULL, LOAD_TOUCH, LOAD_LEAN };

/* Counters are written by the loop alone, and read by anyone meanwhile. */
struct sender {
    struct pool pool;
    uint64_t station[2]; /* struct frame's */
    uint32_t size[TRAFFIC_SIZES_MAX];
    uint32_t size_count;
    uint64_t limit; /* packets to send */
    uint64_t sent;  /* offered so far; the next sequence */
    uint64_t done;  /* given back */
    uint64_t bytes; /* of frames offered */
};

struct receiver {
    struct pool pool;
    struct flow *flows; /* [TRAFFIC_FLOWS_MAX], the guest's, by flow id */
    uint8_t *scratch;   /* room for one frame that lies in several buffers */
    bool mergeable;
    uint32_t verify_every; /* a power of two */
    uint64_t packets; /* of ours, good ones */
    uint64_t bytes;   /* of their frames */
    uint64_t corrupt;
    uint64_t foreign;  /* frames of somebody else's */
    uint64_t foreign_bytes;
    uint64_t verified; /* checked in every byte */
    uint64_t buffers;  /* taken back */

    /* lean: the next buffer to blank, or to check once it was blanked */
    uint32_t buffers_each; /* of a packet */
    uint32_t frame_size;   /* of all packets; 0: they differ */
    uint64_t sample_at;    /* in `buffers` */
    bool sample_blank;
};

ALWAYS_INLINE void count_to(uint64_t *counter, uint64_t value) { store_once_u64(counter, value); }
ALWAYS_INLINE void count_up(uint64_t *counter, uint64_t n) { count_to(counter, *counter + n); }

static inline void traffic_tell(struct driver_ring *ring)
{
    driver_publish(ring);
    if (driver_kick_wanted(ring))
        driver_signal(ring);
}

/* The next `count` used elements. The back-end had these lines last, and they come from its cache:
 * all of a burst at once, not one by one. */
ALWAYS_INLINE void station_look_at_used(const struct driver_ring *ring, uint32_t count)
{
    for (uint32_t i = 0; i < count; i += CACHE_LINE / sizeof(struct vring_used_element))
        __builtin_prefetch(&ring->used->ring[(ring->used_next + i) & (ring->size - 1)], 0);
}

/* --- Sending --- */

ALWAYS_INLINE uint32_t sender_size(const struct sender *sender, uint64_t sequence)
{
    return sender->size_count == 1 ? sender->size[0] : sender->size[sequence % sender->size_count];
}

/* Offers up to a burst out of what is free. */
ALWAYS_INLINE uint32_t sender_offer(struct sender *sender, enum load load)
{
    struct pool *pool = &sender->pool;
    uint64_t left = sender->limit - sender->sent, sequence = sender->sent, bytes = 0;
    uint32_t count = pool->free_count < TRAFFIC_BURST ? pool->free_count : TRAFFIC_BURST;
    count = left < count ? (uint32_t)left : count;
    for (uint32_t i = 0; i < count; i++)
        __builtin_prefetch(pool_slot(pool, pool_next(pool, i)), 1);
    for (uint32_t i = 0; i < count; i++, sequence++) {
        uint32_t slot = pool_get(pool);
        uint8_t *frame = pool_frame(pool, slot);
        uint32_t size = sender_size(sender, load == LOAD_FULL ? sequence : slot);
        if (load == LOAD_FULL) {
            memset(pool_slot(pool, slot), 0, pool->header_size);
            frame_fill(frame, sender->station, sequence, size);
            pool_describe(pool, slot, pool->header_size + size);
        } else {
            *(u64_any *)(frame + offsetof(struct frame, sequence)) = sequence;
        }
        bytes += size;
        pool_offer(pool, slot);
    }
    if (count == 0)
        return 0;
    count_to(&sender->sent, sequence);
    count_up(&sender->bytes, bytes);
    traffic_tell(pool->ring);
    return count;
}

/* Offers one frame with a sequence that is given, as LOAD_TOUCH has prepared it; there is a free
 * slot. Not yet published. */
ALWAYS_INLINE void sender_answer(struct sender *sender, uint64_t sequence)
{
    uint32_t slot = pool_get(&sender->pool);
    uint8_t *frame = pool_frame(&sender->pool, slot);
    *(u64_any *)(frame + offsetof(struct frame, sequence)) = sequence;
    count_up(&sender->sent, 1);
    count_up(&sender->bytes, sender_size(sender, slot));
    pool_offer(&sender->pool, slot);
}

/* Takes back what was sent. */
static inline int sender_reclaim(struct sender *sender)
{
    struct pool *pool = &sender->pool;
    int count = driver_used_count(pool->ring);
    if (count > 0)
        station_look_at_used(pool->ring, (uint32_t)count);
    for (int i = 0; i < count; i++) {
        struct vring_used_element element = driver_element(pool->ring, pool->ring->used_next);
        int slot = pool_back(pool, element.id);
        if (unlikely(slot < 0))
            return slot;
        pool->ring->used_next++;
        pool_put(pool, (uint32_t)slot);
    }
    if (count > 0)
        count_up(&sender->done, (uint64_t)count);
    return count;
}

/* --- Receiving --- */

/* What a burst has brought; added to the receiver's counters once. */
struct tally {
    uint64_t packets, bytes, verified;
    uint64_t sequence; /* of the last good one */
};

ALWAYS_INLINE enum frame_verdict receiver_judge(struct receiver *receiver, struct tally *tally,
                                                const uint8_t *at, uint32_t size, bool exact)
{
    if (unlikely(size < FRAME_PROVEN_MIN))
        return FRAME_FOREIGN;
    struct frame frame = frame_load(at);
    enum frame_verdict verdict = frame_look(&frame, size, exact);
    if (unlikely(verdict != FRAME_GOOD))
        return verdict;
    uint64_t looked = receiver->packets + tally->packets + receiver->corrupt;
    if ((looked & (receiver->verify_every - 1)) == 0) {
        tally->verified++;
        if (unlikely(!frame_holds(at, &frame)))
            return FRAME_CORRUPT;
    }
    uint32_t flow = frame_flow(&frame);
    if (unlikely(flow >= TRAFFIC_FLOWS_MAX || !flow_note(&receiver->flows[flow], frame.sequence)))
        return FRAME_CORRUPT;
    tally->sequence = frame.sequence;
    return FRAME_GOOD;
}

/* A frame has come: counts it. `exact` for frames that were written anew. */
ALWAYS_INLINE void receiver_note(struct receiver *receiver, struct tally *tally, const uint8_t *at,
                                 uint32_t size, bool exact)
{
    enum frame_verdict verdict = receiver_judge(receiver, tally, at, size, exact);
    if (likely(verdict == FRAME_GOOD)) {
        tally->packets++;
        tally->bytes += size;
    } else if (verdict == FRAME_FOREIGN) {
        count_up(&receiver->foreign, 1);
        count_up(&receiver->foreign_bytes, size);
    } else {
        count_up(&receiver->corrupt, 1);
    }
}

/* Offers again what was taken: at the end of a burst, so that a buffer that is given back twice is
 * not on offer the second time. */
ALWAYS_INLINE void receiver_post(struct receiver *receiver, enum load load)
{
    struct pool *pool = &receiver->pool;
    while (pool->free_count) {
        uint32_t slot = pool_get(pool);
        uint8_t *sequence = pool_frame(pool, slot) + offsetof(struct frame, sequence);
        if (load == LOAD_FULL)
            pool_describe(pool, slot, pool_room(pool));
        else
            *(u64_any *)sequence = UINT64_MAX;
        pool_offer(pool, slot);
    }
    traffic_tell(pool->ring);
}

/* How many buffers the packet takes that begins in `slot`. */
ALWAYS_INLINE uint32_t receiver_buffers(const struct receiver *receiver, uint32_t slot)
{
    const struct net_header *header = (const struct net_header *)pool_slot(&receiver->pool, slot);
    return receiver->mergeable ? header->num_buffers : 1;
}

/* A packet over several buffers, gathered and counted; as many used elements as it took. */
static inline int receiver_take_merged(struct receiver *receiver, struct tally *tally,
                                       uint32_t count, uint32_t waiting, bool exact)
{
    struct pool *pool = &receiver->pool;
    struct driver_ring *ring = pool->ring;
    uint8_t *end = receiver->scratch;
    bool whole = count > 0 && count <= waiting;
    count = whole ? count : 1; /* its rest is not there: virtio 1.3, 5.1.6.4 */
    for (uint32_t i = 0; i < count; i++) {
        struct vring_used_element element = driver_element(ring, ring->used_next);
        int slot = pool_back(pool, element.id);
        if (slot < 0)
            return slot;
        uint32_t skip = i == 0 ? pool->header_size : 0;
        uint64_t filled = (uint64_t)(end - receiver->scratch) + element.len;
        whole = whole && element.len <= pool_room(pool) && filled <= FRAME_SIZE_MAX &&
                element.len >= skip;
        if (whole)
            end = pool_gather(pool, (uint32_t)slot, skip, element.len, end);
        ring->used_next++;
        pool_put(pool, (uint32_t)slot);
    }
    if (whole)
        receiver_note(receiver, tally, receiver->scratch, (uint32_t)(end - receiver->scratch),
                      exact);
    else
        count_up(&receiver->corrupt, 1);
    return (int)count;
}

/* The next packet; as many used elements as it took. */
ALWAYS_INLINE int receiver_take(struct receiver *receiver, struct tally *tally, uint32_t waiting,
                                bool exact)
{
    struct pool *pool = &receiver->pool;
    struct driver_ring *ring = pool->ring;
    struct vring_used_element element = driver_element(ring, ring->used_next);
    uint32_t slot = element.id >> pool->head_shift;
    if (unlikely(slot >= pool->slot_count))
        return driver_refuse_id(ring, element.id);
    uint32_t count = receiver_buffers(receiver, slot);
    if (unlikely(count != 1))
        return receiver_take_merged(receiver, tally, count, waiting, exact);
    if (unlikely(pool_back(pool, element.id) < 0))
        return DRIVER_BROKEN;
    ring->used_next++;
    if (likely(element.len >= pool->header_size && element.len <= pool_room(pool)))
        receiver_note(receiver, tally, pool_frame(pool, slot), element.len - pool->header_size,
                      exact);
    else
        count_up(&receiver->corrupt, 1);
    pool_put(pool, slot);
    return 1;
}

/* The first lines of what has come. */
ALWAYS_INLINE void receiver_look_at_frames(const struct receiver *receiver, uint32_t count)
{
    const struct pool *pool = &receiver->pool;
    station_look_at_used(pool->ring, count);
    for (uint32_t i = 0; i < count; i++) {
        uint16_t index = (uint16_t)(pool->ring->used_next + i);
        uint32_t slot = driver_element(pool->ring, index).id >> pool->head_shift;
        __builtin_prefetch(pool_slot(pool, slot & (pool->slot_count - 1)), 1);
    }
}

ALWAYS_INLINE void receiver_count(struct receiver *receiver, const struct tally *tally,
                                  uint64_t buffers)
{
    count_up(&receiver->packets, tally->packets);
    count_up(&receiver->bytes, tally->bytes);
    count_up(&receiver->verified, tally->verified);
    count_up(&receiver->buffers, buffers);
}

ALWAYS_INLINE int receiver_burst(struct receiver *receiver, enum load load)
{
    struct tally tally = {0};
    int waiting = driver_used_count(receiver->pool.ring), taken = 0;
    if (waiting <= 0)
        return waiting;
    receiver_look_at_frames(receiver, waiting < TRAFFIC_BURST ? (uint32_t)waiting : TRAFFIC_BURST);
    for (uint32_t i = 0; i < TRAFFIC_BURST && taken < waiting; i++) {
        int count = receiver_take(receiver, &tally, (uint32_t)(waiting - taken),
                                  load == LOAD_FULL);
        if (unlikely(count < 0))
            return count;
        taken += count;
    }
    receiver_count(receiver, &tally, (uint64_t)taken);
    receiver_post(receiver, load);
    return taken;
}

#endif
