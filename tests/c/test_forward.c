/* The two paths of a burst are one: what forward_burst does, at any level, is what the general path
 * alone does, byte by byte: memory, rings, logs, counters, learned addresses. With guard pages. */
#include "forward.h"

#include "guest.h"

enum { SIZE = 64, MEMORY = 0x10000, CUT = 0x5003, HIGH = 0x40000, PAGES = 0x60, ROUNDS = 4 };
enum { TABLES = 0x80000, TABLE_BYTES = 2 * sizeof(struct vring_desc) };

/* A sends, B receives. Twice: one world for each way to forward. */
static struct world {
    struct fabric fabric;
    struct port port[2];
    struct guest a, b;
    struct log log[2];
    struct source source;
    struct burst burst;
} world[2];

static uint8_t *at(struct guest *guest, uint64_t gpa)
{
    uint32_t last = 0;
    uint64_t reach;
    return region_at(&guest->table, &last, gpa, &reach);
}

static void guest_start(struct guest *guest, struct log *log, bool mergeable, uint32_t header_size)
{
    if (guest->table.count == 0) { /* once, for maps are never given back */
        guest_memory(guest, 0, CUT);
        guest_memory(guest, CUT, MEMORY - CUT);
        guest_memory(guest, HIGH, MEMORY);
        guest_memory(guest, TABLES, SIZE * TABLE_BYTES); /* where no frame overwrites them */
        guest_ring(guest, SIZE, 65500, true);
        *log = guest_log(PAGES);
    }
    struct ring *ring = &guest->ring;
    for (uint32_t i = 0; i < guest->table.count; i++)
        memset(guest->table.region[i].host, 0, guest->table.region[i].size);
    memset(ring->desc, 0, SIZE * sizeof *ring->desc);
    memset(ring->used, 0, 4 + 8 * SIZE + 2);
    memset(log->word, 0, (PAGES + 63) / 64 * 8);
    ring->used->idx = ring->avail->idx = guest->avail_idx = 65500;
    ring->mergeable = mergeable;
    ring->header_size = header_size;
    ring->marker = (struct marker){.log = log};
    ring->marks_used = true;
    ring->used_log = 3 * PAGE - 200;
    ring->last_region = 0;
    split_start(ring);
}

static void world_start(struct world *w, enum policy policy, bool mergeable, uint32_t header_size,
                        long row)
{
    static const uint32_t offloads[] = {0, OFFLOAD_CSUM, OFFLOAD_CSUM | OFFLOAD_TSO4};
    guest_start(&w->a, &w->log[0], false, header_size);
    guest_start(&w->b, &w->log[1], mergeable, header_size);
    w->a.ring.offloads = offloads[row / 24 % 3];
    w->b.ring.offloads = offloads[row / 72 % 3];
    memset(&w->fabric, 0, sizeof w->fabric);
    memset(w->burst.counters, 0, sizeof w->burst.counters);
    burst_init(&w->burst, &w->fabric);
    w->fabric.policy = policy;
    for (uint32_t i = 0; i < 2; i++) {
        w->port[i] = (struct port){.index = i, .peer = &w->port[!i], .event_fd = -1};
        w->fabric.port[w->fabric.port_count++] = w->fabric.by_index[i] = &w->port[i];
    }
    w->port[1].receiver[w->port[1].receiver_count++] = &w->b.ring;
    w->source = (struct source){.ring = &w->a.ring, .port = &w->port[0]};
    fdb_learn(&w->fabric.fdb, 0x0b02, 1);
}

static uint64_t somewhere(uint64_t size)
{
    return random_below(2) ? HIGH + random_below(MEMORY - size) : random_below(MEMORY - size);
}

/* What most chains of a row are: one descriptor; the header in one and the frame in the next; these
 * two in a table. Others are of any number of pieces. */
enum shape { SINGLE, PAIR, TABLE, SHAPE_COUNT };

static void offer_table(struct guest *guest, uint32_t head, uint32_t header, uint32_t size,
                        uint16_t write)
{
    const uint64_t table = TABLES + head * TABLE_BYTES;
    uint64_t place[2] = {somewhere(header), somewhere(size - header)};
    const struct vring_desc entry[2] = {
        {.addr = place[0], .len = header, .flags = write | VRING_DESC_NEXT, .next = 1},
        {.addr = place[1], .len = size - header, .flags = write},
    };
    memcpy(at(guest, table), entry, sizeof entry);
    guest_desc(guest, head, table, sizeof entry, VRING_DESC_INDIRECT, 0);
}

/* Descriptor `head` and maybe the next ones: `size` bytes. Returns the next free one. */
static uint32_t offer(struct guest *guest, uint32_t head, uint32_t size, uint16_t write,
                      enum shape shape)
{
    const uint32_t header = guest->ring.header_size + (random_below(20) == 0);
    uint32_t pieces = shape == PAIR ? 2 : 1, index = head;
    bool usual = size >= header && random_below(8) > 0;
    if (!usual)
        pieces = 1 + (uint32_t)random_below(3);
    guest_offer(guest, (uint16_t)head);
    if (usual && shape == TABLE) {
        offer_table(guest, head, header, size, write);
        return (head + 1) % SIZE;
    }
    for (uint32_t left = size; pieces > 0; pieces--, index = (index + 1) % SIZE) {
        uint32_t part = pieces == 1 ? left : usual ? header : (uint32_t)random_below(left + 1);
        guest_desc(guest, index, somewhere(part), part,
                   (uint16_t)(write | (pieces > 1 ? VRING_DESC_NEXT : 0)),
                   (uint16_t)((index + 1) % SIZE));
        left -= part;
    }
    return index;
}

