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
    uint32_t pieces;      /* spans that it has seen this turn */
    struct chain sent, room;
    struct taken taken[VRING_SIZE_MAX];
    struct span sent_span[SPAN_COUNT_MAX], room_span[SPAN_COUNT_MAX];
    uint8_t
        copy[FRAME_SIZE_MAX]; /* of the frame at hand, if a receiver has not taken its offloads */
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

/* A packet of ours, through any number of buffers. */
static inline enum delivery store_packet(struct burst *burst, struct ring *ring,
                                         const struct segment *packet)
{
    enum delivery why = DELIVERED;
    uint64_t whole = (uint64_t)ring->header_size + packet->headers_size + packet->payload_size;
    uint32_t taken = take_room(burst, ring, whole, &why);
    burst->pieces += burst->room.count;
    if (taken == 0)
        return why;
    struct cursor room = chain_start(&burst->room);
    nethdr_write(&room, &ring->marker, ring->header_size, packet->header, (uint16_t)taken);
    cursor_write(&room, &ring->marker, packet->headers, packet->headers_size);
    cursor_write(&room, &ring->marker, packet->payload, packet->payload_size);
    push_room(burst, ring, taken, whole);
    return DELIVERED;
}

/* A frame whose offloads the receiver has not taken: summed, or cut into segments. Where there is
 * room for some of them the frame waits, and goes on with the next; with `learn` the others are
 * lost. */
static __attribute__((noinline)) enum delivery deliver_remade(struct burst *burst,
                                                              const struct port *port,
                                                              struct ring *ring,
                                                              struct frame *frame)
{
    const uint32_t count_all = offload_segment_count(&frame->header, frame->size);
    const bool partial = ring->offloads & OFFLOAD_CSUM;
    enum delivery why = DELIVERED;
    frame_copy_whole(frame);
    for (; frame->segment < count_all; frame->segment++) {
        struct segment packet;
        if (frame->header.gso_type == NET_HEADER_GSO_NONE)
            packet = (struct segment){.payload = frame->copy, .payload_size = frame->size};
        else
            offload_segment(&packet, frame->copy, frame->size, &frame->header, frame->segment,
                            partial);
        why = store_packet(burst, ring, &packet);
        if (why != DELIVERED)
            break;
        count(burst, port, TX_PACKETS, 1);
        count(burst, port, TX_BYTES, packet.headers_size + packet.payload_size);
    }
    if (why == FULL && burst->fabric->policy == POLICY_LEARN)
        count(burst, port, TX_DROPPED_FULL, count_all - frame->segment - 1);
    else if (why == FULL)
        return FULL;
    frame->segment = 0; /* for the next receiver */
    return why;
}

/* A frame as it is, through any number of buffers. */
ALWAYS_INLINE enum delivery deliver_as_it_is(struct burst *burst, const struct port *port,
                                             struct ring *ring, const struct frame *frame,
                                             const uint32_t width)
{
    enum delivery why = DELIVERED;
    uint64_t whole = (uint64_t)ring->header_size + frame->size;
    uint32_t taken = take_room(burst, ring, whole, &why);
    burst->pieces += burst->room.count;
    if (taken == 0)
        return why;
    struct cursor room = chain_start(&burst->room), from = frame->at;
    nethdr_write(&room, &ring->marker, ring->header_size, frame->header, (uint16_t)taken);
    cursor_copy(&room, &ring->marker, &from, frame->size, width);
    push_room(burst, ring, taken, whole);
    count(burst, port, TX_PACKETS, 1);
    count(burst, port, TX_BYTES, frame->size);
    return DELIVERED;
}

/* One frame to one receiver. */
ALWAYS_INLINE enum delivery deliver(struct burst *burst, struct port *port, uint32_t queue,
                                    struct frame *frame, const uint32_t width)
{
    struct ring *ring = port_receiver(port, queue);
    enum delivery why;
    if (ring == NULL)
        return NO_RECEIVER;
    if (frame->wire_size > ring->frame_size_max)
        return TOO_BIG;
    ring_lock(burst, ring);
    if (likely((frame->needs & ~ring->offloads) == 0))
        why = deliver_as_it_is(burst, port, ring, frame, width);
    else
        why = deliver_remade(burst, port, ring, frame);
    if (unlikely(ring->fault != FAULT_NONE))
        port_break(port, ring->fault);
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
ALWAYS_INLINE void flood(struct burst *burst, struct source *source, struct frame *frame,
                         const uint32_t width)
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
        count_loss(burst, from, to, deliver(burst, to, source->queue, frame, width));
    }
    source->flooded = 0;
    if (!anyone)
        count(burst, from, RX_DROPPED_NO_RECEIVER, 1);
}

