/* Every table of up to three regions whose edges are among a few addresses at both ends of the
 * address space, and every (address, length) there: the look-ups against single bytes with
 * addresses of 128 bits. No sum overflows, and nothing is found that isn't all there.
 */
#include "chain.h"

#include "check.h"

typedef unsigned __int128 wide;

enum { REGION_COUNT_HERE = 3, HOST = 0x10000000, ROOM = 16 };

#define LOW 0, 1, 2, 3, 4, 5, 6
#define HIGH                                                                                       \
    UINT64_MAX - 6, UINT64_MAX - 5, UINT64_MAX - 4, UINT64_MAX - 3, UINT64_MAX - 2,                \
        UINT64_MAX - 1, UINT64_MAX
static const uint64_t EDGE[] = {LOW, HIGH};
static const uint64_t AT[] = {LOW, 7, UINT64_C(1) << 63, UINT64_MAX - 7, HIGH};
static const uint64_t SIZE[] = {
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, UINT32_MAX - 1, UINT32_MAX, UINT64_C(1) << 32,
    UINT64_C(1) << 63, UINT64_MAX - 8, UINT64_MAX - 5, UINT64_MAX - 1, UINT64_MAX,
};

static struct region_table table;
static uint64_t looked;

/* The region that holds the byte, or -1. */
static int owner(wide byte, bool by_uva)
{
    for (uint32_t i = 0; i < table.count; i++) {
        uint64_t first = by_uva ? table.region[i].uva : table.region[i].gpa;
        if (byte >= first && byte < (wide)first + table.region[i].size)
            return (int)i;
    }
    return -1;
}

/* Of [at, at + size), how many bytes are there before one isn't; in one region, or in any. */
static wide there(uint64_t at, wide size, bool in_one)
{
    wide end = (wide)at + size, byte = at;
    int first = owner(at, false);
    while (byte < end && owner(byte, false) >= 0 && (!in_one || owner(byte, false) == first))
        byte++;
    return byte - at;
}

static void look(uint64_t at, uint32_t remembered)
{
    uint32_t last = remembered;
    uint64_t reach = 0;
    const uint8_t *host = region_at(&table, &last, at, &reach);
    int wanted = owner(at, false);
    looked++;
    SAME(looked, host != NULL, wanted >= 0);
    SAME(looked, last, wanted >= 0 ? (uint32_t)wanted : remembered);
    if (wanted < 0)
        return;
    SAME(looked, reach, (uint64_t)there(at, (wide)1 << 64, true));
    uint64_t offset = at - table.region[wanted].gpa;
    SAME(looked, (uintptr_t)host, HOST + (uintptr_t)wanted * ROOM + offset);
}

static void cover(uint64_t at, uint64_t size, uint32_t remembered)
{
    struct span span[REGION_COUNT_HERE + 1];
    struct chain chain = {.span = span};
    uint32_t last = remembered;
    bool wanted = owner(at, false) >= 0 && there(at, size, false) == size;
    SAME(looked, region_covers(&table, &last, at, size), wanted);
    if (size > UINT32_MAX)
        return;
    enum fault fault = chain_append(&chain, &table, &last, at, (uint32_t)size);
    SAME(looked, fault, wanted ? FAULT_NONE : FAULT_ADDRESS);
    wide next = at;
    for (uint32_t i = 0; i < chain.count; i++) {
        SAME(looked, span[i].gpa, (uint64_t)next);
        CHECK(there(span[i].gpa, span[i].size, true) == span[i].size);
        next += span[i].size;
    }
    if (wanted)
        CHECK(next == (wide)at + size);
    CHECK(next <= (wide)at + size);
}

static void find_uva(uint64_t at, uint64_t size)
{
    int wanted = -1; /* an empty range has a place too */
    for (int i = (int)table.count; i-- > 0;) {
        const struct region *region = &table.region[i];
        if (at >= region->uva && at < (wide)region->uva + region->size &&
            (wide)at + size <= (wide)region->uva + region->size)
            wanted = i;
    }
    const struct region *found = region_of_uva(&table, at, size);
    SAME(looked, found == NULL ? -1 : found - table.region, wanted);
}

static void look_everywhere(void)
{
    for (size_t a = 0; a < COUNT(AT); a++) {
        for (uint32_t last = 0; last < (table.count ? table.count : 1); last++) {
            look(AT[a], last);
            for (size_t s = 0; s < COUNT(SIZE); s++)
                cover(AT[a], SIZE[s], last);
        }
        for (size_t s = 0; s < COUNT(SIZE); s++)
            find_uva(AT[a], SIZE[s]);
    }
    for (uintptr_t at = 0; at < ROOM * (REGION_COUNT_HERE + 1); at++) {
        bool wanted = at / ROOM < table.count && at % ROOM < table.region[at / ROOM].size;
        SAME(looked, region_table_holds(&table, (const uint8_t *)HOST + at), wanted);
    }
}

/* A region from each edge on to each later one at the same end, then the rest of them behind it.
 * The UVAs stand the other way round. */
static void every_table(size_t edge)
{
    look_everywhere();
    if (table.count == REGION_COUNT_HERE)
        return;
    for (size_t first = edge; first < COUNT(EDGE); first++) {
        for (size_t end = first + 1; end < COUNT(EDGE) && EDGE[end] - EDGE[first] < ROOM; end++) {
            struct region *region = &table.region[table.count];
            *region = (struct region){.gpa = EDGE[first], .size = EDGE[end] - EDGE[first]};
            region->uva = UINT64_MAX - EDGE[end];
            region->host = (uint8_t *)HOST + (uintptr_t)table.count * ROOM;
            table.count++;
            every_table(end);
            table.count--;
        }
    }
}

int main(void)
{
    every_table(0);
    printf("%" PRIu64 " looks\n", looked);
    CHECK(looked > 100000);
    return 0;
}
