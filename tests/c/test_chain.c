/* Chains: what is appended where regions meet and end, and bytes that cross any cut of either
 * side. */
#include "chain.h"

#include "guest.h"

static struct span spans[SPAN_COUNT_MAX], other_spans[SPAN_COUNT_MAX];

/* 0x1000-0x2fff and 0x3000-0x300f and 0x3010-0x3fff touch; a hole; 8 GiB at 4 GiB; then the top. */
static struct region_table table = {
    .count = 5,
    .region = {
        {.gpa = 0x1000, .size = 0x2000, .host = (uint8_t *)0x10000000},
        {.gpa = 0x3000, .size = 0x10, .host = (uint8_t *)0x20000000},
        {.gpa = 0x3010, .size = 0xff0, .host = (uint8_t *)0x30000000},
        {.gpa = UINT64_C(1) << 32, .size = UINT64_C(1) << 33, .host = (uint8_t *)0x40000000},
        {.gpa = UINT64_MAX - 0xfff, .size = 0xfff, .host = (uint8_t *)0x50000000},
    },
};

static const struct {
    uint64_t gpa;
    uint32_t size;
    enum fault fault;
    uint32_t count; /* spans, where there is no fault */
} APPEND[] = {
    {0x1000, 0x2000, FAULT_NONE, 1},
    {0x1000, 0x2001, FAULT_NONE, 2},
    {0x2fff, 0x12, FAULT_NONE, 3},
    {0x1000, 0x3000, FAULT_NONE, 3},
    {0x1000, 0x3001, FAULT_ADDRESS, 0}, /* one into the hole */
    {0xfff, 2, FAULT_ADDRESS, 0},
    {0x3fff, 1, FAULT_NONE, 1},
    {0x4000, 1, FAULT_ADDRESS, 0},
    {0x3fff, 0, FAULT_NONE, 1}, /* an empty buffer is a buffer */
    {0x4000, 0, FAULT_ADDRESS, 0}, /* whatever its length (CVE-2020-10725) */
    {0, 0, FAULT_ADDRESS, 0},
    {UINT64_C(1) << 32, UINT32_MAX, FAULT_NONE, 1},
    {UINT64_MAX - 0xfff, 0xfff, FAULT_NONE, 1},
    {UINT64_MAX - 0xfff, 0x1000, FAULT_ADDRESS, 0}, /* ends at 2^64 */
    {UINT64_MAX - 0xfff, 0x1001, FAULT_ADDRESS, 0},
    {UINT64_MAX - 0xfff, UINT32_MAX, FAULT_ADDRESS, 0},
    {UINT64_MAX, 0, FAULT_ADDRESS, 0},
    {UINT64_MAX, 1, FAULT_ADDRESS, 0},
};

static void test_append(void)
{
    for (uint32_t remembered = 0; remembered < table.count; remembered++) {
        for (size_t i = 0; i < COUNT(APPEND); i++) {
            struct chain chain = {.span = spans};
            uint32_t last = remembered;
            SAME(i, chain_append(&chain, &table, &last, APPEND[i].gpa, APPEND[i].size),
                 APPEND[i].fault);
            if (APPEND[i].fault)
                continue;
            SAME(i, chain.count, APPEND[i].count);
            SAME(i, chain.size, APPEND[i].size);
            uint64_t gpa = APPEND[i].gpa;
            for (uint32_t s = 0; s < chain.count; gpa += spans[s++].size) {
                uint64_t reach;
                SAME(i, spans[s].gpa, gpa);
                SAME(i, (uintptr_t)spans[s].host, (uintptr_t)region_at(&table, &last, gpa, &reach));
                CHECK(spans[s].size <= reach);
            }
            SAME(i, gpa - APPEND[i].gpa, APPEND[i].size);
        }
    }
}

static void test_limits(void)
{
    struct chain chain = {.span = spans};
    uint32_t last = 0;
    for (uint32_t i = 0; i < SPAN_COUNT_MAX; i++)
        SAME(i, chain_append(&chain, &table, &last, 0x1000, 1), FAULT_NONE);
    SAME(-1, chain_append(&chain, &table, &last, 0x1000, 1), FAULT_LENGTH);
    SAME(-1, chain.count, SPAN_COUNT_MAX);
}