/* Learn from the sender, then to whom the frame is for: one port, or all but the one that it came
 * from. A full receiver loses it, so that one slow guest holds up nobody. */
ALWAYS_INLINE void deliver_learned(struct burst *burst, struct source *source, struct frame *frame,
                                   const uint32_t width)
{
    uint8_t header[FRAME_SIZE_MIN];
    struct cursor peek = frame->at;
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
        count_loss(burst, from, to, deliver(burst, to, source->queue, frame, width));
    } else {
        flood(burst, source, frame, width);
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
    struct frame frame;
    chain_clear(&burst->sent);
    int got = split_pop(ring, &burst->sent, &taken, DEVICE_READS);
    if (got != POP_GOT) {
        if (got == POP_BROKEN)
            port_break(from, ring->fault);
        return false;
    }
    burst->pieces += burst->sent.count;
    if (unlikely(
            !nethdr_read(&frame, &burst->sent, ring->header_size, ring->offloads, burst->copy))) {
        count(burst, from, RX_DROPPED_MALFORMED, 1);
        split_push(ring, taken.head, 0);
        return true;
    }
    if (burst->fabric->policy == POLICY_LEARN) {
        deliver_learned(burst, source, &frame, width);
    } else if (burst->fabric->policy != POLICY_DROP) {
        struct port *to = fixed_target(burst->fabric, from);
        frame.segment = ring->segment;
        enum delivery why = deliver(burst, to, source->queue, &frame, width);
        ring->segment = why == FULL ? (uint16_t)frame.segment : 0;
        if (why == FULL) {
            source->waits_for = port_receiver(to, source->queue);
            source->full_at = burst->full_at;
            split_rewind(ring, 1);
            return false;
        }
        count_loss(burst, from, to, why);
    }
    count(burst, from, RX_PACKETS, 1);
    count(burst, from, RX_BYTES, frame.size);
    split_push(ring, taken.head, 0);
    return true;
}

/* A descriptor of the common shape: checked, and wholly in one region. */
struct direct {
    uint8_t *host;
    uint64_t gpa;
    uint32_t size;
    uint32_t head;
};

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

/* Look ahead, taking nothing, at up to `wanted` chains; stop at the first that isn't one direct
 * descriptor. */
ALWAYS_INLINE uint32_t peek_direct(struct ring *ring, struct direct *direct, uint32_t wanted,
                                   const enum direction direction)
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
        uint64_t reach;
        uint8_t *host = region_at(ring->regions, &ring->last_region, desc.addr, &reach);
        if (unlikely(desc.flags != direction || host == NULL || desc.len > reach))
            return i;
        prefetch(host, direction);
        prefetch(host + CACHE_LINE, direction);
        direct[i] = (struct direct){.host = host, .gpa = desc.addr, .size = desc.len, .head = head};
    }
    return limit;
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

/* The copies of a group. What is taken is noted at its end only, of both rings: a group that breaks
 * off was not there. Returns how many went; the next one isn't of the common shape, or there is
 * no next one. */
