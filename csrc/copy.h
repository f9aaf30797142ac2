/* Copy kernels by size class, in vectors of `width` bytes.
 *
 * `width` is a constant where these are inlined: 16, 32 or 64, by the instruction-set level that
 * the burst body is compiled for. Short tails overlap what was copied before rather than loop over
 * bytes; no byte outside of [to, to + size) is touched.
 */
#ifndef VHOSTFAST_COPY_H
#define VHOSTFAST_COPY_H

#include "sync.h"

typedef uint8_t vector16 __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint8_t vector32 __attribute__((vector_size(32), aligned(1), may_alias));
typedef uint8_t vector64 __attribute__((vector_size(64), aligned(1), may_alias));
typedef uint16_t u16_any __attribute__((aligned(1), may_alias));

ALWAYS_INLINE void copy_vector(uint8_t *to, const uint8_t *from, const uint32_t width)
{
    if (width == 64)
        *(vector64 *)to = *(const vector64 *)from;
    else if (width == 32)
        *(vector32 *)to = *(const vector32 *)from;
    else
        *(vector16 *)to = *(const vector16 *)from;
}

/* 0 to 15 bytes. */
ALWAYS_INLINE void copy_small(uint8_t *to, const uint8_t *from, uint32_t size)
{
    if (size >= 8) {
        uint64_t first = *(const u64_any *)from, last = *(const u64_any *)(from + size - 8);
        *(u64_any *)to = first;
        *(u64_any *)(to + size - 8) = last;
    } else if (size >= 4) {
        uint32_t first = *(const u32_any *)from, last = *(const u32_any *)(from + size - 4);
        *(u32_any *)to = first;
        *(u32_any *)(to + size - 4) = last;
    } else if (size >= 2) {
        uint16_t first = *(const u16_any *)from, last = *(const u16_any *)(from + size - 2);
        *(u16_any *)to = first;
        *(u16_any *)(to + size - 2) = last;
    } else if (size == 1) {
        *to = *from;
    }
}

ALWAYS_INLINE void copy_bytes(uint8_t *to, const uint8_t *from, uint32_t size, const uint32_t width)
{
    if (likely(size >= width)) {
        uint32_t done = 0;
        for (; size - done >= 4 * width; done += 4 * width) {
            copy_vector(to + done, from + done, width);
            copy_vector(to + done + width, from + done + width, width);
            copy_vector(to + done + 2 * width, from + done + 2 * width, width);
            copy_vector(to + done + 3 * width, from + done + 3 * width, width);
        }
        for (; size - done >= width; done += width)
            copy_vector(to + done, from + done, width);
        if (done < size)
            copy_vector(to + size - width, from + size - width, width);
    } else if (width == 64 && size >= 32) {
        copy_vector(to, from, 32);
        copy_vector(to + size - 32, from + size - 32, 32);
    } else if (size >= 16) {
        copy_vector(to, from, 16);
        copy_vector(to + size - 16, from + size - 16, 16);
    } else {
        copy_small(to, from, size);
    }
}

#endif