/* A packet of `size` bytes in up to `cuts` + 1 pieces, some empty, in slots between guard pages. */
enum { SLOT_COUNT = 16, SLOT_SIZE = 3000 };

static struct chain cut(struct span *span, uint8_t *const *slot, uint64_t gpa, uint32_t size,
                        uint64_t cuts)
{
    struct chain chain = {.span = span};
    for (uint32_t left = size; chain.count <= cuts || left > 0; chain.count++) {
        uint32_t part = (uint32_t)random_below(left + 1) * (random_below(3) > 0);
        part = chain.count >= cuts ? left : part;
        part = part > SLOT_SIZE ? SLOT_SIZE : part;
        span[chain.count] = (struct span){.host = slot[chain.count] + SLOT_SIZE - part,
                                          .gpa = gpa + chain.count * UINT64_C(0x10000),
                                          .size = part};
        left -= part;
    }
    chain.size = size;
    return chain;
}

static void flatten(const struct chain *chain, uint8_t *to)
{
    for (uint32_t i = 0; i < chain->count; to += chain->span[i++].size)
        memcpy(to, chain->span[i].host, chain->span[i].size);
}

/* Every page that was written is marked, and no other. */
static void check_marks(struct log *log, struct marker *marker, const struct chain *to,
                        uint32_t size)
{
    log_flush(marker, false);
    for (uint64_t page = 0; page < log->page_count; page++) {
        bool written = false;
        uint64_t begin = 0;
        for (uint32_t i = 0; i < to->count; begin += to->span[i++].size) {
            uint64_t end = begin + to->span[i].size < size ? begin + to->span[i].size : size;
            uint64_t first = to->span[i].gpa >> LOG_PAGE_SHIFT;
            if (begin < end)
                written |= page >= first &&
                           page <= (to->span[i].gpa + (end - begin) - 1) >> LOG_PAGE_SHIFT;
        }
        SAME(page, log_has(log, page), written);
    }
}

static void test_bytes_over_any_cut(void)
{
    static uint8_t flat[SLOT_COUNT * SLOT_SIZE], got[SLOT_COUNT * SLOT_SIZE];
    uint8_t *from_slot[SLOT_COUNT], *to_slot[SLOT_COUNT];
    for (uint32_t i = 0; i < SLOT_COUNT; i++) {
        from_slot[i] = guarded(SLOT_SIZE);
        to_slot[i] = guarded(SLOT_SIZE);
        random_bytes(from_slot[i], SLOT_SIZE);
    }
    struct log log = guest_log(SLOT_COUNT * 16);
    for (uint32_t round = 0; round < 3000; round++) {
        const uint32_t width = WIDTHS[0]; /* test_copy.c has the others */
        uint32_t size = (uint32_t)random_below(round % 2 ? 100 : 9000);
        struct chain from = cut(spans, from_slot, 0, size, random_below(8));
        struct chain to = cut(other_spans, to_slot, random_below(5000), size, random_below(8));
        struct marker marker = {.log = &log};
        struct cursor source = chain_start(&from), target = chain_start(&to);
        uint32_t head = (uint32_t)random_below(size + 1);
        memset(log.word, 0, log.page_count / 8);
        flatten(&from, flat);
        cursor_copy(&target, &marker, &source, head, width); /* in two steps, as a frame goes */
        check_marks(&log, &marker, &to, head);
        cursor_copy(&target, &marker, &source, size - head, width);
        check_marks(&log, &marker, &to, size);
        flatten(&to, got);
        SAME(round, memcmp(got, flat, size), 0);

        source = chain_start(&from);
        cursor_read(&source, got, size);
        SAME(round, memcmp(got, flat, size), 0);
        for (uint32_t i = 0; i < size; i++)
            flat[i] ^= 0xff;
        target = chain_start(&to);
        memset(log.word, 0, log.page_count / 8);
        cursor_write(&target, &marker, flat, head);
        cursor_write(&target, &marker, flat + head, size - head);
        check_marks(&log, &marker, &to, size);
        flatten(&to, got);
        SAME(round, memcmp(got, flat, size), 0);
    }
}

int main(void)
{
    test_append();
    test_limits();
    test_bytes_over_any_cut();
    return 0;
}
