/* The burst: packets from one transmit ring to the rings that they are for, one copy each.
 *
 * Two paths, one result. The direct path takes groups of packets that are one direct descriptor on
 * each side, the common shape; whatever is unusual in any way it leaves to the general path, which
 * takes any lawful chain and names what is unlawful. Rings that were written to are published once,
 * at the end of the burst.
 */
#ifndef VHOSTFAST_FORWARD_H
#define VHOSTFAST_FORWARD_H

#include <unistd.h>

#include "nethdr.h"
#include "port.h"
#include "split.h"

/* What a worker holds of the packet in its hands, and what it counted. */
struct burst {
    struct fabric *fabric;
    struct ring *held;    /* the receive ring in its hands, locked if it is shared */
    struct ring *touched; /* rings to be published */
    uint16_t full_at;     /* avail.idx of the ring that was full last */
    struct chain sent, room;
    struct taken taken[VRING_SIZE_MAX];
    struct span sent_span[SPAN_COUNT_MAX], room_span[SPAN_COUNT_MAX];
    struct counters counters[PORT_COUNT_MAX];
};

static inline void burst_init(struct burst *burst, struct fabric *fabric)
{
    burst->fabric = fabric;
    burst->sent.span = burst->sent_span;
    burst->room.span = burst->room_span;
}

enum delivery { DELIVERED, NO_RECEIVER, FULL, TOO_BIG };

ALWAYS_INLINE void count(struct burst *burst, const struct port *port, enum counter counter,
                         uint64_t amount)
{
    burst->counters[port->index].value[counter] += amount;
}

/* Its port takes no more part, and the control plane is told why. */
static inline void port_break(struct port *port, uint32_t fault)
{
    const uint64_t one = 1;
    if (port->fault != FAULT_NONE)
        return;
    port->fault = fault;
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

static inline void ring_complete(struct ring *ring)
{
    if (split_publish(ring) && split_wants_call(ring))
        ring_call(ring);
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

ALWAYS_INLINE void ring_release(struct burst *burst, struct ring *ring)
{
    if (ring->shared) {
        ring_complete(ring);
        ring_unlock(burst, ring);
        return;
    }
    burst->held = NULL;
    if (!ring->touched) {
        ring->touched = true;
        ring->next_touched = burst->touched;
        burst->touched = ring;
    }
}

static inline void publish_touched(struct burst *burst)
{
    while (burst->touched != NULL) {
        struct ring *ring = burst->touched;
        burst->touched = ring->next_touched;
        ring->touched = false;
        ring_complete(ring);
    }
}

/* Take as many receive buffers as `size` bytes need; the number, or 0 with the reason. */
static inline uint32_t take_room(struct burst *burst, struct ring *ring, uint64_t size,
                                 enum delivery *why)
{
    uint32_t taken = 0;
    chain_clear(&burst->room);
    do {
        int got = split_pop(ring, &burst->room, &burst->taken[taken], DEVICE_WRITES);
        if (got == POP_GOT && ring->mergeable &&
            unlikely(burst->taken[taken].size < ring->header_size))
            got = ring_break(ring, FAULT_BUFFER_SIZE);
        if (got != POP_GOT) {
            *why = got == POP_BROKEN ? NO_RECEIVER : taken == ring->size ? TOO_BIG : FULL;
            split_rewind(ring, taken);
            return 0;
        }
        taken++;
    } while (burst->room.size < size && ring->mergeable && taken < ring->size);
    if (burst->room.size >= size)
        return taken;
    *why = TOO_BIG; /* the ring's every buffer is not enough, or its only one */
    split_rewind(ring, taken);
    return 0;
}

/* Each buffer was filled to its end, but for the last. */
static inline void push_room(struct burst *burst, struct ring *ring, uint32_t count, uint64_t size)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct taken *taken = &burst->taken[i];
        uint32_t part = size < taken->size ? (uint32_t)size : taken->size;
        split_push(ring, taken->head, part);
        size -= part;
    }
}

/* One frame to one receiver, through any number of buffers. The cursor is at the frame. */
ALWAYS_INLINE enum delivery deliver(struct burst *burst, struct port *port, uint32_t queue,
                                    struct cursor frame, uint32_t size, const uint32_t width)
{
    struct ring *ring = port_receiver(port, queue);
    if (ring == NULL)
        return NO_RECEIVER;
    if (size > ring->frame_size_max)
        return TOO_BIG;
    ring_lock(burst, ring);
    enum delivery why = DELIVERED;
    uint64_t whole = (uint64_t)ring->header_size + size;
    uint32_t taken = take_room(burst, ring, whole, &why);
    if (taken > 0) {
        struct cursor room = chain_start(&burst->room);
        nethdr_write(&room, &ring->marker, ring->header_size, (uint16_t)taken);
        cursor_copy(&room, &ring->marker, &frame, size, width);
        push_room(burst, ring, taken, whole);
        count(burst, port, TX_PACKETS, 1);
        count(burst, port, TX_BYTES, size);
    } else if (ring->fault != FAULT_NONE) {
        port_break(port, ring->fault);
    }
    burst->full_at = ring->avail_seen;
    ring_release(burst, ring);
    return why;
}

