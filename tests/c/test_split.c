/* The split ring's verbs: lawful and hostile chains, indices that wrap, marks, suppression. */
#include "split.h"

#include "guest.h"

enum { SIZE = 8, LOW = 0x10000, HIGH = 0x40000, BYTES = 0x2000 };

/* LOW: 0x2000 bytes in two regions that touch, cut where a descriptor of a table may lie across;
 * then a hole; HIGH: 0x2000 bytes. */
enum { CUT = 0x808 };

static struct guest guest;
static struct span spans[SPAN_COUNT_MAX];
static struct chain chain = {.span = spans};
static struct taken taken;

static void start(uint32_t size, uint16_t index, bool event_idx)
{
    guest.table.count = 0;
    guest_memory(&guest, LOW, CUT);
    guest_memory(&guest, LOW + CUT, BYTES - CUT);
    guest_memory(&guest, HIGH, BYTES);
    guest_ring(&guest, size, index, event_idx);
}

static int pop(enum direction direction)
{
    chain_clear(&chain);
    return split_pop(&guest.ring, &chain, &taken, direction);
}

/* --- Chains: descriptors as rows; what a walk of head 0 makes of them. */

enum { N = VRING_DESC_NEXT, W = VRING_DESC_WRITE, I = VRING_DESC_INDIRECT, ROWS = 4 };

