/* Guests on a fabric, in private memory, with the lean load of our own driver: what the suites time
 * and what callgrind counts. Guest 0 sends, the others receive. By GPA:
 *
 *   0            buffers that it sends
 *   ROOM_GPA     buffers that it posts
 *   TABLES_GPA   indirect tables, of the one and of the other
 *   USED_LOG     two pages that nobody touches: marks of the used rings go there
 */
#ifndef BENCH_GUESTS_H
#define BENCH_GUESTS_H

#include <stdlib.h>

#include "driver/traffic.h"
#include "forward.h"
#include "steps.h"

enum {
    GUEST_MAX = 5,
    RING_SIZE = 256,
    STRIDE = 2048, /* from one buffer to the next, unless a shape says less */
    APART = 64,    /* from a header to its frame, where each has a descriptor */
    PAGE = 1 << LOG_PAGE_SHIFT,
    ROOM_GPA = RING_SIZE * STRIDE,
    TABLES_GPA = 2 * ROOM_GPA,
    MEMORY_SIZE = 2 << 20,
    USED_LOG = MEMORY_SIZE - 2 * PAGE,
    FLOW = 1,
};
_Static_assert((int)OFFER <= (int)BURST_SIZE && 3 * OFFER <= RING_SIZE, "in one burst");
_Static_assert(TABLES_GPA + 4 * RING_SIZE * sizeof(struct vring_desc) <= USED_LOG, "the above");

/* What a case is like: zeroes are one direct descriptor, the memory in one piece, no log, room. */
struct shape {
    const char *name;
    uint32_t frame_size;
    enum policy policy;
    uint32_t guest_count;
    enum pool_layout layout;
    uint32_t stride; /* of receive buffers, which then are mergeable */
    uint32_t region_count;
    bool logged;
    bool group; /* frames are for everybody */
    bool full;  /* nobody has posted a buffer */
};

static const struct shape SHAPES[] = {
    {"direct 64 B", 64, POLICY_PATCH, 2},
    {"direct 1500 B", 1500, POLICY_PATCH, 2},
    {"direct 64 B, learn", 64, POLICY_LEARN, 2},
    {"direct 64 B, 509 regions", 64, POLICY_PATCH, 2, .region_count = REGION_COUNT_MAX},
    {"direct 64 B, log on", 64, POLICY_PATCH, 2, .logged = true},
    {"chained 64 B", 64, POLICY_PATCH, 2, POOL_CHAINED},
    {"indirect 64 B", 64, POLICY_PATCH, 2, POOL_INDIRECT},
    {"mergeable 1500 B, 3 buffers", 1500, POLICY_PATCH, 2, .stride = 512},
    {"mergeable 1500 B, 3 buffers, log on", 1500, POLICY_PATCH, 2, .stride = 512, .logged = true},
    {"flood 64 B to 4 ports", 64, POLICY_LEARN, GUEST_MAX, .group = true},
    {"full receiver, learn: dropped", 64, POLICY_LEARN, 2, .full = true},
    {"full receiver, patch: waits", 64, POLICY_PATCH, 2, .full = true},
};
enum { SHAPE_COUNT = sizeof SHAPES / sizeof *SHAPES };

/* A ring's memory, which both sides know, and what each side knows alone. */
struct line {
    struct vring_desc desc[RING_SIZE] __attribute__((aligned(PAGE)));
    uint8_t avail[4 + 2 * RING_SIZE + 2] __attribute__((aligned(PAGE)));
    uint8_t used[4 + 8 * RING_SIZE + 2] __attribute__((aligned(PAGE)));
    uint16_t next[RING_SIZE], count[RING_SIZE], free[RING_SIZE];
    uint8_t offered[RING_SIZE];
    struct driver_ring driver;
    struct ring ring;
};

struct guest {
    uint8_t *memory;
    struct region_table table;
    struct line sends, receives;
    struct sender sender;
    struct receiver receiver;
    uint8_t scratch[FRAME_SIZE_MAX];
    uint64_t log_word[MEMORY_SIZE / PAGE / 64];
    struct log log;
    struct port port;
};

static struct guest guests[GUEST_MAX];
static struct fabric fabric;
static struct burst burst;
static struct source source;
static uint32_t guest_count;

static inline uint64_t mac_of(uint32_t guest) { return 0x02 | (uint64_t)(guest + 1) << 40; }

/* The memory is one region, or so many of a page each and a last one. */
static inline void guest_map(struct guest *guest, uint32_t region_count)
{
    if (guest->memory == NULL)
        guest->memory = aligned_alloc(PAGE, MEMORY_SIZE);
    guest->table.count = region_count ? region_count : 1;
    for (uint32_t i = 0; i < guest->table.count; i++) {
        uint64_t gpa = (uint64_t)i * PAGE;
        uint64_t size = i + 1 < guest->table.count ? PAGE : MEMORY_SIZE - gpa;
        guest->table.region[i] =
            (struct region){.gpa = gpa, .size = size, .uva = gpa, .host = guest->memory + gpa};
    }
    region_table_index(&guest->table);
}

