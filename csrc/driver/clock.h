/* How fast cycle_count runs, by the kernel's raw clock, which nobody slews.
 *
 * Both are read at two moments some time apart. Whoever is interrupted between the two readings of
 * a moment knows it by how long they took, and reads again: the quickest of some pairs counts.
 */
#ifndef VHOSTFAST_CLOCK_H
#define VHOSTFAST_CLOCK_H

#include <time.h>

#include "sync.h"

enum { CLOCK_LOOKS = 16 };

struct clock_moment {
    uint64_t cycles, ns;
};

static inline struct clock_moment clock_now(void)
{
    struct clock_moment best = {0, 0};
    uint64_t quickest = UINT64_MAX;
    for (uint32_t i = 0; i < CLOCK_LOOKS; i++) {
        struct timespec now;
        uint64_t before = cycle_count();
        clock_gettime(CLOCK_MONOTONIC_RAW, &now);
        uint64_t spent = cycle_count() - before;
        if (spent >= quickest)
            continue;
        quickest = spent;
        best.cycles = before + spent / 2;
        best.ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
    }
    return best;
}

/* Cycles a nanosecond, over some milliseconds in which we sleep. */
static inline double clock_rate(uint32_t milliseconds)
{
    struct clock_moment before = clock_now();
    struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    nanosleep(&pause, NULL);
    struct clock_moment after = clock_now();
    return (double)(after.cycles - before.cycles) / (double)(after.ns - before.ns);
}

#endif
