/* The direct path: a group of packets at once, of the shapes that are common on both sides: header
 * and frame in one descriptor, or in one each, of the ring or of a table.
 *
 * It looks ahead, takes what it can, and leaves whatever is unusual in any way to the general path
 * (forward.h). What both do with a packet is the same, to the byte.
 */
#ifndef VHOSTFAST_DIRECT_H
#define VHOSTFAST_DIRECT_H

#include "burst.h"
#include "nethdr.h"

typedef uint64_t u64x4 __attribute__((vector_size(32), aligned(8), may_alias));
_Static_assert(GROUP_SIZE % 4 == 0 && GROUP_SIZE > 4, "direct_mark_gaps goes by fours");

/* A group's chains, of a common shape and checked: the frame lies in the header's descriptor, right
 * behind it; or, `paired`, in any place of its own. */
struct direct {
    uint8_t *header[GROUP_SIZE];
    uint64_t gpa[GROUP_SIZE];
    uint32_t size[GROUP_SIZE]; /* with the header */
    uint32_t head[GROUP_SIZE];
    uint8_t *frame[GROUP_SIZE]; /* paired only */
    uint64_t frame_gpa[GROUP_SIZE];
};

ALWAYS_INLINE uint8_t *direct_frame(const struct direct *direct, uint32_t at, uint32_t header_size,
                                    const bool paired)
{
    return paired ? direct->frame[at] : direct->header[at] + header_size;
}

ALWAYS_INLINE uint64_t direct_frame_gpa(const struct direct *direct, uint32_t at,
                                        uint32_t header_size, const bool paired)
{
    return paired ? direct->frame_gpa[at] : direct->gpa[at] + header_size;
}

/* Two calls, for the compiler wants the kind of access as a literal. */
ALWAYS_INLINE void prefetch(const uint8_t *at, const enum direction direction)
{
    if (direction == DEVICE_WRITES)
        __builtin_prefetch(at, 1);
    else
        __builtin_prefetch(at, 0);
}

/* The lines of the next `count` used elements are the driver's, which has read them. */
ALWAYS_INLINE void prefetch_used(struct ring *ring, uint32_t count)
{
    for (uint32_t i = 0; i < count; i += CACHE_LINE / sizeof(struct vring_used_element))
        __builtin_prefetch(&ring->used->ring[(ring->used_next + i) & (ring->size - 1)], 1);
}

/* Header and frame in a descriptor each, of the ring or of a table of their own. */
ALWAYS_INLINE bool peek_pair(struct ring *ring, struct vring_desc desc, struct direct *direct,
                             uint32_t at, const enum direction direction)
{
    const struct vring_desc *table = ring->desc;
    uint32_t count = ring->size;
    uint64_t reach;
    if (desc.flags == VRING_DESC_INDIRECT) {
        table = (const void *)region_at(ring->regions, &ring->last_region, desc.addr, &reach);
        if (table == NULL || desc.len != 2 * sizeof *table || desc.len > reach || count < 2 ||
            !ring->indirect)
            return false;
        desc = load_once_desc(table);
        count = 2;
    }
    uint8_t *header = region_at(ring->regions, &ring->last_region, desc.addr, &reach);
    direct->header[at] = header;
    direct->gpa[at] = desc.addr;
    if (desc.flags != (direction | VRING_DESC_NEXT) || desc.len != ring->header_size ||
        header == NULL || desc.len > reach || desc.next >= count)
        return false;
    desc = load_once_desc(&table[desc.next]);
    uint8_t *frame = region_at(ring->regions, &ring->last_region, desc.addr, &reach);
    direct->frame[at] = frame;
    direct->frame_gpa[at] = desc.addr;
    direct->size[at] = ring->header_size + desc.len; /* one that wraps is too small, and left */
    if (desc.flags != direction || frame == NULL || desc.len > reach)
        return false;
    prefetch(header, direction);
    prefetch(frame, direction);
    prefetch(frame + CACHE_LINE, direction);
    return true;
}

ALWAYS_INLINE bool peek_single(struct ring *ring, struct vring_desc desc, struct direct *direct,
                               uint32_t at, const enum direction direction, const bool paired)
{
    uint64_t reach;
    uint8_t *host = region_at(ring->regions, &ring->last_region, desc.addr, &reach);
    if (unlikely(desc.flags != direction || host == NULL || desc.len > reach))
        return false;
    prefetch(host, direction);
    prefetch(host + CACHE_LINE, direction);
    direct->header[at] = host;
    direct->gpa[at] = desc.addr;
    direct->size[at] = desc.len;
    if (paired) {
        direct->frame[at] = host + ring->header_size;
        direct->frame_gpa[at] = desc.addr + ring->header_size;
    }
    return true;
}

/* Look ahead, taking nothing, at up to `wanted` chains; stop at the first that isn't of a common
 * shape. `odd`: that was the very first. */