static inline void line_reset(struct line *line, struct guest *guest, const struct shape *shape,
                              bool receives)
{
    line->driver = (struct driver_ring){
        .desc = line->desc,
        .avail = (struct vring_avail *)line->avail,
        .used = (struct vring_used *)line->used,
        .next = line->next,
        .count = line->count,
        .size = RING_SIZE,
        .event_idx = true,
        .kick_fd = -1,
        .call_fd = -1,
    };
    driver_reset(&line->driver, 0);
    line->ring = (struct ring){
        .desc = line->desc,
        .avail = line->driver.avail,
        .used = line->driver.used,
        .regions = &guest->table,
        .size = RING_SIZE,
        .header_size = NET_HEADER_SIZE,
        .frame_size_max = FRAME_SIZE_MAX,
        .event_idx = true,
        .indirect = true,
        .mergeable = shape->stride != 0,
        .call_fd = -1,
    };
    if (shape->logged) {
        line->ring.marker.log = &guest->log;
        line->ring.marks_used = true;
        line->ring.used_log = USED_LOG + (receives ? PAGE : 0);
    }
    split_start(&line->ring);
}

static inline struct pool pool_of(struct line *line, struct guest *guest, const struct shape *shape,
                                  bool receives)
{
    uint64_t tables_gpa = TABLES_GPA + (receives ? 2 * RING_SIZE * sizeof(struct vring_desc) : 0);
    uint32_t shift = shape->layout == POOL_CHAINED;
    return (struct pool){
        .ring = &line->driver,
        .base = guest->memory + (receives ? ROOM_GPA : 0),
        .gpa = receives ? ROOM_GPA : 0,
        .stride = receives && shape->stride ? shape->stride : STRIDE,
        .header_size = NET_HEADER_SIZE,
        .frame_offset = shape->layout == POOL_DIRECT ? NET_HEADER_SIZE : APART,
        .slot_count = receives ? RING_SIZE >> shift : OFFER,
        .head_shift = shift,
        .layout = shape->layout,
        .desc_flags = receives ? VRING_DESC_WRITE : 0,
        .tables = (struct vring_desc *)(guest->memory + tables_gpa),
        .tables_gpa = tables_gpa,
        .table_size = 2,
        .free = line->free,
        .offered = line->offered,
    };
}

static inline void sender_reset(struct guest *guest, const struct shape *shape)
{
    uint64_t to = shape->group ? UINT64_C(0xffffffffffff) : mac_of(1), from = mac_of(0);
    guest->sender = (struct sender){
        .pool = pool_of(&guest->sends, guest, shape, false),
        .station = {to | from << 48, from >> 16 |
                                         (uint64_t)__builtin_bswap16(FRAME_ETHERTYPE) << 32 |
                                         (uint64_t)FLOW << 48},
        .size = {shape->frame_size},
        .size_count = 1,
        .limit = UINT64_MAX,
    };
    sender_prepare(&guest->sender, LOAD_LEAN);
}

static inline void receiver_reset(struct guest *guest, const struct shape *shape)
{
    guest->receiver = (struct receiver){
        .pool = pool_of(&guest->receives, guest, shape, true),
        .scratch = guest->scratch,
        .mergeable = shape->stride != 0,
        .verify_every = 1 << 20, /* all are checked at the end */
        .frame_size = shape->frame_size,
    };
    uint32_t room = pool_room(&guest->receiver.pool);
    guest->receiver.buffers_each = (NET_HEADER_SIZE + shape->frame_size + room - 1) / room;
    if (!shape->full)
        receiver_prepare(&guest->receiver, LOAD_LEAN);
}

static inline void guest_reset(struct guest *guest, const struct shape *shape)
{
    guest_map(guest, shape->region_count);
    memset(guest->log_word, 0, sizeof guest->log_word);
    guest->log =
        (struct log){.word = guest->log_word, .page_count = MEMORY_SIZE / PAGE, .event_fd = -1};
    line_reset(&guest->sends, guest, shape, false);
    line_reset(&guest->receives, guest, shape, true);
    sender_reset(guest, shape);
    receiver_reset(guest, shape);
}

static inline void guests_reset(const struct shape *shape)
{
    guest_count = shape->guest_count;
    memset(&fabric, 0, sizeof fabric);
    memset(burst.counters, 0, sizeof burst.counters);
    burst_init(&burst, &fabric);
    fabric.policy = shape->policy;
    for (uint32_t i = 0; i < guest_count; i++) {
        struct guest *guest = &guests[i];
        guest_reset(guest, shape);
        guest->port = (struct port){
            .index = i,
            .receiver_count = 1,
            .receiver = {&guest->receives.ring},
            .peer = i < 2 ? &guests[!i].port : NULL,
            .regions = &guest->table,
            .event_fd = -1,
        };
        fabric.port[fabric.port_count++] = fabric.by_index[i] = &guest->port;
        fdb_learn(&fabric.fdb, mac_of(i), i);
    }
    source = (struct source){.ring = &guests[0].sends.ring, .port = &guests[0].port};
}

#endif
