/* An Ethernet frame that proves itself: whoever receives it can tell each byte of it.
 *
 *   0   destination[6]   source[6]   type 0x88b5   flow u16
 *   16  sequence u64                 counts within the flow
 *   24  seed u32         size u32    of the whole frame
 *   32  pattern to the end: word k = base + (k + 1) * GOLDEN, base made of all the above
 *                           but the sequence
 *
 * The seed is made of the sequence, so that frames differ in every word and a byte left over from
 * an earlier frame is seen; an `exact` check holds it to that. Only a sender that changes nothing
 * but the sequence of a frame it has prepared (loads touch and lean) leaves the old seed.
 */
#ifndef VHOSTFAST_FRAME_H
#define VHOSTFAST_FRAME_H

#include <stdbool.h>
#include <string.h>

#include "spec.h"
#include "sync.h"

enum frame_limit {
    FRAME_ETHERTYPE = 0x88b5, /* IEEE 802: for local experiments */
    FRAME_PATTERN = 32,       /* where it begins */
    FRAME_PROVEN_MIN = 40,    /* a word of pattern at least, or the header could be anything */
};

/* In words, as they are loaded and stored: bytes put together from narrower ones would wait for
 * them. */
struct frame {
    uint64_t station[2]; /* addresses, type, flow */
    uint64_t sequence;
    uint64_t shape; /* seed, and size << 32 */
};

_Static_assert(offsetof(struct frame, sequence) == 16, "the layout above");
_Static_assert(sizeof(struct frame) == FRAME_PATTERN, "the layout above");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the layout above");

enum frame_verdict { FRAME_GOOD, FRAME_FOREIGN, FRAME_CORRUPT };

static const uint64_t FRAME_GOLDEN = UINT64_C(0x9e3779b97f4a7c15); /* 2^64 / golden ratio, odd */

ALWAYS_INLINE uint64_t frame_mix(uint64_t x)
{
    x = (x ^ x >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return x ^ x >> 32;
}

ALWAYS_INLINE uint32_t frame_seed(uint64_t sequence) { return (uint32_t)frame_mix(~sequence); }

ALWAYS_INLINE uint64_t frame_base(const struct frame *frame)
{
    uint64_t inner = frame_mix(frame->station[1] + FRAME_GOLDEN * frame->shape);
    return frame_mix(frame->station[0] + FRAME_GOLDEN * inner);
}

ALWAYS_INLINE struct frame frame_load(const uint8_t *at)
{
    const u64_any *word = (const u64_any *)at;
    struct frame frame = {{word[0], word[1]}, word[2], word[3]};
    return frame;
}

ALWAYS_INLINE uint32_t frame_size(const struct frame *frame)
{
    return (uint32_t)(frame->shape >> 32);
}

ALWAYS_INLINE uint32_t frame_type(const struct frame *frame)
{
    return __builtin_bswap16((uint16_t)(frame->station[1] >> 32));
}

ALWAYS_INLINE uint32_t frame_flow(const struct frame *frame)
{
    return (uint32_t)(frame->station[1] >> 48);
}

static inline void frame_fill_pattern(uint8_t *at, uint64_t base, uint32_t size)
{
    u64_any *word = (u64_any *)at;
    uint64_t x = base;
    for (uint32_t k = 0; k < size / sizeof x; k++)
        word[k] = x += FRAME_GOLDEN;
    x += FRAME_GOLDEN;
    memcpy(at + (size & ~7U), &x, size & 7);
}

static inline bool frame_pattern_holds(const uint8_t *at, uint64_t base, uint32_t size)
{
    const u64_any *word = (const u64_any *)at;
    uint64_t x = base, wrong = 0, last = 0;
    for (uint32_t k = 0; k < size / sizeof x; k++)
        wrong |= word[k] ^ (x += FRAME_GOLDEN);
    x += FRAME_GOLDEN;
    memcpy(&last, at + (size & ~7U), size & 7);
    uint64_t mask = (UINT64_C(1) << 8 * (size & 7)) - 1;
    return (wrong | ((last ^ x) & mask)) == 0;
}

/* Writes the whole frame, of which `station` is known. */
ALWAYS_INLINE void frame_fill(uint8_t *at, const uint64_t station[2], uint64_t sequence,
                              uint32_t size)
{
    uint64_t shape = frame_seed(sequence) | (uint64_t)size << 32;
    struct frame frame = {{station[0], station[1]}, sequence, shape};
    u64_any *word = (u64_any *)at;
    word[0] = station[0];
    word[1] = station[1];
    word[2] = sequence;
    word[3] = shape;
    frame_fill_pattern(at + FRAME_PATTERN, frame_base(&frame), size - FRAME_PATTERN);
}

/* Is it one of ours, by its first bytes? */
ALWAYS_INLINE enum frame_verdict frame_look(const struct frame *frame, uint32_t size, bool exact)
{
    if (unlikely(frame_type(frame) != FRAME_ETHERTYPE))
        return FRAME_FOREIGN;
    if (unlikely(frame_size(frame) != size))
        return FRAME_CORRUPT;
    if (exact && unlikely((uint32_t)frame->shape != frame_seed(frame->sequence)))
        return FRAME_CORRUPT;
    return FRAME_GOOD;
}

/* Is every byte right? Of a frame that frame_look found good. */
ALWAYS_INLINE bool frame_holds(const uint8_t *at, const struct frame *frame)
{
    uint32_t size = frame_size(frame) - FRAME_PATTERN;
    return frame_pattern_holds(at + FRAME_PATTERN, frame_base(frame), size);
}

#endif