ALWAYS_INLINE uint32_t peek_direct(struct ring *ring, struct direct *direct, uint32_t wanted,
                                   const enum direction direction, const bool paired, bool *odd)
{
    int waiting = split_waiting(ring, wanted);
    uint32_t limit = waiting < (int)wanted ? (uint32_t)(waiting < 0 ? 0 : waiting) : wanted;
    prefetch_used(ring, limit);
    for (uint32_t i = 0; i < limit; i++) {
        uint32_t head =
            load_once_u16(&ring->avail->ring[(ring->last_avail + i) & (ring->size - 1)]);
        if (unlikely(head >= ring->size))
            return i;
        struct vring_desc desc = load_once_desc(&ring->desc[head]);
        if (!peek_single(ring, desc, direct, i, direction, paired) &&
            !(paired && peek_pair(ring, desc, direct, i, direction))) {
            *odd = i == 0;
            return i;
        }
        direct->head[i] = head;
    }
    return limit;
}

/* What lies between the buffers of a whole group, or'ed: from each header's end to its frame, and
 * from each frame's to the next header, of which the last has none. */
ALWAYS_INLINE uint64_t direct_mark_gaps(const struct direct *room, const uint32_t *sent_size,
                                        uint32_t skip, uint32_t header_size, const bool paired)
{
    u64x4 gaps = {0};
    for (uint32_t i = 0; i < GROUP_SIZE; i += 4) {
        const uint32_t at = i + 4 < GROUP_SIZE ? i : GROUP_SIZE - 5;
        const uint64_t *frame = paired ? &room->frame_gpa[at] : &room->gpa[at];
        const u64x4 size = {sent_size[at], sent_size[at + 1], sent_size[at + 2], sent_size[at + 3]};
        gaps |= *(const u64x4 *)&room->gpa[at + 1] - *(const u64x4 *)frame - size -
                (paired ? 0 : header_size) + skip;
        if (paired)
            gaps |= *(const u64x4 *)&room->frame_gpa[i] - *(const u64x4 *)&room->gpa[i] -
                    header_size;
    }
    return gaps[0] | gaps[1] | gaps[2] | gaps[3];
}

static __attribute__((noinline)) void direct_mark_each(struct ring *ring, const struct direct *room,
                                                       const uint32_t *sent_size, uint32_t skip,
                                                       uint32_t count, bool paired)
{
    const uint32_t header_size = ring->header_size;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t frame_gpa = direct_frame_gpa(room, i, header_size, paired);
        log_mark(&ring->marker, room->gpa[i], header_size); /* step: gather */
        log_mark(&ring->marker, frame_gpa, sent_size[i] - skip); /* step: gather */
    }
}

/* What was stored into these buffers: a header, and a frame of the size of the one sent. Those of a
 * whole group that follow each other, as most do, are marked as what they are, one run. */
ALWAYS_INLINE void direct_mark_group(struct ring *ring, const struct direct *room,
                                     const uint32_t *sent_size, uint32_t skip, uint32_t count,
                                     const bool paired)
{
    const uint32_t header_size = ring->header_size, last = count - 1;
    const uint64_t end =
        direct_frame_gpa(room, last, header_size, paired) + (sent_size[last] - skip);
    if (likely(count == GROUP_SIZE && direct_mark_gaps(room, sent_size, skip, header_size, paired) <
                                          UINT64_C(1) << LOG_PAGE_SHIFT))
        log_mark(&ring->marker, room->gpa[0], end - room->gpa[0]); /* step: gather */
    else
        direct_mark_each(ring, room, sent_size, skip, count, paired);
}

/* Of a frame, as it was decided by. */
struct addresses {
    uint64_t to, from;
};

/* Over what was copied, for the sender may have changed it since. */
ALWAYS_INLINE void store_addresses(uint8_t *frame, const struct addresses *addresses)
{
    *(volatile u64_any *)frame = addresses->to | addresses->from << 48;
    *(volatile u32_any *)(frame + 8) = (uint32_t)(addresses->from >> 16);
}

/* `said` is its first eight bytes; of a plain one it is 0, and so is csum_offset. */
ALWAYS_INLINE void store_net_header(uint8_t *to, uint32_t header_size, uint64_t said,
                                    uint16_t csum_offset)
{
    *(volatile u64_any *)to = said;
    if (likely(header_size == NET_HEADER_SIZE))
        *(volatile u32_any *)(to + 8) = UINT32_C(1) << 16 | csum_offset; /* num_buffers 1 */
    else
        *(volatile u16_any *)(to + 8) = csum_offset;
}

/* The copies of a group, of its frames from `first` on. What is taken is noted at its end only, of
 * both rings: a group that breaks off was not there. Returns how many went; the next one isn't of
 * the common shape, or there is no next one. */