/* A's frames are whatever lies where its descriptors point: headers and addresses that are mostly
 * lawful, for the memory is filled with them. */
static void fill_memory(struct guest *guest)
{
    static const uint8_t address[3] = {0x02, 0xff, 0x0a};
    for (uint32_t i = 0; i < guest->table.count; i++)
        for (uint64_t at = 0; at < guest->table.region[i].size; at += 1 + random_below(50))
            guest->table.region[i].host[at] = address[random_below(3)];
}

/* A packet with a header and addresses of its own, where its first two descriptors point. */
static void dress(struct guest *guest, uint32_t head, uint32_t header_size, uint32_t number)
{
    struct vring_desc desc = guest->ring.desc[head], next = guest->ring.desc[desc.next];
    static const uint64_t target[] = {0x0b02, 0x0b02, 0x0b02, 0xffffffffffff, 0x0a02, 0x7702};
    uint64_t to = target[random_below(COUNT(target))], from = 0x0a02;
    if (desc.flags & VRING_DESC_INDIRECT) {
        const struct vring_desc *table = (const struct vring_desc *)at(guest, desc.addr);
        desc = table[0];
        next = table[1];
    }
    uint64_t frame = desc.flags & VRING_DESC_NEXT ? next.addr : desc.addr + header_size;
    uint32_t size = desc.flags & VRING_DESC_NEXT ? next.len : desc.len - header_size;
    if (desc.len < header_size || size < 18)
        return;
    for (uint32_t i = 0; i < header_size; i++)
        *at(guest, desc.addr + i) = random_below(100) == 0; /* what it may not ask for */
    if (random_below(2)) { /* what it may ask for, if it has taken that, and if it is true */
        *at(guest, desc.addr) = NET_HEADER_NEEDS_CSUM;
        *at(guest, desc.addr + 6) = (uint8_t)(FRAME_SIZE_MIN + random_below(5) - 1);
        *at(guest, desc.addr + 8) = (uint8_t)random_below(60);
    }
    for (uint32_t i = 0; i < 6; i++) {
        *at(guest, frame + i) = (uint8_t)(to >> 8 * i);
        *at(guest, frame + 6 + i) = (uint8_t)(from >> 8 * i);
    }
    *at(guest, frame + 12) = (uint8_t)number;
}

static void run(struct world *w, burst_function forward, uint64_t seed, uint32_t header_size,
                enum shape sends, enum shape posts)
{
    uint32_t sent = 0, posted = 0;
    random_state = seed;
    fill_memory(&w->a);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint64_t i = random_below(20); i > 0; i--) {
            uint32_t head = sent, size = (uint32_t)random_below(random_below(4) ? 200 : 3000);
            sent = offer(&w->a, head, size, 0, sends);
            dress(&w->a, head, header_size, (uint32_t)i);
        }
        for (uint64_t i = random_below(20); i > 0; i--)
            posted = offer(&w->b, posted, 12 + (uint32_t)random_below(2000), VRING_DESC_WRITE,
                           posts);
        guest_publish(&w->a);
        guest_publish(&w->b);
        forward(&w->burst, &w->source);
        if (w->port[0].fault || w->port[1].fault)
            return;
    }
}

/* What forward_burst would be without its direct path. */
static uint32_t forward_general(struct burst *burst, struct source *source)
{
    uint32_t moved = 0;
    while (moved < BURST_SIZE && forward_one(burst, source, 16))
        moved++;
    burst->sending = source->ring;
    publish_touched(burst);
    return moved;
}

static void same_guest(long row, struct guest *one, struct guest *two)
{
    for (uint32_t i = 0; i < one->table.count; i++)
        SAME(row, memcmp(one->table.region[i].host, two->table.region[i].host,
                         one->table.region[i].size), 0);
    SAME(row, memcmp(one->ring.used, two->ring.used, 4 + 8 * SIZE + 2), 0);
    SAME(row, one->ring.last_avail, two->ring.last_avail);
    SAME(row, one->ring.fault, two->ring.fault);
}

/* Of what B has got last, what it has to sum itself. */
static uint64_t count_partial(struct guest *guest)
{
    const struct vring_used *used = guest->ring.used;
    uint64_t partial = 0;
    for (uint16_t i = 65500; i != used->idx; i++) {
        const struct vring_desc *desc = &guest->ring.desc[used->ring[i % SIZE].id];
        partial += *at(guest, desc->addr) == NET_HEADER_NEEDS_CSUM;
    }
    return partial;
}

/* Two guests on the same memory, as two that work together may have it: the net header of what B
 * gets lies over the frame that A sends, and changes its addresses behind the look at them. B gets
 * those that were looked at, on either path. */
