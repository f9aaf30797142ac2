/* The burst: packets from one transmit ring to the rings that they are for, one copy each.
 *
 * Two paths, one result: the direct path takes groups of the common shapes, the general path any
 * lawful chain, one by one, and names what is unlawful.
 */
#ifndef VHOSTFAST_FORWARD_H
#define VHOSTFAST_FORWARD_H

#include "direct.h"

enum delivery {
    DELIVERED,
    NO_RECEIVER,
    FULL,
    TOO_BIG,
    COSTLY, /* account.h */
    PARTLY, /* patch: its next segments in the next turn */
};

/* What is counted at the receiver. */
ALWAYS_INLINE enum counter loss_of(enum delivery why)
{
    return why == FULL     ? TX_DROPPED_FULL
           : why == COSTLY ? TX_DROPPED_COSTLY
                           : TX_DROPPED_TOO_BIG;
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
            unlikely(burst->taken[taken].size < ring->header_size)) {
            split_rewind(ring, 1);
            got = ring_break(ring, FAULT_BUFFER_SIZE);
        }
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
    if (taken == 0)
        return why;
    struct cursor room = chain_start(&burst->room);
    nethdr_write(&room, &ring->marker, ring->header_size, packet->header, (uint16_t)taken);
    cursor_write(&room, &ring->marker, packet->headers, packet->headers_size);
    cursor_write(&room, &ring->marker, packet->payload, packet->payload_size);
    push_room(burst, ring, taken, whole);
    return DELIVERED;
}

/* One packet whose sum is made for this receiver; the copy is put back, for the next may take it as
 * it came. */
static inline enum delivery store_summed(struct burst *burst, struct ring *ring,
                                         const struct packet *frame)
{
    const struct segment packet = {.payload = frame->copy, .payload_size = frame->size};
    u16_any *field = offload_sum_field(frame->copy, &frame->header), stood = *field;
    offload_sum(frame->copy, frame->size, &frame->header);
    enum delivery why = store_packet(burst, ring, &packet);
    *field = stood;
    return why;
}

/* Who pays for a look at so many pieces. With `patch` it is the sender, which has one receiver. */
ALWAYS_INLINE void charge_room(struct burst *burst, const struct port *port, uint64_t size)
{
    burst->pieces += burst->room.count;
    if (account_minds(burst->room.count, size) && burst->fabric->policy == POLICY_LEARN)
        account_room(&burst->accounts, port->index, burst->room.count);
}

/* Whether the receiver's buffers let one more segment go in this turn. */
static inline enum delivery remade_so_far(struct burst *burst, const struct port *port)
{
    if (burst->fabric->policy == POLICY_LEARN)
        return account_refuses(&burst->accounts, port->index) ? COSTLY : DELIVERED;
    return burst->pieces < SEGMENT_PIECES_MAX ? DELIVERED : PARTLY;
}

/* A frame whose offloads the receiver has not taken: summed, or cut into segments. Where not all of
 * them go now the frame waits, and goes on with the next; with `learn` the others are lost. */
static __attribute__((noinline)) enum delivery deliver_remade(struct burst *burst,
                                                              const struct port *port,
                                                              struct ring *ring,
                                                              struct packet *frame)
{
    const uint32_t count_all = offload_segment_count(&frame->header, frame->size);
    const uint32_t first = frame->segment;
    const bool partial = ring->offloads & OFFLOAD_CSUM;
    enum delivery why = DELIVERED;
    packet_copy_whole(frame);
    for (; frame->segment < count_all; frame->segment++) {
        struct segment packet;
        uint32_t size = frame->size;
        if (frame->segment > first)
            why = remade_so_far(burst, port);
        if (why != DELIVERED)
            break;
        if (frame->header.gso_type == NET_HEADER_GSO_NONE) {
            why = store_summed(burst, ring, frame);
        } else {
            offload_segment(&packet, frame->copy, frame->size, &frame->header, frame->segment,
                            partial);
            size = packet.headers_size + packet.payload_size;
            why = store_packet(burst, ring, &packet);
        }
        charge_room(burst, port, size);
        if (why != DELIVERED)
            break;
        count(burst, port, TX_PACKETS, 1);
        count(burst, port, TX_BYTES, size);
    }
    if (why == PARTLY || (why == FULL && burst->fabric->policy != POLICY_LEARN))
        return why;
    if (why == FULL || why == COSTLY)
        count(burst, port, loss_of(why), count_all - frame->segment - 1);
    frame->segment = 0; /* for the next receiver */
    return why;
}

