/* The look-up against a plain search, for any lawful table: sorted, disjoint, up to 2^64. */
#include "region.h"

#include "machine.h"

static struct region_table table;

/* Regions one after the other, touching or not; none ends beyond 2^64 - 1, none is larger than what
 * we could map. */
static void table_take(struct input *in)
{
    uint64_t gpa = 0;
    table.count = 0;
    for (uint32_t wanted = take_below(in, 12); table.count < wanted;) {
        uint64_t gap = take_below(in, 2) ? take_edge(in) : 0, size = take_edge(in) >> 17;
        if (size == 0 || gpa + gap < gpa || gpa + gap + size < gpa + gap)
            return;
        gpa += gap;
        table.region[table.count++] = (struct region){.gpa = gpa,
                                                      .size = size,
                                                      .uva = take_edge(in),
                                                      .host = (uint8_t *)(take(in, 5) + PAGE)};
        gpa += size;
    }
}

static const struct region *plain_search(uint64_t gpa)
{
    for (uint32_t i = 0; i < table.count; i++)
        if (gpa >= table.region[i].gpa && gpa <= table.region[i].gpa + (table.region[i].size - 1))
            return &table.region[i];
    return NULL;
}

/* Whether all of [uva, uva + size) is in it. */
static bool plain_holds(const struct region *region, uint64_t uva, uint64_t size)
{
    __uint128_t end = (__uint128_t)uva + size, first = region->uva;
    return uva >= first && uva < first + region->size && end <= first + region->size;
}

static void look(struct input *in, uint32_t *last)
{
    uint64_t gpa = take_edge(in), reach = 0;
    if (table.count > 0 && take_below(in, 2)) /* at an edge of one */
        gpa = table.region[take_below(in, table.count)].gpa + take_edge(in);
    const struct region *region = plain_search(gpa);
    const uint8_t *host = region_at(&table, last, gpa, &reach);
    CHECK(region_search(&table, gpa) == region);
    if (region == NULL) {
        CHECK(host == NULL);
        return;
    }
    SAME(-1, (uintptr_t)host, (uintptr_t)region->host + (gpa - region->gpa));
    SAME(-1, reach, region->size - (gpa - region->gpa));
    CHECK(reach > 0 && *last == (uint32_t)(region - table.region));
}

static void look_for_ring(struct input *in)
{
    uint64_t uva = take_edge(in), size = take_edge(in);
    if (table.count > 0 && take_below(in, 2))
        uva = table.region[take_below(in, table.count)].uva + take_edge(in);
    const struct region *found = region_of_uva(&table, uva, size);
    CHECK(found == NULL || (uint64_t)(uva - found->uva) + size <= found->size);
    for (uint32_t i = 0; found == NULL && i < table.count; i++)
        CHECK(!plain_holds(&table.region[i], uva, size));
}

/* Whose memory an address of ours is. */
static void check_hosts(struct input *in)
{
    uint8_t *host = (uint8_t *)take(in, 6);
    bool held = false;
    for (uint32_t i = 0; i < table.count; i++) {
        const struct region *region = &table.region[i];
        held |= host >= region->host && (uint64_t)(host - region->host) < region->size;
    }
    CHECK(region_table_holds(&table, host) == held);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    uint32_t last = 0;
    memset(table.region, 0, 16 * sizeof table.region[0]); /* as the control plane makes them */
    table_take(&in);
    for (uint32_t i = 0; i < 64 && in.at < in.end; i++) {
        look(&in, &last);
        look_for_ring(&in);
        check_hosts(&in);
    }
    return 0;
}