static void test_addresses_are_read_once(void)
{
    enum { FRAME = 0x1000, FRAME_SIZE = 64 };
    static const uint8_t addresses[12] = {0x02, 0x0b, 0, 0, 0, 0, 0x02, 0x0a};
    for (uint32_t pieces = 1; pieces <= 3; pieces += 2) { /* the direct path; the general one */
        struct world *w = &world[0];
        world_start(w, POLICY_LEARN, true, NET_HEADER_SIZE, 0);
        uint8_t *host = at(&w->a, FRAME - NET_HEADER_SIZE), got[sizeof addresses];
        const struct region_table *own = w->b.ring.regions;
        w->b.ring.regions = &w->a.table;
        memcpy(host + NET_HEADER_SIZE, addresses, sizeof addresses);
        for (uint32_t i = 0, done = 0; i < pieces; i++) {
            uint32_t size = i + 1 < pieces ? 10 : NET_HEADER_SIZE + FRAME_SIZE - done;
            guest_desc(&w->a, i, FRAME - NET_HEADER_SIZE + done, size,
                       i + 1 < pieces ? VRING_DESC_NEXT : 0, (uint16_t)(i + 1));
            done += size;
        }
        guest_desc(&w->b, 0, FRAME, 0x100, VRING_DESC_WRITE, 0);
        guest_offer(&w->a, 0);
        guest_offer(&w->b, 0);
        guest_publish(&w->a);
        guest_publish(&w->b);
        SAME(pieces, burst_baseline(&w->burst, &w->source), 1);
        memcpy(got, host + 2 * NET_HEADER_SIZE, sizeof got);
        SAME(pieces, memcmp(got, addresses, sizeof got), 0);
        w->b.ring.regions = own;
    }
}

/* hostile: rings | a header in memory, its frame's descriptor outside of it | port closes */
static void test_a_frame_outside_of_memory(void)
{
    for (uint32_t table = 0; table < 2; table++) { /* the same pair, in the ring and in a table */
        struct world *w = &world[0];
        world_start(w, POLICY_PATCH, true, NET_HEADER_SIZE, 0);
        const struct vring_desc pair[2] = {
            {.addr = 0x1000, .len = NET_HEADER_SIZE, .flags = VRING_DESC_NEXT, .next = 1},
            {.addr = UINT64_C(1) << 40, .len = 64},
        };
        memcpy(w->a.ring.desc, pair, sizeof pair);
        memcpy(at(&w->a, TABLES), pair, sizeof pair);
        if (table)
            guest_desc(&w->a, 0, TABLES, sizeof pair, VRING_DESC_INDIRECT, 0);
        guest_desc(&w->b, 0, 0x1000, 0x100, VRING_DESC_WRITE, 0);
        guest_offer(&w->a, 0);
        guest_offer(&w->b, 0);
        guest_publish(&w->a);
        guest_publish(&w->b);
        SAME(table, burst_baseline(&w->burst, &w->source), 0);
        SAME(table, w->port[0].fault, FAULT_ADDRESS);
        SAME(table, w->port[1].fault, FAULT_NONE);
        SAME(table, w->b.ring.used->idx, 65500);
    }
}

int main(void)
{
    test_addresses_are_read_once();
    test_a_frame_outside_of_memory();
    uint64_t packets = 0, beyond = 0, partial = 0;
    for (long row = 0; row < 3000; row++) {
        burst_function forward = burst_at((enum level)(row % LEVEL_COUNT));
        enum policy policy = row / 3 % 2 ? POLICY_LEARN : POLICY_PATCH;
        uint32_t header_size = row / 6 % 4 ? NET_HEADER_SIZE : NET_HEADER_SIZE_LEGACY;
        if (forward == NULL) /* this CPU lacks it */
            continue;
        for (uint32_t i = 0; i < 2; i++) {
            world_start(&world[i], policy, row / 12 % 2, header_size, row);
            run(&world[i], i ? forward_general : forward, UINT64_C(77777) * (uint64_t)(row + 1),
                header_size, row / 24 % SHAPE_COUNT, row / 72 % SHAPE_COUNT);
        }
        same_guest(row, &world[0].a, &world[1].a);
        same_guest(row, &world[0].b, &world[1].b);
        for (uint32_t i = 0; i < 2; i++)
            SAME(row, memcmp(world[0].log[i].word, world[1].log[i].word, (PAGES + 63) / 64 * 8), 0);
        SAME(row, memcmp(world[0].burst.counters, world[1].burst.counters,
                         sizeof world[0].burst.counters), 0);
        SAME(row, memcmp(&world[0].fabric.fdb, &world[1].fabric.fdb, sizeof(struct fdb)), 0);
        partial += count_partial(&world[0].b);
        packets += world[0].burst.counters[1].value[TX_PACKETS];
        beyond += world[0].log[0].beyond + world[0].log[1].beyond;
    }
    CHECK(partial > 1000);
    CHECK(packets > 20000); /* a test in which nothing arrives says nothing */
    SAME(-1, beyond, 0);
    return 0;
}
