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

struct frame {
    uint8_t destination[6];
    uint8_t source[6];
    uint8_t type[2];
    uint16_t flow;
    uint64_t sequence;
    uint32_t seed;
    uint32_t size;
};

_Static_assert(offsetof(struct frame, sequence) == 16, "the layout above");
_Static_assert(sizeof(struct frame) == FRAME_PATTERN, "the layout above");

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
    uint64_t word[4];
    memcpy(word, frame, sizeof word);
    return frame_mix(word[0] + FRAME_GOLDEN * frame_mix(word[1] + FRAME_GOLDEN * word[3]));
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

/* Writes the whole frame; `head` has all but sequence, seed and size. */
ALWAYS_INLINE void frame_fill(uint8_t *at, const struct frame *head, uint64_t sequence,
                              uint32_t size)
{
    struct frame frame = *head;
    frame.sequence = sequence;
    frame.seed = frame_seed(sequence);
    frame.size = size;
    memcpy(at, &frame, sizeof frame);
    frame_fill_pattern(at + FRAME_PATTERN, frame_base(&frame), size - FRAME_PATTERN);
}

/* Is it one of ours, by its first bytes? */
static inline enum frame_verdict frame_look(const struct frame *frame, uint32_t size, bool exact)
{
    if (size < FRAME_PROVEN_MIN || frame->type[0] != FRAME_ETHERTYPE >> 8 ||
        frame->type[1] != (FRAME_ETHERTYPE & 0xff))
        return FRAME_FOREIGN;
    if (frame->size != size || (exact && frame->seed != frame_seed(frame->sequence)))
        return FRAME_CORRUPT;
    return FRAME_GOOD;
}

/* Is every byte right? Of a frame that frame_look found good. */
ALWAYS_INLINE bool frame_holds(const uint8_t *at, const struct frame *frame)
{
    return frame_pattern_holds(at + FRAME_PATTERN, frame_base(frame), frame->size - FRAME_PATTERN);
}

#endif
