/* The region table: where guest memory lies in our address space, and the one bounds check of the
 * dataplane.
 *
 * Regions are sorted by GPA and disjoint; none ends beyond 2^64 - 1. A table never changes: a new
 * one is swapped in while the workers pause.
 */
#ifndef VHOSTFAST_REGION_H
#define VHOSTFAST_REGION_H

#include "spec.h"

struct region {
    uint64_t gpa;
    uint64_t size; /* bytes */
    uint64_t uva; /* the front-end's address of the first byte: ring addresses are given in these */
    uint8_t *host; /* ours */
};

struct region_table {
    uint32_t count;
    uint32_t places; /* of `first`; 0: there is no index, and the search is over all regions */
    uint32_t shift;  /* a place is 1 << shift bytes of GPAs */
    uint16_t first[REGION_PLACES + 1]; /* the first region that ends there or later, or the last */
    struct region region[REGION_COUNT_MAX];
};

/* Where the search for a GPA begins and ends: most places are of one region. */
static inline void region_table_index(struct region_table *table)
{
    uint32_t at = 0;
    table->places = table->shift = 0;
    if (table->count == 0)
        return;
    const struct region *last = &table->region[table->count - 1];
    while ((last->gpa + last->size - 1) >> table->shift >= REGION_PLACES)
        table->shift++;
    for (uint64_t place = 0; place < REGION_PLACES; place++) {
        const struct region *region = &table->region[at];
        while (at + 1 < table->count && region->gpa + region->size - 1 < place << table->shift)
            region = &table->region[++at];
        table->first[place] = (uint16_t)at;
    }
    table->first[REGION_PLACES] = (uint16_t)table->count;
    table->places = REGION_PLACES;
}

/* The region that holds `gpa`, or NULL: most often the first that is looked at. */
static __attribute__((noinline)) const struct region *region_search(
    const struct region_table *table, uint64_t gpa)
{
    uint32_t low = 0, high = table->count;
    uint64_t place = gpa >> table->shift;
    if (likely(place < table->places)) {
        low = table->first[place];
        high = table->first[place + 1] < high ? table->first[place + 1] + 1U : high;
    }
    for (uint32_t middle = low; low < high; middle = (low + high) / 2) {
        const struct region *region = &table->region[middle];
        if (gpa - region->gpa < region->size)
            return region;
        if (gpa < region->gpa)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* The host address of the byte at `gpa` and, in `reach`, how many bytes follow it in its region (at
 * least one); NULL where there is no memory. `last` remembers the region of the last hit; behind it
 * most places are of one region, which is tried before the search. */
ALWAYS_INLINE uint8_t *region_at(const struct region_table *table, uint32_t *last, uint64_t gpa,
                                 uint64_t *reach)
{
    const struct region *region = &table->region[*last];
    if (unlikely(gpa - region->gpa >= region->size)) {
        uint32_t first = table->first[gpa >> table->shift & (REGION_PLACES - 1)];
        region = &table->region[first];
        if (unlikely(gpa - region->gpa >= region->size)) {
            region = region_search(table, gpa);
            if (region == NULL)
                return NULL;
            first = (uint32_t)(region - table->region);
        }
        *last = first;
    }
    uint64_t offset = gpa - region->gpa;
    *reach = region->size - offset;
    return region->host + offset;
}

/* Whether all of [gpa, gpa + size) is memory, in however many regions; if of size 0, its place. */
static inline bool region_covers(const struct region_table *table, uint32_t *last, uint64_t gpa,
                                 uint64_t size)
{
    uint64_t reach;
    for (; region_at(table, last, gpa, &reach) != NULL; gpa += reach, size -= reach)
        if (likely(size <= reach))
            return true;
    return false;
}

/* Whether an address of ours is in one of the regions. */
static inline bool region_table_holds(const struct region_table *table, const uint8_t *host)
{
    for (uint32_t i = 0; i < table->count; i++)
        if ((uintptr_t)host - (uintptr_t)table->region[i].host < table->region[i].size)
            return true;
    return false;
}

/* The region that holds all of [uva, uva + size), or NULL. For ring addresses, when a ring starts.
 */
static inline const struct region *region_of_uva(const struct region_table *table, uint64_t uva,
                                                 uint64_t size)
{
    for (uint32_t i = 0; i < table->count; i++) {
        const struct region *region = &table->region[i];
        uint64_t offset = uva - region->uva;
        if (offset < region->size && size <= region->size - offset)
            return region;
    }
    return NULL;
}

#endif
