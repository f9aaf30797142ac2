/* Guests made of the fuzzer's bytes, and what they may and may not suffer.
 *
 * A guest's memory is three regions, two of which touch at an odd address; each ends, or begins,
 * where nobody may look. Its rings lie in the third, so its buffers can lie over them. Beside it
 * stands a shadow with what the guest itself has stored: where the two differ, we have.
 *
 * A guest changes its memory between our loads. Clang calls __sanitizer_cov_load* before each load
 * of the code under test (-fsanitize-coverage=trace-loads); those of guest memory are counted, and
 * a change that is due comes before the load. */
#ifndef FUZZ_MACHINE_H
#define FUZZ_MACHINE_H

#include "forward.h"

#include "input.h"

enum {
    MACHINE_COUNT = 3,
    REGION_COUNT = 3,
    RING_SIZE_TOP = 32,
    CHANGE_COUNT_MAX = 16,
    LOW_SIZE = 0x4803, /* region 0, at 0 */
    NEXT_SIZE = 0x37fd, /* region 1, right behind it */
    HIGH = 0x20000, /* region 2 */
    HIGH_SIZE = 0x4000,
    PLACE_SIZE = 0x6000, /* of a region in our address space: a page nobody may touch, then it */
    ARENA_SIZE = MACHINE_COUNT * REGION_COUNT * PLACE_SIZE + PAGE,
    RX = HIGH, /* rings */
    TX = HIGH + 0x1000,
    AVAIL = 0x400, /* within a ring's page */
    USED = 0x800,
    TABLES = HIGH + 0x2000, /* indirect ones, of TABLE_COUNT entries each */
    TABLE_COUNT = 8,
    TABLE_BYTES = TABLE_COUNT * sizeof(struct vring_desc),
    TOP = HIGH + HIGH_SIZE,
    LOG_PAGES = TOP / PAGE,
    INDEX = 65530, /* with which all begins */
};

struct machine {
    struct region_table table;
    struct ring rx, tx;
    uint16_t rx_next, tx_next; /* the driver's avail.idx */
    uint32_t rx_free, tx_free; /* the next descriptor */
    struct log log;
};

/* A store of the guest's own, done when so many loads of guest memory have been. */
struct change {
    uint64_t when;
    uint8_t *at; /* NULL: memory vanishes */
    uint64_t value;
    uint32_t size;
};

static uint8_t *arena, *shadow;
static struct machine machine[MACHINE_COUNT];
static struct change change[CHANGE_COUNT_MAX];
static uint32_t change_count;
static uint64_t load_count, change_done; /* in this run */
static bool watching; /* the code under test runs */
static void (*change_vanishes)(uint64_t what);

static inline bool in_arena(const void *at)
{
    return (uintptr_t)at - (uintptr_t)arena < ARENA_SIZE;
}

/* The guest stores to its memory. */
static void guest_stores(uint8_t *at, const void *from, uint32_t size)
{
    memcpy(at, from, size);
    memcpy(shadow + (at - arena), from, size);
}

__attribute__((noinline, no_sanitize("coverage"))) static void change_due(void)
{
    for (uint32_t i = 0; i < change_count; i++) {
        if (change[i].when != load_count)
            continue;
        change_done++;
        if (change[i].at != NULL)
            guest_stores(change[i].at, &change[i].value, change[i].size);
        else if (change_vanishes != NULL)
            change_vanishes(change[i].value);
    }
}

__attribute__((no_sanitize("coverage"))) static void loads(const void *at)
{
    if (!watching || !in_arena(at))
        return;
    load_count++;
    watching = false;
    change_due();
    watching = true;
}

#define LOADS(size)                                                                                \
    __attribute__((no_sanitize("coverage"))) void __sanitizer_cov_load##size(const void *at)       \
    {                                                                                              \
        loads(at);                                                                                 \
    }
LOADS(1)
LOADS(2)
LOADS(4)
LOADS(8)
LOADS(16)

/* The first byte at `gpa`, and how many follow it. */
static uint8_t *guest_at(struct machine *it, uint64_t gpa, uint64_t *reach)
{
    uint32_t last = 0;
    return region_at(&it->table, &last, gpa, reach);
}

/* Stores what there is memory for. */
static void guest_write(struct machine *it, uint64_t gpa, const void *from, uint32_t size)
{
    const uint8_t *next = from;
    while (size > 0) {
        uint64_t reach;
        uint8_t *host = guest_at(it, gpa, &reach);
        if (host == NULL)
            return;
        uint32_t part = size < reach ? size : (uint32_t)reach;
        guest_stores(host, next, part);
        gpa += part;
        next += part;
        size -= part;
    }
}

/* A region ends with its last page, or begins with its first, so that the rest of that page is
 * watched by the shadow, and what is beyond by the processor. */
static void region_take(struct machine *it, uint64_t gpa, uint64_t size)
{
    struct region_table *table = &it->table;
    uint64_t place = (uint64_t)(it - machine) * REGION_COUNT + table->count;
    uint64_t pages = (size + PAGE - 1) / PAGE * PAGE;
    uint8_t *map = arena + place * PLACE_SIZE + PAGE;
    CHECK(mprotect(map, pages, PROT_READ | PROT_WRITE) == 0);
    table->region[table->count++] = (struct region){
        .gpa = gpa, .size = size, .uva = gpa, .host = gpa == 0 ? map + pages - size : map};
}

