/* The one bounds check: every edge of every region, from any remembered region. */
#include "region.h"

#include "check.h"

/*  gpa      0x1000 ......... 0x3000 0x3000 ... 0x3001   hole   0x8000 ... 0x9000   hole
 *           region 0                region 1, one byte         region 2
 *  and one region that ends with the last byte but one of the address space */
static struct region_table table = {
    .count = 4,
    .region = {
        {.gpa = 0x1000, .size = 0x2000, .uva = 0x700000001000, .host = (uint8_t *)0x10000000},
        {.gpa = 0x3000, .size = 1, .uva = 0x700000009000, .host = (uint8_t *)0x20000000},
        {.gpa = 0x8000, .size = 0x1000, .uva = 0x10, .host = (uint8_t *)0x30000fff},
        {.gpa = UINT64_MAX - 0x1000, .size = 0x1000, .uva = UINT64_MAX - 0x1000,
         .host = (uint8_t *)0x40000000},
    },
};

static const struct {
    uint64_t gpa, host, reach; /* host 0: no memory */
} AT[] = {
    {0, 0, 0},
    {0xfff, 0, 0},
    {0x1000, 0x10000000, 0x2000},
    {0x1001, 0x10000001, 0x1fff},
    {0x2fff, 0x10001fff, 1},
    {0x3000, 0x20000000, 1}, /* adjacent in the guest, not here */
    {0x3001, 0, 0},          /* a hole */
    {0x7fff, 0, 0},
    {0x8000, 0x30000fff, 0x1000},
    {0x8fff, 0x30001ffe, 1},
    {0x9000, 0, 0},
    {UINT64_MAX - 0x1001, 0, 0},
    {UINT64_MAX - 0x1000, 0x40000000, 0x1000},
    {UINT64_MAX - 1, 0x40000fff, 1},
    {UINT64_MAX, 0, 0},
};

static void test_edges_whatever_is_remembered(void)
{
    for (uint32_t remembered = 0; remembered < table.count; remembered++) {
        for (size_t i = 0; i < COUNT(AT); i++) {
            uint32_t last = remembered;
            uint64_t reach = 0;
            uint8_t *host = region_at(&table, &last, AT[i].gpa, &reach);
            SAME(i, (uintptr_t)host, AT[i].host);
            SAME(i, reach, AT[i].reach);
            if (host == NULL)
                SAME(i, last, remembered);
            else
                CHECK(AT[i].gpa - table.region[last].gpa < table.region[last].size);
        }
    }
}

static void test_no_memory_at_all(void)
{
    static struct region_table empty;
    uint32_t last = 0;
    uint64_t reach;
    for (size_t i = 0; i < COUNT(AT); i++)
        CHECK(region_at(&empty, &last, AT[i].gpa, &reach) == NULL);
    CHECK(region_of_uva(&empty, 0, 0) == NULL);
}

static const struct {
    uint64_t uva, size;
    int region; /* -1: none */
} UVA[] = {
    {0x700000001000, 0x2000, 0},
    {0x700000001000, 0x2001, -1},
    {0x700000001001, 0x2000, -1},
    {0x700000002fff, 1, 0},
    {0x700000003000, 1, -1},
    {0x700000000fff, 1, -1},
    {0x700000009000, 1, 1},
    {0x700000009000, 2, -1},
    {0x10, 0x1000, 2},
    {0xf, 1, -1},
    {0x100f, 1, 2},
    {0x100f, UINT64_MAX, -1},     /* wraps */
    {0x1000, UINT64_MAX, -1},     /* ends before it begins, modulo 2^64 */
    {UINT64_MAX - 0x1000, 0x1000, 3},
    {UINT64_MAX - 1, 2, -1},
    {UINT64_MAX, 1, -1},
};

static void test_ring_addresses(void)
{
    for (size_t i = 0; i < COUNT(UVA); i++) {
        const struct region *found = region_of_uva(&table, UVA[i].uva, UVA[i].size);
        SAME(i, found ? found - table.region : -1, UVA[i].region);
    }
}

/* The search agrees with a look at each region, at its edges and anywhere. */
static void check_search(const struct region_table *regions, uint64_t beyond)
{
    uint32_t last = 0;
    for (uint32_t i = 0; i < 4000; i++) {
        const struct region *near = &regions->region[random_below(regions->count)];
        uint64_t wanted = i % 2 ? random_below(beyond)
                                : near->gpa + (i % 4 ? near->size - 2 : 0) + random_below(4) - 1;
        uint64_t reach;
        const struct region *found = NULL;
        for (uint32_t r = 0; r < regions->count; r++)
            if (wanted - regions->region[r].gpa < regions->region[r].size)
                found = &regions->region[r];
        uint8_t *host = region_at(regions, &last, wanted, &reach);
        SAME(i, (uintptr_t)host, found ? (uintptr_t)found->host + wanted - found->gpa : 0);
        if (found)
            SAME(i, reach, found->gpa + found->size - wanted);
    }
}

/* Any number of regions, some touching and some not, small and large, low and at the very end of
 * the address space; with an index and without. */
static void test_search(void)
{
    for (uint32_t round = 0; round < 300; round++) {
        struct region_table regions = {.count = 1 + random_below(REGION_COUNT_MAX)};
        const uint64_t sizes = UINT64_C(1) << (1 + random_below(52));
        const uint64_t room = (uint64_t)REGION_COUNT_MAX * 2 * (sizes + 1);
        uint64_t gpa = round % 3 ? random_below(0x10000) : UINT64_MAX - room;
        for (uint32_t i = 0; i < regions.count; i++) {
            gpa += random_below(3) ? 0 : random_below(sizes);
            regions.region[i] =
                (struct region){.gpa = gpa, .size = 1 + random_below(sizes), .host = (void *)gpa};
            gpa += regions.region[i].size;
        }
        if (round % 4)
            region_table_index(&regions);
        check_search(&regions, gpa + 2 * sizes > gpa ? gpa + 2 * sizes : UINT64_MAX);
    }
}

/* As many regions as there can be: a place behind them is nowhere, and nothing behind the table is
 * looked at. */
static void test_a_full_table(void)
{
    static struct {
        struct region_table regions;
        struct region behind;
    } full = {.regions.count = REGION_COUNT_MAX, .behind = {.size = UINT64_MAX}};
    const uint64_t end = 2 * REGION_COUNT_MAX;
    for (uint32_t i = 0; i < REGION_COUNT_MAX; i++)
        full.regions.region[i] = (struct region){.gpa = 2 * i, .size = 1};
    region_table_index(&full.regions);
    for (uint64_t gpa = end; gpa < end + 2 * REGION_PLACES; gpa++) {
        uint32_t last = 0;
        uint64_t reach;
        CHECK(region_at(&full.regions, &last, gpa, &reach) == NULL);
    }
}

int main(void)
{
    test_edges_whatever_is_remembered();
    test_no_memory_at_all();
    test_ring_addresses();
    test_search();
    test_a_full_table();
    return 0;
}
