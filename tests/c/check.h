/* What a C test needs: a check that says what it saw, memory that ends where it ends, and numbers
 * that look random but are the same each time. */
#ifndef TESTS_CHECK_H
#define TESTS_CHECK_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "spec.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define CHECK(condition) check(__FILE__, __LINE__, "", -1, (condition) != 0, 1, #condition)
/* `row` is the number in a table, or -1. */
#define SAME(row, got, wanted)                                                                     \
    check(__FILE__, __LINE__, "row ", (row), (uint64_t)(got), (uint64_t)(wanted), #got)

static inline void check(const char *file, int line, const char *what, long row, uint64_t got,
                         uint64_t wanted, const char *text)
{
    if (likely(got == wanted))
        return;
    fprintf(stderr, "%s:%d: ", file, line);
    if (row >= 0)
        fprintf(stderr, "%s%ld: ", what, row);
    fprintf(stderr, "%s is %" PRIu64 " (%#" PRIx64 "), wanted %" PRIu64 " (%#" PRIx64 ")\n", text,
            got, got, wanted, wanted);
    abort();
}

enum { PAGE = 4096 };

/* Whole pages, at least `size` bytes, zeroed, between two that nobody may touch. ASan can't see an
 * overrun within one mmap; a page without access can. */
static inline uint8_t *guarded_pages(size_t size)
{
    size_t pages = (size + PAGE - 1) / PAGE * PAGE;
    uint8_t *map = mmap(NULL, pages + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(map != MAP_FAILED);
    CHECK(mprotect(map + PAGE, pages, PROT_READ | PROT_WRITE) == 0);
    return map + PAGE;
}

/* `size` bytes of which the last stands before a page that nobody may touch. */
static inline uint8_t *guarded(size_t size)
{
    return guarded_pages(size) + (PAGE - size % PAGE) % PAGE;
}

/* xorshift64*: the tests of a run see what those of any other do. */
static uint64_t random_state = UINT64_C(0x9e3779b97f4a7c15);

static inline uint64_t random_below(uint64_t limit)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return (random_state * UINT64_C(0x2545f4914f6cdd1d)) % limit;
}

static inline void random_bytes(uint8_t *at, size_t size)
{
    for (size_t i = 0; i < size; i++)
        at[i] = (uint8_t)random_below(256);
}

/* The instruction-set levels that this CPU has: what the copy is compiled for. */
enum { WIDTH_COUNT = 3 };
static const uint32_t WIDTHS[WIDTH_COUNT] = {16, 32, 64};

static inline bool cpu_has(uint32_t width)
{
#if defined(__x86_64__)
    return width == 64 ? __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                       : width == 16 || __builtin_cpu_supports("avx2");
#else
    return width == 16;
#endif
}

#endif
