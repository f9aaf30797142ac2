/* What became of a flow's frames, by their sequence: received, missing, reordered, repeated.
 *
 * Exact within a window: of the last FLOW_WINDOW sequences we know which were seen. What comes from
 * before it counts as repeated.
 */
#ifndef VHOSTFAST_FLOW_H
#define VHOSTFAST_FLOW_H

#include <stdbool.h>

#include "spec.h"

enum flow_limit {
    FLOW_WINDOW = 1024,      /* sequences back for which we know each */
    FLOW_JUMP_MAX = 1 << 30, /* a gap longer than this is nonsense */
};

struct flow {
    uint64_t next;      /* one past the highest sequence seen */
    uint64_t received;  /* each sequence once */
    uint64_t missing;   /* below next and not seen yet */
    uint64_t reordered; /* came after a later one */
    uint64_t repeated;  /* came again, or from before the window */
    uint64_t seen[FLOW_WINDOW / 64];
};

ALWAYS_INLINE uint64_t *flow_word(struct flow *flow, uint64_t sequence, uint64_t *bit)
{
    *bit = UINT64_C(1) << (sequence % 64);
    return &flow->seen[sequence % FLOW_WINDOW / 64];
}

/* A gap: all up to `sequence` is missing so far. */
static inline void flow_skip(struct flow *flow, uint64_t sequence)
{
    uint64_t gap = sequence - flow->next, bit;
    flow->missing += gap;
    for (uint64_t i = gap < FLOW_WINDOW ? gap : FLOW_WINDOW; i > 0; i--) {
        uint64_t *word = flow_word(flow, sequence - i, &bit);
        *word &= ~bit;
    }
    flow->next = sequence;
}

static inline void flow_late(struct flow *flow, uint64_t sequence)
{
    uint64_t bit, *word = flow_word(flow, sequence, &bit);
    if (flow->next - sequence > FLOW_WINDOW || *word & bit) {
        flow->repeated++;
        return;
    }
    *word |= bit;
    flow->reordered++;
    flow->missing--;
    flow->received++;
}

/* False where the sequence can't be true. */
static inline bool flow_note(struct flow *flow, uint64_t sequence)
{
    if (unlikely(sequence < flow->next)) {
        flow_late(flow, sequence);
        return true;
    }
    if (unlikely(sequence > flow->next)) {
        if (sequence - flow->next > FLOW_JUMP_MAX)
            return false;
        flow_skip(flow, sequence);
    }
    uint64_t bit, *word = flow_word(flow, sequence, &bit);
    *word |= bit;
    flow->next++;
    flow->received++;
    return true;
}

#endif