ALWAYS_INLINE uint32_t copy_direct(struct ring *from, struct ring *to, const struct direct *sent,
                                   uint32_t first, const struct addresses *addresses,
                                   uint32_t sent_count, uint64_t *bytes, const uint32_t width,
                                   const bool paired, bool *odd)
{
    struct direct room;
    const uint32_t skip = from->header_size, header_size = to->header_size;
    uint32_t limit = peek_direct(to, &room, sent_count, DEVICE_WRITES, paired, odd), i;
    for (i = 0; i < limit; i++) {
        const uint32_t at = first + i, size = sent->size[at] - skip;
        if (unlikely(sent->size[at] < skip + FRAME_SIZE_MIN || size > to->frame_size_max ||
                     room.size[i] < header_size + size))
            break;
        uint64_t said = *(const volatile u64_any *)sent->header[at];
        if (likely((said & NET_HEADER_OFFLOADS) == 0)) {
            store_net_header(room.header[i], header_size, 0, 0);
        } else {
            uint16_t csum_offset = *(const volatile u16_any *)(sent->header[at] + 8);
            if (!nethdr_partial(&said, csum_offset, size, from->offloads & to->offloads))
                break;
            store_net_header(room.header[i], header_size, said, csum_offset);
        }
        uint8_t *frame = direct_frame(&room, i, header_size, paired);
        /* step: bytes */
        copy_bytes(frame, direct_frame(sent, at, skip, paired), size, width);
        if (addresses != NULL)
            store_addresses(frame, &addresses[at]);
        split_push(to, room.head[i], header_size + size);
        split_push(from, sent->head[at], 0);
        *bytes += size;
    }
    if (unlikely(to->marker.log != NULL) && i > 0)
        direct_mark_group(to, &room, &sent->size[first], skip, i, paired);
    from->last_avail += (uint16_t)i;
    to->last_avail += (uint16_t)i;
    return i;
}

/* To whom and from whom the frames of a group are, read once; their places in the table are fetched
 * together. The number that have both. */
ALWAYS_INLINE uint32_t direct_addresses(struct fdb *fdb, const struct direct *sent, uint32_t skip,
                                        struct addresses *addresses, uint32_t count,
                                        const bool paired)
{
    for (uint32_t i = 0; i < count; i++) {
        if (unlikely(sent->size[i] < skip + FRAME_SIZE_MIN))
            return i;
        const uint8_t *frame = direct_frame(sent, i, skip, paired);
        uint64_t to = mac_load(frame), from = mac_load(frame + 6);
        if (i == 0 || to != addresses[i - 1].to)
            __builtin_prefetch(fdb_bucket_of(fdb, to), 0);
        if (i == 0 || from != addresses[i - 1].from)
            __builtin_prefetch(fdb_bucket_of(fdb, from), 0);
        addresses[i] = (struct addresses){.to = to, .from = from};
    }
    return count;
}

/* The port that the first of these frames is for, and how many in a row; NULL where the general
 * path has to decide. */
ALWAYS_INLINE struct port *direct_target(struct fabric *fabric, const struct port *from,
                                         const struct addresses *addresses, uint32_t *count)
{
    int target = FDB_NOWHERE;
    uint32_t run = 0;
    for (; run < *count; run++) {
        const struct addresses *now = &addresses[run], *last = &addresses[run - 1];
        if (run == 0 || now->to != last->to) {
            int index = mac_is_group(now->to) ? FDB_NOWHERE : fdb_find(&fabric->fdb, now->to);
            if (index == FDB_NOWHERE || index == (int)from->index ||
                (run > 0 && index != target))
                break;
            target = index;
        }
    }
    *count = run;
    return run > 0 ? fabric->by_index[target] : NULL;
}

/* From where the frames came that were lawful, and went. */
ALWAYS_INLINE void direct_learn(struct fdb *fdb, const struct port *from,
                                const struct addresses *addresses, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (i == 0 || addresses[i].from != addresses[i - 1].from)
            fdb_learn(fdb, addresses[i].from, from->index);
}

/* The direct path: a group of packets, as many in a row as are for one receiver at a time. Returns
 * how many went. */
ALWAYS_INLINE uint32_t forward_direct(struct burst *burst, struct source *source,
                                      const uint32_t width, const bool paired, const bool learn,
                                      bool *odd)
{
    struct fabric *fabric = burst->fabric;
    struct direct sent;
    struct addresses addresses[GROUP_SIZE];
    uint32_t limit = peek_direct(source->ring, &sent, GROUP_SIZE, DEVICE_READS, paired, odd);
    if (learn)
        limit = direct_addresses(&fabric->fdb, &sent, source->ring->header_size, addresses, limit,
                                 paired);
    uint32_t moved = 0, run = 0, went = 0;
    for (; moved < limit && went == run; moved += went) {
        run = limit - moved;
        struct port *to = learn ? direct_target(fabric, source->port, &addresses[moved], &run)
                                : fixed_target(fabric, source->port);
        struct ring *ring = port_receiver(to, source->queue);
        if (ring == NULL)
            break;
        uint64_t bytes = 0;
        ring_lock(burst, ring);
        went = copy_direct(source->ring, ring, &sent, learn ? moved : 0, learn ? addresses : NULL,
                           run, &bytes, width, paired, odd);
        if (learn)
            direct_learn(&fabric->fdb, source->port, &addresses[moved], went);
        count(burst, source->port, RX_PACKETS, went);
        count(burst, source->port, RX_BYTES, bytes);
        count(burst, to, TX_PACKETS, went);
        count(burst, to, TX_BYTES, bytes);
        ring_release(burst, ring);
    }
    return moved;
}

#endif