static void machines_take(void)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    arena = mmap(NULL, ARENA_SIZE, PROT_NONE, flags, -1, 0);
    shadow = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
    CHECK(arena != MAP_FAILED && shadow != MAP_FAILED);
    for (struct machine *it = machine; it < machine + MACHINE_COUNT; it++) {
        region_take(it, 0, LOW_SIZE);
        region_take(it, LOW_SIZE, NEXT_SIZE);
        region_take(it, HIGH, HIGH_SIZE);
        it->log = (struct log){.word = (uint64_t *)guarded(8), .event_fd = -1};
    }
}

static void ring_take(struct machine *it, struct ring *ring, uint64_t gpa, uint32_t size)
{
    uint64_t reach;
    uint8_t *host = guest_at(it, gpa, &reach);
    const uint16_t index = INDEX;
    *ring = (struct ring){
        .desc = (struct vring_desc *)host,
        .avail = (struct vring_avail *)(host + AVAIL),
        .used = (struct vring_used *)(host + USED),
        .regions = &it->table,
        .used_log = gpa + USED,
        .size = size,
        .header_size = NET_HEADER_SIZE,
        .frame_size_max = FRAME_SIZE_MAX,
        .marks_used = true,
        .call_fd = -1,
    };
    guest_stores(host + AVAIL + 2, &index, sizeof index);
    guest_stores(host + USED + 2, &index, sizeof index);
}

/* The mapped pages of a region; the rest of its first or last page belongs to nobody. */
static uint8_t *region_pages(const struct region *region, uint64_t *size)
{
    *size = (region->size + PAGE - 1) / PAGE * PAGE;
    return region->host - (uintptr_t)region->host % PAGE;
}

static void machine_blank(struct machine *it)
{
    for (uint32_t i = 0; i < it->table.count; i++) {
        uint64_t size;
        uint8_t *map = region_pages(&it->table.region[i], &size);
        memset(map, 0, size);
        memset(shadow + (map - arena), 0, size);
    }
    *it->log.word = it->log.beyond = 0;
    it->log.page_count = LOG_PAGES;
    it->rx_next = it->tx_next = INDEX;
    it->rx_free = it->tx_free = 0;
}

/* All that a run begins with; the rings' features are the fuzzer's. */
static void machines_start(struct input *in)
{
    if (arena == NULL)
        machines_take();
    load_count = change_count = change_done = 0;
    for (struct machine *it = machine; it < machine + MACHINE_COUNT; it++) {
        uint32_t kind = (uint32_t)take(in, 2);
        machine_blank(it);
        ring_take(it, &it->rx, RX, UINT32_C(4) << kind % 4);
        ring_take(it, &it->tx, TX, UINT32_C(4) << (kind >> 2) % 4);
        for (struct ring *ring = &it->rx; ring != NULL; ring = ring == &it->rx ? &it->tx : NULL) {
            ring->marker.log = kind & 0x10 ? &it->log : NULL;
            ring->event_idx = kind & 0x20;
            ring->indirect = !(kind & 0x40);
            ring->mergeable = kind & 0x80;
            ring->offloads = (kind >> 8) & 15;
            ring->header_size = kind & 0x1000 ? NET_HEADER_SIZE_LEGACY : NET_HEADER_SIZE;
            ring->shared = kind & 0x2000;
            split_start(ring);
        }
    }
}

/* Where a guest that means harm would store: its rings, its tables, its frames, anywhere. */
static struct change take_change(struct input *in)
{
    struct machine *it = &machine[take_below(in, MACHINE_COUNT)];
    static const uint8_t field[] = {0, 8, 12, 14}, bytes[] = {8, 4, 2, 2}; /* of a descriptor */
    uint32_t which = take_below(in, 16), what = take_below(in, COUNT(field)), size = bytes[what];
    uint64_t ring = which & 1 ? TX : RX, gpa, reach;
    if (which < 6)
        gpa = ring + take_below(in, RING_SIZE_TOP) * sizeof(struct vring_desc) + field[what];
    else if (which < 10) /* avail: flags, idx, an entry, used_event */
        gpa = ring + AVAIL + UINT64_C(2) * take_below(in, RING_SIZE_TOP + 4);
    else if (which < 12)
        gpa = TABLES + take_below(in, 0x1000);
    else
        gpa = take_below(in, LOW_SIZE + NEXT_SIZE);
    uint8_t *host = guest_at(it, gpa, &reach);
    return (struct change){
        .at = host, .value = take_edge(in), .size = size < reach ? size : (uint32_t)reach};
}

/* At a load that is to come. */
static void plan(struct input *in, struct change it)
{
    it.when = load_count + 1 + take_below(in, 200);
    if (change_count < CHANGE_COUNT_MAX)
        change[change_count++] = it;
}

/* What we stored is in the guest's memory and, if `marked`, its page is, where there is a log.
 * `may` says of which bytes that was lawful; NULL: of any. */
static void check_stores(const struct machine *it, const uint8_t *may, bool marked)
{
    const bool logs = marked && it->rx.marker.log != NULL;
    for (uint32_t i = 0; i < it->table.count; i++) {
        const struct region *region = &it->table.region[i];
        uint64_t size;
        const uint8_t *map = region_pages(region, &size), *is = shadow + (map - arena);
        for (uint64_t page = 0; page < size; page += PAGE) {
            if (memcmp(map + page, is + page, PAGE) == 0)
                continue;
            for (uint64_t at = page; at < page + PAGE; at++) {
                if (map[at] == is[at])
                    continue;
                uint64_t offset = (uint64_t)(map + at - region->host);
                CHECK(offset < region->size);
                CHECK(!logs || *it->log.word >> ((region->gpa + offset) / PAGE) & 1);
                CHECK(may == NULL || may[map + at - arena]);
            }
        }
    }
    SAME(it - machine, it->log.beyond, 0);
    SAME(it - machine, *it->log.word >> LOG_PAGES, 0);
}

#endif
