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
    struct region region[REGION_COUNT_MAX];
};

/* The region that holds `gpa`, or NULL. */
static inline const struct region *region_search(const struct region_table *table, uint64_t gpa)
{
    uint32_t low = 0, high = table->count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
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
 * least one); NULL where there is no memory. `last` remembers the region of the last hit. */
ALWAYS_INLINE uint8_t *region_at(const struct region_table *table, uint32_t *last, uint64_t gpa,
                                 uint64_t *reach)
{
    const struct region *region = &table->region[*last];
    if (unlikely(gpa - region->gpa >= region->size)) {
        region = region_search(table, gpa);
        if (region == NULL)
            return NULL;
        *last = (uint32_t)(region - table->region);
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
