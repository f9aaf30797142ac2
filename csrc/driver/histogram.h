/* How often each value came: exact up to 255, then to 1/128 of the value, up to 64 bits.
 *
 * Each power of two is cut into HISTOGRAM_PARTS buckets of equal width, so that a value costs a
 * shift and an addition and the longest ones are kept as truly as the shortest. Nothing is ever
 * left out, and `max` is exact.
 */
#ifndef VHOSTFAST_HISTOGRAM_H
#define VHOSTFAST_HISTOGRAM_H

#include "sync.h"

enum histogram_shape {
    HISTOGRAM_BITS = 7,
    HISTOGRAM_PARTS = 1 << HISTOGRAM_BITS, /* of each power of two */
    HISTOGRAM_BUCKETS = (65 - HISTOGRAM_BITS) << HISTOGRAM_BITS,
};

struct histogram {
    uint64_t max;
    uint64_t count[HISTOGRAM_BUCKETS];
};

ALWAYS_INLINE uint32_t histogram_bucket(uint64_t value)
{
    if (value < 2 * HISTOGRAM_PARTS)
        return (uint32_t)value;
    uint32_t shift = 63 - HISTOGRAM_BITS - (uint32_t)__builtin_clzll(value);
    return (shift << HISTOGRAM_BITS) + (uint32_t)(value >> shift);
}

/* The highest value that belongs to a bucket. */
ALWAYS_INLINE uint64_t histogram_top(uint32_t bucket)
{
    if (bucket < 2 * HISTOGRAM_PARTS)
        return bucket;
    uint32_t shift = (bucket >> HISTOGRAM_BITS) - 1;
    uint64_t part = bucket - (shift << HISTOGRAM_BITS);
    return ((part + 1) << shift) - 1; /* of the last bucket: 2^64 - 1 */
}

ALWAYS_INLINE void histogram_note(struct histogram *histogram, uint64_t value)
{
    histogram->count[histogram_bucket(value)]++;
    histogram->max = value > histogram->max ? value : histogram->max;
}

#endif