ALWAYS_INLINE uint32_t copy_direct(struct ring *from, struct ring *to, const struct direct *sent,
                                   uint32_t sent_count, uint64_t *bytes, const uint32_t width)
{
    struct direct room[GROUP_SIZE];
    const uint32_t skip = from->header_size, header_size = to->header_size;
    uint32_t limit = peek_direct(to, room, sent_count, DEVICE_WRITES), i;
    for (i = 0; i < limit; i++) {
        uint32_t size = sent[i].size - skip;
        if (unlikely(sent[i].size < skip + FRAME_SIZE_MIN || size > to->frame_size_max ||
                     room[i].size < header_size + size))
            break;
        uint64_t said = *(const volatile u64_any *)sent[i].host;
        if (likely((said & NET_HEADER_OFFLOADS) == 0)) {
            store_net_header(room[i].host, header_size, 0, 0);
        } else {
            uint16_t csum_offset = *(const volatile u16_any *)(sent[i].host + 8);
            if (!nethdr_partial(&said, csum_offset, size, from->offloads & to->offloads))
                break;
            store_net_header(room[i].host, header_size, said, csum_offset);
        }
        /* step: bytes */
        copy_bytes(room[i].host + header_size, sent[i].host + skip, size, width);
        log_mark(&to->marker, room[i].gpa, header_size + size);
        split_push(to, room[i].head, header_size + size);
        split_push(from, sent[i].head, 0);
        *bytes += size;
    }
    from->last_avail += (uint16_t)i;
    to->last_avail += (uint16_t)i;
    return i;
}

/* The port that the first of these frames is for, how many in a row, and whom it learns by them;
 * NULL where the general path has to decide. */
ALWAYS_INLINE struct port *direct_target(struct burst *burst, struct source *source,
                                         const struct direct *sent, uint32_t *limit,
                                         uint64_t *sender)
{
    struct fabric *fabric = burst->fabric;
    if (fabric->policy != POLICY_LEARN)
        return fixed_target(fabric, source->port);
    uint64_t target = 0;
    uint32_t run = 0;
    for (; run < *limit; run++) {
        if (unlikely(sent[run].size < source->ring->header_size + FRAME_SIZE_MIN))
            break;
        const uint8_t *frame = sent[run].host + source->ring->header_size;
        uint64_t to = mac_load(frame), from = mac_load(frame + 6);
        if (run > 0 && (to != target || from != *sender))
            break;
        target = to;
        *sender = from;
    }
    if (run == 0 || mac_is_group(target))
        return NULL;
    int index = fdb_find(&fabric->fdb, target);
    if (index == FDB_NOWHERE || index == (int)source->port->index)
        return NULL;
    *limit = run;
    return fabric->by_index[index];
}

/* The direct path: a group of packets to one receiver. Returns how many went. */
ALWAYS_INLINE uint32_t forward_direct(struct burst *burst, struct source *source,
                                      const uint32_t width)
{
    struct direct sent[GROUP_SIZE];
    uint32_t limit = peek_direct(source->ring, sent, GROUP_SIZE, DEVICE_READS);
    if (limit == 0)
        return 0;
    uint64_t sender = 0;
    struct port *to = direct_target(burst, source, sent, &limit, &sender);
    struct ring *ring = port_receiver(to, source->queue);
    if (ring == NULL)
        return 0;
    uint64_t bytes = 0;
    ring_lock(burst, ring);
    uint32_t moved = copy_direct(source->ring, ring, sent, limit, &bytes, width);
    if (sender != 0 && moved > 0) /* of a malformed frame nothing is learned */
        fdb_learn(&burst->fabric->fdb, sender, source->port->index);
    count(burst, source->port, RX_PACKETS, moved);
    count(burst, source->port, RX_BYTES, bytes);
    count(burst, to, TX_PACKETS, moved);
    count(burst, to, TX_BYTES, bytes);
    ring_release(burst, ring);
    return moved;
}

/* A source's turn: up to BURST_SIZE packets, or as many pieces as that many packets may reasonably
 * have, so that a guest with endless chains has no more of the worker than others. Returns how many
 * packets were taken. */
ALWAYS_INLINE uint32_t forward_burst(struct burst *burst, struct source *source,
                                     const uint32_t width)
{
    const uint32_t pieces_max = BURST_SIZE * GROUP_SIZE;
    uint32_t moved = 0;
    burst->pieces = 0;
    source->waits_for = NULL;
    while (moved < BURST_SIZE && burst->pieces < pieces_max) {
        uint32_t group = forward_direct(burst, source, width);
        moved += group;
        if (likely(group > 0))
            continue;
        uint32_t single = 0;
        while (single < GROUP_SIZE && burst->pieces < pieces_max &&
               forward_one(burst, source, width))
            single++;
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
