/* The virtio-net header in front of each packet (virtio 1.3, 5.1.6): what a guest may say in it,
 * and what we say.
 *
 * No offload is offered yet, so a lawful header has no NEEDS_CSUM and no GSO, and the header
 * towards a guest is zero but for num_buffers.
 */
#ifndef VHOSTFAST_NETHDR_H
#define VHOSTFAST_NETHDR_H

#include "chain.h"

/* The bytes of the header that must be zero, as its first eight are loaded: NEEDS_CSUM in flags,
 * and gso_type. */
static const uint64_t NET_HEADER_OFFLOADS = 0xff00 | NET_HEADER_NEEDS_CSUM;

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "virtio 1.x is little-endian, and so are we");

/* Reads the header over however many spans it lies, and leaves the cursor at the frame. False where
 * the chain holds no lawful frame: too short, too long, or asking for what was not offered. */
static inline bool nethdr_read(struct cursor *cursor, const struct chain *chain,
                               uint32_t header_size, uint32_t *frame_size)
{
    uint8_t header[NET_HEADER_SIZE] = {0};
    if (chain->size < header_size + FRAME_SIZE_MIN || chain->size > header_size + FRAME_SIZE_MAX)
        return false;
    cursor_read(cursor, header, header_size);
    *frame_size = (uint32_t)chain->size - header_size;
    return (*(const u64_any *)header & NET_HEADER_OFFLOADS) == 0;
}

static inline void nethdr_write(struct cursor *cursor, struct marker *marker, uint32_t header_size,
                                uint16_t num_buffers)
{
    struct net_header header = {.num_buffers = num_buffers};
    cursor_write(cursor, marker, &header, header_size);
}

#endif