static inline void count_loss(struct burst *burst, const struct port *from, const struct port *to,
                              enum delivery why)
{
    if (why == NO_RECEIVER)
        count(burst, from, RX_DROPPED_NO_RECEIVER, 1);
    else if (why != DELIVERED)
        count(burst, to, why == FULL ? TX_DROPPED_FULL : TX_DROPPED_TOO_BIG, 1);
}

/* To all ports but the one that it came from. It is noted who is served: a burst that breaks off
 * there goes on with this frame, and nobody gets it twice. */
ALWAYS_INLINE void flood(struct burst *burst, struct source *source, struct cursor frame,
                         uint32_t size, const uint32_t width)
{
    struct port *from = source->port;
    uint32_t first = source->flooded_frame == source->ring->last_avail ? source->flooded : 0;
    bool anyone = false;
    source->flooded_frame = source->ring->last_avail;
    for (uint32_t i = 0; i < burst->fabric->port_count; i++) {
        struct port *to = burst->fabric->port[i];
        if (to == from || to->receiver_count == 0)
            continue;
        anyone = true;
        if (i < first)
            continue;
        source->flooded = i;
        count_loss(burst, from, to, deliver(burst, to, source->queue, frame, size, width));
    }
    source->flooded = 0;
    if (!anyone)
        count(burst, from, RX_DROPPED_NO_RECEIVER, 1);
}

/* Learn from the sender, then to whom the frame is for: one port, or all but the one that it came
 * from. A full receiver loses it, so that one slow guest holds up nobody. */
ALWAYS_INLINE void deliver_learned(struct burst *burst, struct source *source, struct cursor frame,
                                   uint32_t size, const uint32_t width)
{
    uint8_t header[FRAME_SIZE_MIN];
    struct cursor peek = frame;
    struct fabric *fabric = burst->fabric;
    struct port *from = source->port;
    cursor_read(&peek, header, sizeof header);
    uint64_t target = mac_load(header);
    fdb_learn(&fabric->fdb, mac_load(header + 6), from->index);
    int index = mac_is_group(target) ? FDB_NOWHERE : fdb_find(&fabric->fdb, target);
    if (index == (int)from->index) {
        count(burst, from, RX_FILTERED, 1);
    } else if (index != FDB_NOWHERE && fabric->by_index[index] != NULL) {
        struct port *to = fabric->by_index[index];
        count_loss(burst, from, to, deliver(burst, to, source->queue, frame, size, width));
    } else {
        flood(burst, source, frame, size, width);
    }
}

ALWAYS_INLINE struct port *fixed_target(const struct fabric *fabric, struct port *from)
{
    return fabric->policy == POLICY_PATCH      ? from->peer
           : fabric->policy == POLICY_LOOPBACK ? from
                                               : NULL;
}

/* The general path: one packet of any shape. False where there is none, or it has to wait. */
ALWAYS_INLINE bool forward_one(struct burst *burst, struct source *source, const uint32_t width)
{
    struct ring *ring = source->ring;
    struct port *from = source->port;
    struct taken taken;
    uint32_t size;
    chain_clear(&burst->sent);
    int got = split_pop(ring, &burst->sent, &taken, DEVICE_READS);
    if (got != POP_GOT) {
        if (got == POP_BROKEN)
            port_break(from, ring->fault);
        return false;
    }
    struct cursor frame = chain_start(&burst->sent);
    if (unlikely(!nethdr_read(&frame, &burst->sent, ring->header_size, &size))) {
        count(burst, from, RX_DROPPED_MALFORMED, 1);
        split_push(ring, taken.head, 0);
        return true;
    }
    if (burst->fabric->policy == POLICY_LEARN) {
        deliver_learned(burst, source, frame, size, width);
    } else if (burst->fabric->policy != POLICY_DROP) {
        struct port *to = fixed_target(burst->fabric, from);
        enum delivery why = deliver(burst, to, source->queue, frame, size, width);
        if (why == FULL) {
            source->waits_for = port_receiver(to, source->queue);
            source->full_at = burst->full_at;
            split_rewind(ring, 1);
            return false;
        }
        count_loss(burst, from, to, why);
    }
    count(burst, from, RX_PACKETS, 1);
    count(burst, from, RX_BYTES, size);
    split_push(ring, taken.head, 0);
    return true;
}

