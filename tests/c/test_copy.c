/* The copy kernels: every size at every alignment, for each instruction-set level, with a guard
 * page right behind source and target, then right before them. */
#include "copy.h"

#include "check.h"

enum { SIZE_MAX_TESTED = 4200, MARGIN = 64, SHIFT_COUNT = 64, SHORT = 300 };

static void copy_16(uint8_t *to, const uint8_t *from, uint32_t size)
{
    copy_bytes(to, from, size, 16);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void copy_32(uint8_t *to, const uint8_t *from, uint32_t size)
{
    copy_bytes(to, from, size, 32);
}

__attribute__((target("avx512f,avx512bw,avx512vl"))) static void
copy_64(uint8_t *to, const uint8_t *from, uint32_t size)
{
    copy_bytes(to, from, size, 64);
}

static void (*const KERNEL[WIDTH_COUNT])(uint8_t *, const uint8_t *,
                                         uint32_t) = {copy_16, copy_32, copy_64};
#else
static void (*const KERNEL[1])(uint8_t *, const uint8_t *, uint32_t) = {copy_16};
#endif

static uint8_t untouched[MARGIN];

/* Copies and compares; [to - before, to + size + after) is ours, and only the middle may change. */
static void copy_once(uint32_t level, uint8_t *to, const uint8_t *from, uint32_t size,
                      size_t before, size_t after)
{
    memset(to - before, 0xa5, before);
    memset(to, 0x5a, size);
    memset(to + size, 0xa5, after);
    KERNEL[level](to, from, size);
    SAME(size, memcmp(to, from, size), 0);
    SAME(size, memcmp(to - before, untouched, before), 0);
    SAME(size, memcmp(to + size, untouched, after), 0);
}

static void test_at_the_end_of_memory(uint32_t level, const uint8_t *from, size_t length,
                                      uint8_t *to)
{
    for (uint32_t size = 0; size <= SIZE_MAX_TESTED; size++)
        copy_once(level, to + length - size, from + length - size, size, MARGIN, 0);
}

static void test_at_the_start_of_memory(uint32_t level, const uint8_t *from, uint8_t *to)
{
    for (uint32_t size = 0; size <= SIZE_MAX_TESTED; size++)
        copy_once(level, to, from, size, 0, MARGIN);
}

/* All pairs of alignments for short copies; for long ones, where vectors straddle lines at all. */
static void test_alignments(uint32_t level, const uint8_t *from, uint8_t *to)
{
    for (uint32_t size = 0; size <= SIZE_MAX_TESTED; size += size < SHORT ? 1 : 61)
        for (uint32_t shift = 0; shift < SHIFT_COUNT; shift++)
            copy_once(level, to + MARGIN + shift, from + (shift * 37) % SHIFT_COUNT, size, MARGIN,
                      MARGIN);
}

int main(void)
{
    const size_t length = 2 * (size_t)PAGE;
    uint8_t *from = guarded_pages(length), *to = guarded_pages(length);
    random_bytes(from, length);
    memset(untouched, 0xa5, MARGIN);
    for (uint32_t level = 0; level < COUNT(KERNEL); level++) {
        if (!cpu_has(WIDTHS[level]))
            continue;
        test_at_the_end_of_memory(level, from, length, to);
        test_at_the_start_of_memory(level, from, to);
        test_alignments(level, from, to);
    }
    return 0;
}