static const struct chain_case {
    struct vring_desc desc[ROWS];
    enum direction direction;
    enum fault fault;
    uint64_t size;
} CHAINS[] = {
    {{{LOW, 1, 0, 0}}, DEVICE_READS, FAULT_NONE, 1},
    {{{LOW, 1, 0, 0xffff}}, DEVICE_READS, FAULT_NONE, 1}, /* next means nothing without NEXT */
    {{{LOW, BYTES, 0, 0}}, DEVICE_READS, FAULT_NONE, BYTES},
    {{{LOW, BYTES, W, 0}}, DEVICE_WRITES, FAULT_NONE, BYTES},
    {{{LOW, 0, 0, 0}}, DEVICE_READS, FAULT_NONE, 0},
    {{{LOW, 0, N, 1}, {HIGH, 0, N, 2}, {HIGH, 7, N, 3}, {LOW, 0, 0, 0}}, DEVICE_READS, 0, 7},
    {{{LOW, 3, N, 2}, {0}, {HIGH, 4, 0, 0}}, DEVICE_READS, FAULT_NONE, 7},
    {{{LOW, 3, 0xfff8, 0}}, DEVICE_READS, FAULT_NONE, 3}, /* flags that nobody knows */
    /* addresses */
    {{{0, 1, 0, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{UINT64_MAX, 1, 0, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{UINT64_MAX - 1, 16, 0, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{LOW - 1, 2, 0, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{LOW + BYTES - 1, 1, 0, 0}}, DEVICE_READS, FAULT_NONE, 1},
    {{{LOW + BYTES - 1, 2, 0, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{LOW + BYTES, 0, 0, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{LOW, HIGH - LOW + 1, 0, 0}}, DEVICE_READS, FAULT_ADDRESS, 0}, /* over the hole */
    {{{LOW, UINT32_MAX, 0, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{LOW, 1, N, 1}, {0, 1, 0, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    /* heads, loops */
    {{{LOW, 1, N, SIZE}}, DEVICE_READS, FAULT_HEAD, 0},
    {{{LOW, 1, N, 0xffff}}, DEVICE_READS, FAULT_HEAD, 0},
    {{{LOW, 1, N, 0}}, DEVICE_READS, FAULT_LOOP, 0},
    {{{LOW, 1, N, 1}, {LOW, 1, N, 0}}, DEVICE_READS, FAULT_LOOP, 0},
    {{{LOW, 0, N, 1}, {LOW, 0, N, 2}, {LOW, 0, N, 1}}, DEVICE_READS, FAULT_LOOP, 0},
    /* directions */
    {{{LOW, 1, W, 0}}, DEVICE_READS, FAULT_DIRECTION, 0},
    {{{LOW, 1, 0, 0}}, DEVICE_WRITES, FAULT_DIRECTION, 0},
    {{{LOW, 1, N, 1}, {LOW, 1, W, 0}}, DEVICE_READS, FAULT_DIRECTION, 0},
    {{{LOW, 1, N | W, 1}, {LOW, 1, 0, 0}}, DEVICE_WRITES, FAULT_DIRECTION, 0},
    /* indirect, the table's place and length only: it is all zero, so its entries have no memory */
    {{{LOW, 16, I, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{LOW, 0, I, 0}}, DEVICE_READS, FAULT_INDIRECT, 0},
    {{{LOW, 8, I, 0}}, DEVICE_READS, FAULT_INDIRECT, 0},
    {{{LOW, 17, I, 0}}, DEVICE_READS, FAULT_INDIRECT, 0},
    {{{LOW, UINT32_MAX, I, 0}}, DEVICE_READS, FAULT_INDIRECT, 0},
    {{{LOW, 16 * (SIZE + 1), I, 0}}, DEVICE_READS, FAULT_INDIRECT, 0},
    {{{LOW, 16, I | N, 1}, {LOW, 1, 0, 0}}, DEVICE_READS, FAULT_INDIRECT, 0},
    {{{0, 16, I, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{UINT64_MAX, 16, I, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{UINT64_MAX - 7, 16, I, 0}}, DEVICE_READS, FAULT_ADDRESS, 0},
    {{{LOW + BYTES - 8, 16, I, 0}}, DEVICE_READS, FAULT_ADDRESS, 0}, /* half in the hole */
    {{{LOW + BYTES - 16, 32, I, 0}}, DEVICE_READS, FAULT_ADDRESS, 0}, /* what nobody looks at */
};

static void test_chains(void)
{
    for (size_t i = 0; i < COUNT(CHAINS); i++) {
        start(SIZE, (uint16_t)(i * 4099), false); /* whatever the index */
        memcpy(guest.ring.desc, CHAINS[i].desc, sizeof CHAINS[i].desc);
        guest_offer(&guest, 0);
        guest_publish(&guest);
        uint16_t before = guest.ring.last_avail;
        bool lawful = CHAINS[i].fault == FAULT_NONE;
        SAME(i, pop(CHAINS[i].direction), lawful ? POP_GOT : POP_BROKEN);
        SAME(i, guest.ring.fault, CHAINS[i].fault);
        SAME(i, guest.ring.last_avail, (uint16_t)(before + lawful));
        if (lawful)
            SAME(i, taken.size, CHAINS[i].size);
    }
}

/* A packet over several buffers: their spans follow each other, each buffer's size is its own. */
static void test_chains_follow_each_other(void)
{
    start(SIZE, 0, false);
    for (uint16_t i = 0; i < SIZE; i++) {
        guest_desc(&guest, i, LOW + i, i, W, 0);
        guest_offer(&guest, i);
    }
    guest_publish(&guest);
    chain_clear(&chain);
    for (uint32_t i = 0, sum = 0; i < SIZE; i++) {
        SAME(i, split_pop(&guest.ring, &chain, &taken, DEVICE_WRITES), POP_GOT);
        SAME(i, taken.size, i);
        SAME(i, chain.size, sum += i);
        SAME(i, chain.count, i + 1);
        SAME(i, spans[i].gpa, LOW + i);
    }
}

/* 4 GiB less a byte is lawful, for each of the buffers of a packet; a byte more isn't. */
static void test_long_buffers(void)
{
    const uint64_t big = UINT64_C(1) << 32;
    start(SIZE, 0, false);
    guest.table.region[guest.table.count++] =
        (struct region){.gpa = big, .size = big, .host = (uint8_t *)big}; /* nobody touches it */
    guest_desc(&guest, 0, big, UINT32_MAX, N | W, 1);
    guest_desc(&guest, 1, LOW, 0, W, 0);
    guest_desc(&guest, 2, big, UINT32_MAX, N | W, 3);
    guest_desc(&guest, 3, LOW, 1, W, 0);
    guest_offer(&guest, 0);
    guest_offer(&guest, 0);
    guest_offer(&guest, 2);
    guest_publish(&guest);
    chain_clear(&chain);
    for (uint64_t i = 1; i <= 2; i++) {
        SAME(i, split_pop(&guest.ring, &chain, &taken, DEVICE_WRITES), POP_GOT);
        SAME(i, taken.size, UINT32_MAX);
        SAME(i, chain.size, i * UINT32_MAX);
    }
    SAME(3, split_pop(&guest.ring, &chain, &taken, DEVICE_WRITES), POP_BROKEN);
    SAME(3, guest.ring.fault, FAULT_LENGTH);
}

static void test_heads(void)
{
    const uint16_t head[] = {SIZE, SIZE + 1, 0x8000, 0xffff};
    for (size_t i = 0; i < COUNT(head); i++) {
        start(SIZE, 0, false);
        guest_offer(&guest, head[i]);
        guest_publish(&guest);
        SAME(i, pop(DEVICE_READS), POP_BROKEN);
        SAME(i, guest.ring.fault, FAULT_HEAD);
    }
}

/* `direct` descriptors, then, if `indirect` is not zero, one that points to a table of so many. */
static int pop_long(uint32_t size, uint32_t direct, uint32_t indirect, uint64_t table)
{
    start(size, 0, false);
    for (uint32_t i = 0; i < direct && i < size; i++)
        guest_desc(&guest, i, LOW, 1, N * (i + 1 < direct || indirect), (i + 1) % size);
    if (indirect)
        guest_desc(&guest, direct, table, indirect * 16, I | W, 0); /* WRITE is ignored */
    for (uint32_t i = 0; i < indirect; i++) {
        struct vring_desc desc = {HIGH + 16 * i, 16, i + 1 < indirect ? N : 0, i + 1};
        for (uint32_t byte = 0; byte < sizeof desc; byte++) {
            uint32_t last = 0;
            uint64_t reach;
            uint8_t *at = region_at(&guest.table, &last, table + 16 * i + byte, &reach);
            *at = ((uint8_t *)&desc)[byte];
        }
    }
    guest_offer(&guest, 0);
    guest_publish(&guest);
    return pop(DEVICE_READS);
}

static const struct {
    uint32_t size, direct, indirect;
    enum fault fault;
} LONG[] = {
    {8, 8, 0, FAULT_NONE},      /* exactly the ring */
    {8, 9, 0, FAULT_LOOP},      /* one more can only be a loop */
    {1, 1, 0, FAULT_NONE},
    {1, 2, 0, FAULT_LOOP},
    {1, 0, 1, FAULT_NONE},
    {1, 0, 2, FAULT_INDIRECT},
    {8, 0, 8, FAULT_NONE},
    {8, 0, 9, FAULT_INDIRECT},
    {8, 7, 1, FAULT_NONE},      /* direct ones first, then a table: lawful */
    {8, 4, 4, FAULT_NONE},
    {8, 4, 5, FAULT_LOOP},      /* tables count */
    {8, 1, 8, FAULT_LOOP},
    {128, 0, 128, FAULT_NONE},
    {VRING_SIZE_MAX, VRING_SIZE_MAX, 0, FAULT_NONE},
    {VRING_SIZE_MAX, VRING_SIZE_MAX + 1, 0, FAULT_LOOP},
};

static void test_long_chains(void)
{
    for (size_t i = 0; i < COUNT(LONG); i++) {
        /* anywhere: at any byte, and across the cut between two regions */
        const uint64_t table[] = {LOW, LOW + 3, LOW + CUT - 8, LOW + CUT - 1, LOW + CUT - 15};
        for (size_t t = 0; t < (LONG[i].indirect ? COUNT(table) : 1); t++) {
            int got = pop_long(LONG[i].size, LONG[i].direct, LONG[i].indirect, table[t]);
            SAME(i, got, LONG[i].fault == FAULT_NONE ? POP_GOT : POP_BROKEN);
            SAME(i, guest.ring.fault, LONG[i].fault);
            if (got == POP_GOT)
                SAME(i, taken.size, LONG[i].direct + 16 * LONG[i].indirect);
        }
    }
}

static void test_tables_that_are_not_lawful(void)
{
    pop_long(SIZE, 0, 2, LOW);
    struct vring_desc *table = (struct vring_desc *)guest.table.region[0].host;
    const struct {
        uint16_t flags, next;
        enum fault fault;
    } entry[] = {
        {N, 1, FAULT_NONE},     {N, 2, FAULT_HEAD},     {N, 0xffff, FAULT_HEAD},
        {N, 0, FAULT_LOOP},     {I, 0, FAULT_INDIRECT}, {I | N, 1, FAULT_INDIRECT},
        {N | W, 1, FAULT_DIRECTION},
    };
    for (size_t i = 0; i < COUNT(entry); i++) {
        guest.ring.last_avail = guest.ring.used_published; /* take it again */
        table[0].flags = entry[i].flags;
        table[0].next = entry[i].next;
        SAME(i, pop(DEVICE_READS), entry[i].fault == FAULT_NONE ? POP_GOT : POP_BROKEN);
        if (entry[i].fault)
            SAME(i, guest.ring.fault, entry[i].fault);
    }
    guest.ring.last_avail = guest.ring.used_published;
    guest.ring.indirect = false; /* not negotiated */
    table[0] = (struct vring_desc){HIGH, 1, 0, 0};
    SAME(-1, pop(DEVICE_READS), POP_BROKEN);
    SAME(-1, guest.ring.fault, FAULT_INDIRECT);
}

/* --- Indices */

static void test_avail_index(void)
{
    const struct {
        uint16_t jump;
        int got;
    } row[] = {{0, POP_EMPTY}, {1, POP_GOT}, {SIZE, POP_GOT}, {SIZE + 1, POP_BROKEN},
               {0x8000, POP_BROKEN}, {0xffff, POP_BROKEN}}; /* the last: backwards */
    for (uint32_t index = 0; index < 0x10000; index += 1023) {
        for (size_t i = 0; i < COUNT(row); i++) {
            start(SIZE, (uint16_t)index, false);
            guest_desc(&guest, 0, LOW, 1, 0, 0);
            guest.ring.avail->idx = (uint16_t)(index + row[i].jump);
            SAME(i, pop(DEVICE_READS), row[i].got);
            SAME(i, guest.ring.fault, row[i].got == POP_BROKEN ? FAULT_AVAIL_INDEX : FAULT_NONE);
        }
    }
}

/* Takes in order, gives back, pushes, over the wrap of both indices, in every ring size. */
static void test_in_order_over_the_wrap(uint32_t size)
{
    start(size, 65530, false);
    uint32_t given = 0, next = 0;
    for (uint32_t i = 0; i < size; i++)
        guest_desc(&guest, i, LOW, i % 64, 0, 0);
    for (uint32_t round = 0; round < 40; round++) {
        for (uint32_t i = 0; i < size; i++)
            guest_offer(&guest, (uint16_t)(given++ * 5 % size));
        guest_publish(&guest);
        uint32_t first = next;
        for (uint32_t i = 0; i < size; i++) {
            SAME(i, pop(DEVICE_READS), POP_GOT);
            SAME(i, taken.head, next * 5 % size);
            SAME(i, taken.size, taken.head % 64);
            next++;
            if (i == size / 2 && round % 2) { /* all of this round again */
                split_rewind(&guest.ring, next - first);
                i -= next - first;
                next = first;
                round++;
            }
        }
        SAME(round, pop(DEVICE_READS), POP_EMPTY);
        for (uint32_t i = 0; i < size; i++)
            split_push(&guest.ring, (first + i) * 5 % size, i);
        uint16_t before = guest.ring.used->idx;
        SAME(round, split_publish(&guest.ring, false), true);
        SAME(round, split_publish(&guest.ring, false), false);
        SAME(round, (uint16_t)(guest.ring.used->idx - before), size);
        for (uint32_t i = 0; i < size; i++) {
            struct vring_used_element *used = &guest.ring.used->ring[(before + i) & (size - 1)];
            SAME(i, used->id, (first + i) * 5 % size);
            SAME(i, used->len, i);
        }
    }
}

/* --- Suppression */

/* 2.7.7.2, by counting: did used.idx, on its way from old to new, leave `event` behind? */
static bool passes(uint16_t old, uint16_t new, uint16_t event)
{
    for (uint16_t index = old; index != new; index++)
        if (index == event)
            return true;
    return false;
}

static void test_calls_with_event_idx(void)
{
    for (uint32_t old = 65530; old < 65530 + 12; old++) {
        start(SIZE, (uint16_t)old, true);
        uint16_t *event = &guest.ring.avail->ring[SIZE];
        for (uint32_t step = 0; step <= SIZE; step++) {
            for (uint32_t e = old - 3; e <= old + SIZE + 3; e++) {
                guest.ring.used_published = (uint16_t)old;
                guest.ring.used_tested = (uint16_t)old;
                guest.ring.tested = true;
                *event = (uint16_t)e;
                guest.ring.avail->flags = VRING_AVAIL_NO_INTERRUPT; /* ignored */
                guest.ring.used_published += (uint16_t)step;
                bool wanted = passes((uint16_t)old, guest.ring.used_published, (uint16_t)e);
                SAME(step, split_wants_call(&guest.ring), wanted);
                SAME(step, split_wants_call(&guest.ring), false); /* once */
            }
        }
        guest.ring.segment = 3;
        split_start(&guest.ring);
        SAME(-1, guest.ring.segment, 0); /* no frame waits */
        *event = (uint16_t)(old + 1000);
        SAME(-1, split_wants_call(&guest.ring), true); /* the first after a start: always */
    }
}

static void test_calls_without_event_idx(void)
{
    start(SIZE, 0, false);
    for (uint32_t flags = 0; flags < 4; flags++) {
        guest.ring.avail->flags = (uint16_t)flags;
        SAME(flags, split_wants_call(&guest.ring), !(flags & VRING_AVAIL_NO_INTERRUPT));
    }
}

/* What the driver does with avail_event: does it kick, having added `count` chains? */
static bool driver_kicks(uint32_t count)
{
    uint16_t old = guest.avail_idx, event = *split_avail_event(&guest.ring);
    guest.avail_idx = (uint16_t)(old + count);
    guest_publish(&guest);
    return passes(old, guest.avail_idx, event);
}

static void test_kicks_with_event_idx(void)
{
    for (uint32_t index = 65530; index < 65545; index++) {
        start(SIZE, (uint16_t)index, true);
        SAME(index, guest.ring.used->flags, 0);
        SAME(index, driver_kicks(SIZE), false); /* not asked for at the start */
        SAME(index, split_want_kicks(&guest.ring, true), true); /* came before we asked */
        guest.ring.last_avail = guest.ring.avail_seen;
        SAME(index, split_want_kicks(&guest.ring, true), false);
        SAME(index, driver_kicks(3), true);
        split_want_kicks(&guest.ring, false);
        SAME(index, driver_kicks(3), false);
        SAME(index, guest.ring.used->flags, 0);
    }
}

static void test_kicks_without_event_idx(void)
{
    start(SIZE, 9, false);
    SAME(-1, guest.ring.used->flags, VRING_USED_NO_NOTIFY);
    SAME(-1, split_want_kicks(&guest.ring, true), false);
    SAME(-1, guest.ring.used->flags, 0);
    guest_offer(&guest, 0);
    guest_publish(&guest);
    SAME(-1, split_want_kicks(&guest.ring, true), true);
    SAME(-1, split_want_kicks(&guest.ring, false), false);
    SAME(-1, guest.ring.used->flags, VRING_USED_NO_NOTIFY);
}

/* --- Marks: the pages of the used ring that were stored to, and no other. */

enum { BIG = 2048, PAGES = 16 };

static void expect_pages(bool *pages, uint64_t used_log, size_t offset, size_t size)
{
    for (size_t i = offset; i < offset + size; i++)
        pages[(used_log + i) / PAGE] = true;
}

static void test_used_ring_is_marked(uint64_t used_log, bool event_idx, bool marks)
{
    start(BIG, 65530, event_idx);
    struct log log = guest_log((used_log + 8 * BIG + 5) / PAGE + 1);
    guest.ring.marker.log = &log;
    guest.ring.marks_used = marks;
    guest.ring.used_log = used_log;
    for (uint32_t round = 0; round < 200; round++) {
        bool stored[PAGES] = {false};
        uint32_t count = (uint32_t)random_below(round % 10 ? 5 : 3 * BIG);
        memset(log.word, 0, 8);
        for (uint32_t i = 0; i < count; i++) {
            expect_pages(stored, used_log, 4 + 8 * (guest.ring.used_next & (BIG - 1)), 8);
            split_push(&guest.ring, i, round);
        }
        if (split_publish(&guest.ring, false))
            expect_pages(stored, used_log, 2, 2);
        if (round % 3 == 0) {
            bool wanted = round % 2;
            if (wanted ? event_idx || !guest.ring.kicks_wanted
                       : !event_idx && guest.ring.kicks_wanted)
                expect_pages(stored, used_log, event_idx ? 4 + 8 * BIG : 0, 2);
            split_want_kicks(&guest.ring, wanted);
        }
        for (uint32_t page = 0; page < log.page_count; page++)
            SAME(page, log_has(&log, page), marks && stored[page]);
    }
    SAME(-1, log.beyond, 0);
}

/* Each edge of idx and of elements on both sides of the wrap, at the edge of a page. */
static void test_used_ring_is_marked_to_the_byte(void)
{
    for (uint64_t used_log = PAGE - 24; used_log <= PAGE; used_log++) {
        for (uint16_t index = BIG - 3; index <= BIG; index++) {
            for (uint16_t count = 1; count <= 4; count++) {
                bool stored[PAGES] = {false};
                start(BIG, index, false);
                struct log log = guest_log(PAGES);
                guest.ring.marker.log = &log;
                guest.ring.marks_used = true;
                guest.ring.used_log = used_log;
                expect_pages(stored, used_log, 2, 2);
                for (uint16_t i = 0; i < count; i++) {
                    expect_pages(stored, used_log, 4 + 8 * ((index + i) & (BIG - 1)), 8);
                    split_push(&guest.ring, i, 0);
                }
                split_publish(&guest.ring, false);
                for (uint32_t page = 0; page < PAGES; page++)
                    SAME(used_log, log_has(&log, page), stored[page]);
            }
        }
    }
}

static void test_start_and_kicks_are_marked_to_the_byte(void)
{
    for (uint64_t used_log = PAGE - 8; used_log <= PAGE + 1; used_log++) {
        for (uint32_t event_idx = 0; event_idx < 2; event_idx++) {
            bool begun[PAGES] = {false}, asked[PAGES] = {false};
            start(BIG, 3, event_idx);
            struct log log = guest_log(PAGES);
            guest.ring.marker.log = &log;
            guest.ring.marks_used = true;
            guest.ring.used_log = used_log;
            expect_pages(begun, used_log, 0, 2);
            if (event_idx)
                expect_pages(begun, used_log, 4 + 8 * BIG, 2);
            expect_pages(asked, used_log, event_idx ? 4 + 8 * BIG : 0, 2);
            split_start(&guest.ring);
            for (uint32_t page = 0; page < PAGES; page++)
                SAME(used_log, log_has(&log, page), begun[page]);
            log.word[0] = 0;
            split_want_kicks(&guest.ring, true);
            for (uint32_t page = 0; page < PAGES; page++)
                SAME(used_log, log_has(&log, page), asked[page]);
        }
    }
}

int main(void)
{
    test_chains();
    test_chains_follow_each_other();
    test_long_buffers();
    test_heads();
    test_long_chains();
    test_tables_that_are_not_lawful();
    test_avail_index();
    for (uint32_t size = 1; size <= 1024; size *= 4)
        test_in_order_over_the_wrap(size);
    test_calls_with_event_idx();
    test_calls_without_event_idx();
    test_kicks_with_event_idx();
    test_kicks_without_event_idx();
    for (uint64_t used_log = 0; used_log < 0x3000; used_log += 0x7fc) {
        test_used_ring_is_marked(used_log, true, true);
        test_used_ring_is_marked(used_log, false, true);
    }
    test_used_ring_is_marked(PAGE - 4, true, false);
    test_used_ring_is_marked_to_the_byte();
    test_start_and_kicks_are_marked_to_the_byte();
    return 0;
}
