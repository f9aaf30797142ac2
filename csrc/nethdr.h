/* The virtio-net header in front of each packet (virtio 1.3, 5.1.6): what a guest may say in it,
 * and what we say.
 *
 * A sender's header may ask for what the sender has taken, and has to be true of the frame; any
 * other makes the packet malformed. A receiver's says the same, if the receiver has taken that, and
 * nothing else but num_buffers.
 */
#ifndef VHOSTFAST_NETHDR_H
#define VHOSTFAST_NETHDR_H

#include "chain.h"
#include "offload.h"

/* The bytes of the header that are zero in a plain one, as its first eight are loaded: NEEDS_CSUM
 * in flags, and gso_type. */
static const uint64_t NET_HEADER_OFFLOADS = 0xff00 | NET_HEADER_NEEDS_CSUM;

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "virtio 1.x is little-endian, and so are we");

/* A packet that a guest sends. */
struct packet {
    struct cursor at; /* its first byte */
    uint32_t size;
    uint32_t wire_size; /* of the largest packet that is made of it */
    uint32_t needs;     /* enum offload: what its receiver has to have taken to get it as it is */
    struct net_header header; /* without num_buffers */
    uint32_t segment; /* of its segments, those that its receiver has: with what it goes on */

    /* The private copy: of what is decided by, and of all for receivers that have not. */
    uint8_t *copy;
    uint32_t copied;    /* bytes, from the first on */
    struct cursor rest; /* of the frame */
    bool whole;         /* all of it is there */

    uint32_t looked_at; /* first bytes that were decided by: each receiver gets those of the copy */
    struct cursor behind;
};

static inline void packet_copy(struct packet *frame, uint32_t end)
{
    cursor_read(&frame->rest, frame->copy + frame->copied, end - frame->copied);
    frame->copied = end;
}

/* Its first `end` bytes, read once. */
static inline const uint8_t *packet_look(struct packet *frame, uint32_t end)
{
    if (frame->looked_at < end) {
        packet_copy(frame, end);
        frame->looked_at = end;
        frame->behind = frame->rest;
    }
    return frame->copy;
}

/* The whole of it, once. */
static inline void packet_copy_whole(struct packet *frame)
{
    if (!frame->whole)
        packet_copy(frame, frame->size);
    frame->whole = true;
}

/* A header that asks for something; false: for more than its sender has taken, or of a frame that
 * isn't like that. */
static inline bool packet_check(struct packet *frame, uint32_t taken)
{
    struct net_header *header = &frame->header;
    if (offload_needs(header) & ~taken)
        return false;
    if (header->gso_type != NET_HEADER_GSO_NONE)
        packet_look(frame, frame->size < HEADERS_SIZE_MAX ? frame->size : HEADERS_SIZE_MAX);
    if (!offload_check(header, frame->copy, frame->copied, frame->size))
        return false;
    frame->needs = offload_needs(header);
    if (header->gso_type != NET_HEADER_GSO_NONE)
        frame->wire_size = (uint32_t)header->hdr_len + header->gso_size;
    return true;
}

/* Reads the header over however many spans it lies. False where the chain holds no lawful frame:
 * too short, too long, or with a header that its sender, who has `taken` that, may not send. `copy`
 * is private memory for FRAME_SIZE_MAX bytes. */
static inline bool nethdr_read(struct packet *frame, const struct chain *chain,
                               uint32_t header_size, uint32_t taken, uint8_t *copy)
{
    struct net_header header = {0};
    if (chain->size < header_size + FRAME_SIZE_MIN || chain->size > header_size + FRAME_SIZE_MAX)
        return false;
    struct cursor cursor = chain_start(chain);
    cursor_read(&cursor, &header, header_size);
    uint32_t size = (uint32_t)chain->size - header_size;
    frame->at = frame->rest = frame->behind = cursor;
    frame->copy = copy;
    frame->copied = frame->looked_at = 0;
    frame->whole = false;
    frame->size = frame->wire_size = size;
    frame->needs = frame->segment = 0;
    if (likely((*(const u64_any *)&header & NET_HEADER_OFFLOADS) == 0)) {
        frame->header = (struct net_header){0};
        return true;
    }
    frame->header = header;
    return packet_check(frame, taken);
}

/* The same for the direct path, of a header that leaves a checksum to be done and no more, between
 * guests that both have `taken` that. `said` is its first eight bytes, and becomes what may be said
 * of the frame; false: the general path decides. */
static inline bool nethdr_partial(uint64_t *said, uint16_t csum_offset, uint32_t frame_size,
                                  uint32_t taken)
{
    const uint32_t csum_start_shift = 8 * offsetof(struct net_header, csum_start);
    uint64_t csum_start = *said >> csum_start_shift;
    if (!(taken & OFFLOAD_CSUM) || (*said & NET_HEADER_OFFLOADS) != NET_HEADER_NEEDS_CSUM ||
        csum_start < FRAME_SIZE_MIN || csum_start + csum_offset + sizeof csum_offset > frame_size)
        return false;
    *said = csum_start << csum_start_shift | NET_HEADER_NEEDS_CSUM;
    return true;
}

static inline void nethdr_write(struct cursor *cursor, struct marker *marker, uint32_t header_size,
                                struct net_header header, uint16_t num_buffers)
{
    header.num_buffers = num_buffers;
    cursor_write(cursor, marker, &header, header_size);
}

#endif
