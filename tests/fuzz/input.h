/* The fuzzer's bytes, taken one after the other; behind their end there are zeros. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include "check.h"

struct input {
    const uint8_t *at, *end;
};

static inline uint64_t take(struct input *in, uint32_t size)
{
    uint64_t value = 0;
    for (uint32_t i = 0; i < size && in->at < in->end; i++)
        value |= (uint64_t)*in->at++ << 8 * i;
    return value;
}

static inline uint32_t take_below(struct input *in, uint32_t limit)
{
    return (uint32_t)take(in, limit > 256 ? 4 : 1) % limit;
}

/* A number that lies on somebody's boundary, more often than not. */
static inline uint64_t take_edge(struct input *in)
{
    static const uint64_t edge[] = {
        0, 1, 2, 12, 15, 16, 0x7fff, 0x8000, 0xffff, 0x10000, UINT32_MAX - 1, UINT32_MAX,
        UINT64_C(1) << 63, UINT64_MAX - 15, UINT64_MAX - 1, UINT64_MAX,
    };
    uint32_t which = take_below(in, 2 * COUNT(edge));
    return which < COUNT(edge) ? edge[which] : take(in, which % 8 + 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
