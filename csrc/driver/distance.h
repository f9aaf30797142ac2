/* How far apart two CPUs are: a cache line goes to and fro between a thread on each.
 *
 * One asks with odd numbers, the other answers with even ones. The best of many short batches
 * counts, for in the others somebody else had one of the CPUs.
 */
#ifndef VHOSTFAST_DISTANCE_H
#define VHOSTFAST_DISTANCE_H

#include <time.h>

#include "sync.h"

enum distance_limit {
    DISTANCE_BATCHES = 100,
    DISTANCE_BATCH = 50,        /* there and back again */
    DISTANCE_PATIENCE = 100000, /* looks between two at the clock */
};

struct distance {
    uint32_t word __attribute__((aligned(CACHE_LINE)));
    uint64_t deadline_ns __attribute__((aligned(CACHE_LINE)));
};

ALWAYS_INLINE uint64_t distance_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* False where the other side doesn't run. */
ALWAYS_INLINE bool distance_await(const struct distance *distance, uint32_t value)
{
    for (uint64_t look = 1; load_acquire_u32(&distance->word) != value; look++) {
        if (look % DISTANCE_PATIENCE == 0 && distance_now_ns() > distance->deadline_ns)
            return false;
    }
    return true;
}

static inline bool distance_answer(struct distance *distance)
{
    for (uint32_t n = 0; n < DISTANCE_BATCHES * DISTANCE_BATCH; n++) {
        if (!distance_await(distance, 2 * n + 1))
            return false;
        store_release_u32(&distance->word, 2 * n + 2);
    }
    return true;
}

/* Nanoseconds from one CPU to the other, or a negative number where the other side doesn't run. */
static inline double distance_ask(struct distance *distance)
{
    uint64_t best = UINT64_MAX;
    uint32_t n = 0;
    for (uint32_t batch = 0; batch < DISTANCE_BATCHES; batch++) {
        uint64_t began = distance_now_ns();
        for (uint32_t i = 0; i < DISTANCE_BATCH; i++, n++) {
            store_release_u32(&distance->word, 2 * n + 1);
            if (!distance_await(distance, 2 * n + 2))
                return -1.0;
        }
        uint64_t spent = distance_now_ns() - began;
        best = spent < best ? spent : best;
    }
    return (double)best / (2.0 * DISTANCE_BATCH);
}

#endif