/* A chain of a common shape, checked: the frame lies in the header's descriptor, right behind it;
 * or, `paired`, in any place of its own. */
struct direct {
    uint8_t *header;
    uint64_t gpa;
    uint32_t size; /* with the header */
    uint32_t head;
    uint8_t *frame; /* paired only */
    uint64_t frame_gpa;
};

ALWAYS_INLINE uint8_t *direct_frame(const struct direct *direct, uint32_t header_size,
                                    const bool paired)
{
    return paired ? direct->frame : direct->header + header_size;
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
                             const enum direction direction)
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
    direct->header = region_at(ring->regions, &ring->last_region, desc.addr, &reach);
    direct->gpa = desc.addr;
    if (desc.flags != (direction | VRING_DESC_NEXT) || desc.len != ring->header_size ||
        direct->header == NULL || desc.len > reach || desc.next >= count)
        return false;
    desc = load_once_desc(&table[desc.next]);
    direct->frame = region_at(ring->regions, &ring->last_region, desc.addr, &reach);
    direct->frame_gpa = desc.addr;
    direct->size = ring->header_size + desc.len; /* one that wraps is too small, and left */
    prefetch(direct->header, direction);
    prefetch(direct->frame, direction);
    prefetch(direct->frame + CACHE_LINE, direction);
    return desc.flags == direction && direct->frame != NULL && desc.len <= reach;
}

ALWAYS_INLINE bool peek_single(struct ring *ring, struct vring_desc desc, struct direct *direct,
                               const enum direction direction, const bool paired)
{
    uint64_t reach;
    uint8_t *host = region_at(ring->regions, &ring->last_region, desc.addr, &reach);
    if (unlikely(desc.flags != direction || host == NULL || desc.len > reach))
        return false;
    prefetch(host, direction);
    prefetch(host + CACHE_LINE, direction);
    direct->header = host;
    direct->gpa = desc.addr;
    direct->size = desc.len;
    if (paired) {
        direct->frame = host + ring->header_size;
        direct->frame_gpa = desc.addr + ring->header_size;
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
        if (!peek_single(ring, desc, &direct[i], direction, paired) &&
            !(paired && peek_pair(ring, desc, &direct[i], direction))) {
            *odd = i == 0;
            return i;
        }
        direct[i].head = head;
    }
    return limit;
}

/* What was stored into these buffers: a header and a frame of the size of the one sent. */
ALWAYS_INLINE void direct_mark_group(struct ring *to, const struct direct *room,
                                     const struct direct *sent, uint32_t skip, uint32_t count,
                                     const bool paired)
{
    const uint32_t header_size = to->header_size;
    struct log_run run = {0};
    for (uint32_t i = 0; i < count; i++) {
        uint32_t size = sent[i].size - skip;
        if (!paired || room[i].frame_gpa == room[i].gpa + header_size) {
            log_run_mark(&to->marker, &run, room[i].gpa, header_size + size);
        } else {
            log_run_mark(&to->marker, &run, room[i].gpa, header_size);
            log_run_mark(&to->marker, &run, room[i].frame_gpa, size);
        }
    }
    log_run_end(&to->marker, &run);
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

ALWAYS_INLINE void store_net_header(uint8_t *to, uint32_t header_size)
{
    *(volatile u64_any *)to = 0;
    if (likely(header_size == NET_HEADER_SIZE))
        *(volatile u32_any *)(to + 8) = UINT32_C(1) << 16; /* num_buffers 1 */
    else
        *(volatile u16_any *)(to + 8) = 0;
}

/* The copies of a group. What is taken is noted at its end only, of both rings: a group that breaks
 * off was not there. Returns how many went; the next one isn't of the common shape, or there is
 * no next one. */
ALWAYS_INLINE uint32_t copy_direct(struct ring *from, struct ring *to, const struct direct *sent,
                                   const struct addresses *addresses, uint32_t sent_count,
                                   uint64_t *bytes, const uint32_t width, const bool paired,
                                   bool *odd)
{
    struct direct room[GROUP_SIZE];
    const uint32_t skip = from->header_size, header_size = to->header_size;
    uint32_t limit = peek_direct(to, room, sent_count, DEVICE_WRITES, paired, odd), i;
    for (i = 0; i < limit; i++) {
        uint32_t size = sent[i].size - skip;
        if (unlikely(sent[i].size < skip + FRAME_SIZE_MIN || size > to->frame_size_max ||
                     room[i].size < header_size + size))
            break;
        if (unlikely(*(const volatile u64_any *)sent[i].header & NET_HEADER_OFFLOADS))
            break;
        store_net_header(room[i].header, header_size);
        uint8_t *frame = direct_frame(&room[i], header_size, paired);
        /* step: bytes */
        copy_bytes(frame, direct_frame(&sent[i], skip, paired), size, width);
        if (addresses != NULL)
            store_addresses(frame, &addresses[i]);
        split_push(to, room[i].head, header_size + size);
        split_push(from, sent[i].head, 0);
        *bytes += size;
    }
    if (unlikely(to->marker.log != NULL))
        direct_mark_group(to, room, sent, skip, i, paired);
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
        if (unlikely(sent[i].size < skip + FRAME_SIZE_MIN))
            return i;
        const uint8_t *frame = direct_frame(&sent[i], skip, paired);
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
 * path has to decide. Their senders are learned. */
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
        if (run == 0 || now->from != last->from)
            fdb_learn(&fabric->fdb, now->from, from->index);
    }
    *count = run;
    return run > 0 ? fabric->by_index[target] : NULL;
}

