/* A packet's memory as bounded spans, a cursor over them, and the one copy: chain to chain.
 *
 * A span lies in one region and has been checked; nothing here looks at a descriptor again. A
 * receive packet over several mergeable buffers is one chain whose spans follow each other.
 */
#ifndef VHOSTFAST_CHAIN_H
#define VHOSTFAST_CHAIN_H

#include "copy.h"
#include "log.h"
#include "region.h"

struct span {
    uint8_t *host;
    uint64_t gpa;
    uint64_t size; /* bytes */
};

struct chain {
    uint64_t size; /* bytes in all spans */
    uint32_t count;
    struct span *span; /* room for SPAN_COUNT_MAX */
};

ALWAYS_INLINE void chain_clear(struct chain *chain)
{
    chain->size = 0;
    chain->count = 0;
}

/* Append guest memory, cut where regions meet. An address without memory is refused whatever its
 * length. */
static inline enum fault chain_append(struct chain *chain, const struct region_table *table,
                                      uint32_t *last_region, uint64_t gpa, uint32_t size)
{
    uint64_t left = size;
    if (unlikely(gpa + size < gpa))
        return FAULT_ADDRESS;
    do {
        uint64_t reach;
        uint8_t *host = region_at(table, last_region, gpa, &reach);
        if (unlikely(host == NULL))
            return FAULT_ADDRESS;
        if (unlikely(chain->count == SPAN_COUNT_MAX))
            return FAULT_LENGTH;
        uint64_t part = left < reach ? left : reach;
        chain->span[chain->count++] = (struct span){.host = host, .gpa = gpa, .size = part};
        gpa += part;
        left -= part;
    } while (unlikely(left > 0));
    chain->size += size;
    return FAULT_NONE;
}

/* Where the next byte of a chain is. */
struct cursor {
    const struct span *span;
    uint64_t offset; /* into *span */
};

ALWAYS_INLINE struct cursor chain_start(const struct chain *chain)
{
    return (struct cursor){.span = chain->span, .offset = 0};
}

/* Steps over spans that are used up, the empty ones too. The caller knows that more bytes follow.
 */
ALWAYS_INLINE uint64_t cursor_reach(struct cursor *cursor)
{
    while (cursor->offset == cursor->span->size) {
        cursor->span++;
        cursor->offset = 0;
    }
    return cursor->span->size - cursor->offset;
}

/* Gather `size` bytes into private memory; the chain holds that many. Each byte is read once. */
static inline void cursor_read(struct cursor *from, void *to, uint32_t size)
{
    uint8_t *next = to;
    while (size > 0) {
        uint64_t reach = cursor_reach(from);
        uint32_t part = size < reach ? size : (uint32_t)reach;
        copy_bytes(next, from->span->host + from->offset, part, 16);
        from->offset += part;
        next += part;
        size -= part;
    }
}

/* Scatter private bytes into guest memory, and mark them. */
static inline void cursor_write(struct cursor *to, struct marker *marker, const void *from,
                                uint32_t size)
{
    const uint8_t *next = from;
    while (size > 0) {
        uint64_t reach = cursor_reach(to);
        uint32_t part = size < reach ? size : (uint32_t)reach;
        copy_bytes(to->span->host + to->offset, next, part, 16); /* step: bytes */
        log_mark(marker, to->span->gpa + to->offset, part); /* step: gather */
        to->offset += part;
        next += part;
        size -= part;
    }
}

/* THE copy: `size` bytes from guest to guest, marked for the receiver. Both chains hold that many.
 */
ALWAYS_INLINE void cursor_copy(struct cursor *to, struct marker *marker, struct cursor *from,
                               uint32_t size, const uint32_t width)
{
    while (size > 0) {
        uint64_t room = cursor_reach(to), reach = cursor_reach(from);
        uint64_t part = room < reach ? room : reach;
        if (part > size)
            part = size;
        /* step: bytes */
        copy_bytes(to->span->host + to->offset, from->span->host + from->offset, (uint32_t)part,
                   width);
        log_mark(marker, to->span->gpa + to->offset, part); /* step: gather */
        to->offset += part;
        from->offset += part;
        size -= (uint32_t)part;
    }
}

#endif