/* A frame as it is, through any number of buffers. */
ALWAYS_INLINE enum delivery deliver_as_it_is(struct burst *burst, const struct port *port,
                                             struct ring *ring, const struct packet *frame,
                                             const uint32_t width)
{
    enum delivery why = DELIVERED;
    uint64_t whole = (uint64_t)ring->header_size + frame->size;
    uint32_t taken = take_room(burst, ring, whole, &why);
    if (taken == 0)
        return why;
    struct cursor room = chain_start(&burst->room), from = frame->behind;
    nethdr_write(&room, &ring->marker, ring->header_size, frame->header, (uint16_t)taken);
    cursor_write(&room, &ring->marker, frame->copy, frame->looked_at);
    cursor_copy(&room, &ring->marker, &from, frame->size - frame->looked_at, width);
    push_room(burst, ring, taken, whole);
    count(burst, port, TX_PACKETS, 1);
    count(burst, port, TX_BYTES, frame->size);
    return DELIVERED;
}

/* One frame to one receiver. */
ALWAYS_INLINE enum delivery deliver(struct burst *burst, struct port *port, uint32_t queue,
                                    struct packet *frame, const uint32_t width)
{
    struct ring *ring = port_receiver(port, queue);
    enum delivery why;
    if (ring == NULL)
        return NO_RECEIVER;
    if (frame->wire_size > ring->frame_size_max)
        return TOO_BIG;
    if (account_refuses(&burst->accounts, port->index))
        return COSTLY;
    ring_lock(burst, ring);
    if (likely((frame->needs & ~ring->offloads) == 0)) {
        why = deliver_as_it_is(burst, port, ring, frame, width);
        charge_room(burst, port, frame->size);
    } else {
        why = deliver_remade(burst, port, ring, frame);
    }
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
        count(burst, to, loss_of(why), 1);
}

/* To all ports but the one that it came from. It is noted who is served: a burst that breaks off
 * there goes on with this frame, and nobody gets it twice. */
ALWAYS_INLINE void flood(struct burst *burst, struct source *source, struct packet *frame,
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
ALWAYS_INLINE void deliver_learned(struct burst *burst, struct source *source, struct packet *frame,
                                   const uint32_t width)
{
    const uint8_t *header = packet_look(frame, FRAME_SIZE_MIN);
    struct fabric *fabric = burst->fabric;
    struct port *from = source->port;
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

/* The general path: one packet of any shape. False where there is none, or it has to wait. */
ALWAYS_INLINE bool forward_one(struct burst *burst, struct source *source, const uint32_t width)
{
    struct ring *ring = source->ring;
    struct port *from = source->port;
    struct taken taken;
    struct packet frame;
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
        bool waits = why == FULL || why == PARTLY;
        ring->segment = waits ? (uint16_t)frame.segment : 0;
        if (why == FULL) {
            source->waits_for = port_receiver(to, source->queue);
            source->full_at = burst->full_at;
        }
        if (waits) {
            split_rewind(ring, 1);
            return why == PARTLY; /* it has moved, though not all of it */
        }
        count_loss(burst, from, to, why);
    }
    count(burst, from, RX_PACKETS, 1);
    count(burst, from, RX_BYTES, frame.size);
    split_push(ring, taken.head, 0);
    return true;
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
    uint32_t moved = 0;
    bool paired = false; /* chains of two pieces were seen in this burst, */
    bool single = false; /* or chains of one */
    uint32_t odd_ones = 1; /* so many go the general path before the direct one is tried again */
    burst->pieces = 0;
    burst->sending = source->ring;
    source->waits_for = NULL;
    while (moved < BURST_SIZE && burst->pieces < TURN_PIECES_MAX) {
        bool odd = false;
        uint32_t group = forward_alike(burst, source, width, paired, &odd);
        moved += group;
        if (likely(group > 0)) {
            single |= !paired;
            odd_ones = 1;
            continue;
        }
        if (odd && !paired) {
            paired = true;
            continue;
        }
        uint32_t ones = 0;
        while (ones < odd_ones && burst->pieces < TURN_PIECES_MAX &&
               forward_one(burst, source, width))
            ones++;
        moved += ones;
        if (ones < odd_ones)
            break;
        odd_ones = GROUP_SIZE;
        paired &= !single; /* it was an odd one among those */
    }
    publish_touched(burst);
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