/* The direct path: a group of packets, as many in a row as are for one receiver at a time. Returns
 * how many went. */
ALWAYS_INLINE uint32_t forward_direct(struct burst *burst, struct source *source,
                                      const uint32_t width, const bool paired, const bool learn,
                                      bool *odd)
{
    struct fabric *fabric = burst->fabric;
    struct direct sent[GROUP_SIZE];
    struct addresses addresses[GROUP_SIZE];
    uint32_t limit = peek_direct(source->ring, sent, GROUP_SIZE, DEVICE_READS, paired, odd);
    if (learn)
        limit = direct_addresses(&fabric->fdb, sent, source->ring->header_size, addresses, limit,
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
        went = copy_direct(source->ring, ring, &sent[moved], learn ? &addresses[moved] : NULL, run,
                           &bytes, width, paired, odd);
        count(burst, source->port, RX_PACKETS, went);
        count(burst, source->port, RX_BYTES, bytes);
        count(burst, to, TX_PACKETS, went);
        count(burst, to, TX_BYTES, bytes);
        ring_release(burst, ring);
    }
    return moved;
}

/* Compiled for each shape and policy. */
ALWAYS_INLINE uint32_t forward_alike(struct burst *burst, struct source *source,
                                     const uint32_t width, bool paired, bool *odd)
{
    if (burst->fabric->policy == POLICY_LEARN)
        return paired ? forward_direct(burst, source, width, true, true, odd)
                      : forward_direct(burst, source, width, false, true, odd);
    return paired ? forward_direct(burst, source, width, true, false, odd)
                  : forward_direct(burst, source, width, false, false, odd);
}

/* A source's turn: up to BURST_SIZE packets, or TURN_PIECES_MAX pieces, so that a guest
 * with endless chains has no more of the worker than others. The number of packets taken. */
ALWAYS_INLINE uint32_t forward_burst(struct burst *burst, struct source *source,
                                     const uint32_t width)
{
    uint32_t moved = 0, pieces = 0;
    bool paired = false; /* chains of two pieces were seen in this burst */
    source->waits_for = NULL;
    while (moved < BURST_SIZE && pieces < TURN_PIECES_MAX) {
        bool odd = false;
        uint32_t group = forward_alike(burst, source, width, paired, &odd);
        moved += group;
        if (likely(group > 0))
            continue;
        if (odd && !paired) {
            paired = true;
            continue;
        }
        uint32_t single = 0;
        while (single < GROUP_SIZE && pieces < TURN_PIECES_MAX &&
               forward_one(burst, source, width)) {
            pieces += burst->sent.count + burst->room.count;
            single++;
        }
        moved += single;
        if (single < GROUP_SIZE)
            break;
    }
    publish_touched(burst);
    ring_complete(source->ring);
    return moved;
}

/* The same body for each instruction-set level. */
typedef uint32_t (*burst_function)(struct burst *, struct source *);
enum level { LEVEL_BASELINE, LEVEL_AVX2, LEVEL_AVX512, LEVEL_COUNT };

static uint32_t burst_baseline(struct burst *burst, struct source *source)
{
    return forward_burst(burst, source, 16);
}

#if defined(__x86_64__)
__attribute__((target("avx2,prfchw"))) static uint32_t burst_avx2(struct burst *burst,
                                                                  struct source *source)
{
    return forward_burst(burst, source, 32);
}

__attribute__((target("avx512f,avx512bw,avx512vl,prfchw"))) static uint32_t burst_avx512(
    struct burst *burst, struct source *source)
{
    return forward_burst(burst, source, 64);
}
#endif

/* The body for a level, or NULL where this CPU lacks it. */
static inline burst_function burst_at(enum level level)
{
#if defined(__x86_64__)
    if (level == LEVEL_AVX512)
        return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                   ? burst_avx512
                   : NULL;
    if (level == LEVEL_AVX2)
        return __builtin_cpu_supports("avx2") ? burst_avx2 : NULL;
#endif
    return level == LEVEL_BASELINE ? burst_baseline : NULL;
}

#endif
