/* Each word of guest memory is loaded once, then checked, then used: what two guests' packets come
 * to is the same whether or not every word changes as soon as it was loaded.
 *
 * Built by test_headers.py so that each load is seen (loads.h). A unit is one group of the direct
 * path, one packet of the general path, or one publishing: what the direct path has looked at and
 * left, the general path looks at anew, and nothing of the first look is kept. What may be loaded
 * again within a unit is no more than
 *   avail.idx            each look is checked by itself, and only the local is used
 *   a flood's payload    once for each receiver: each gets what was there then, the addresses from
 *                        the copy that was decided by
 *   a frame's addresses  with learn, on the direct path: looked at, later copied with the frame,
 *                        then stored over by what was looked at (8 bytes a look: the type behind
 *                        them is among these, and not used)
 *   the tail of a copy   overlaps what was copied before, and is stored last (loads.h)
 */
#include "loads.h"

#include "forward.h"
#include "guest.h"

enum { SIZE = 64, CUT = 0x9001, MEMORY = 0x20000, TABLES = 0x40000, TABLE_BYTES = 64 };
enum { ROWS = 144, ROUNDS = 2, PACKETS = 12, MACHINES = 3, SENDER = 0, PIECES_MAX = 4 };
enum { USED_BYTES = 4 + 8 * SIZE + 2 };

static struct world {
    struct fabric fabric;
    struct port port[MACHINES];
    struct guest guest[MACHINES]; /* the first sends, the others receive */
    uint64_t free[MACHINES];      /* from where on memory is free: no two buffers overlap */
    struct log log[MACHINES];
    struct source source;
    struct burst burst;
} world[2];

static uint8_t noise[MEMORY];

static void guest_take(struct guest *guest, struct log *log)
{
    struct ring *ring = &guest->ring;
    guest_memory(guest, 0, CUT);
    guest_memory(guest, CUT, MEMORY - CUT);
    guest_memory(guest, TABLES, SIZE * TABLE_BYTES);
    guest_ring(guest, SIZE, 65500, true);
    *log = guest_log((TABLES + SIZE * TABLE_BYTES) / PAGE);
    watch_memory(ring->avail, 4 + 2 * SIZE + 2);
    watch_memory(ring->desc, SIZE * sizeof *ring->desc);
    watch_memory(ring->used, USED_BYTES);
    for (uint32_t i = 0; i < guest->table.count; i++)
        watch_memory(guest->table.region[i].host, guest->table.region[i].size);
}

/* What may be loaded how often, before anything is offered. */
static void guest_watch(struct guest *guest, bool floods)
{
    struct ring *ring = &guest->ring;
    const uint8_t each = floods ? MACHINES - 1 : 1;
    loads_may(ring->avail, 4 + 2 * SIZE + 2, 1, 1, true);
    loads_may(&ring->avail->idx, sizeof ring->avail->idx, EVER, EVER, true);
    loads_may(ring->desc, SIZE * sizeof *ring->desc, 1, 1, true);
    loads_may(ring->used, USED_BYTES, 1, 1, true);
    for (uint32_t i = 0; i < 2; i++)
        loads_may(guest->table.region[i].host, guest->table.region[i].size, each, each, false);
    loads_may(guest->table.region[2].host, guest->table.region[2].size, 1, 1, true);
}

static void guest_begin(struct guest *guest, struct log *log, bool sends)
{
    struct ring *ring = &guest->ring;
    for (uint32_t i = 0; i < 2; i++) {
        const struct region *region = &guest->table.region[i];
        if (sends)
            memcpy(region->host, noise + region->gpa, region->size);
        else
            memset(region->host, 0, region->size);
    }
    memset(ring->desc, 0, SIZE * sizeof *ring->desc);
    memset(ring->used, 0, USED_BYTES);
    memset(log->word, 0, (log->page_count + 63) / 64 * 8);
    ring->used->idx = ring->avail->idx = guest->avail_idx = 65500;
    ring->marker = (struct marker){.log = log};
    ring->marks_used = true;
    ring->last_region = 0;
    split_start(ring);
}

static void world_begin(struct world *w, long row, enum policy policy, bool floods)
{
    static const uint8_t offloads[] = {0, OFFLOAD_CSUM, OFFLOAD_CSUM | OFFLOAD_TSO4};
    burst_init(&w->burst, &w->fabric);
    memset(&w->fabric, 0, sizeof w->fabric);
    memset(w->burst.counters, 0, sizeof w->burst.counters);
    w->fabric.policy = policy;
    for (uint32_t i = 0; i < MACHINES; i++) {
        struct ring *ring = &w->guest[i].ring;
        if (w->guest[i].table.count == 0)
            guest_take(&w->guest[i], &w->log[i]);
        guest_watch(&w->guest[i], floods);
        guest_begin(&w->guest[i], &w->log[i], i == SENDER);
        w->free[i] = row % 7;
        ring->mergeable = row & 1;
        ring->header_size = row & 2 ? NET_HEADER_SIZE : NET_HEADER_SIZE_LEGACY;
        ring->offloads = offloads[(i == SENDER ? row / 4 : row / 12) % 3];
        w->port[i] = (struct port){.index = i, .event_fd = -1, .peer = &w->port[1]};
        if (i != SENDER) {
            w->port[i].receiver_count = 1;
            w->port[i].receiver[0] = ring;
        }
        w->fabric.port[w->fabric.port_count++] = w->fabric.by_index[i] = &w->port[i];
        fdb_learn(&w->fabric.fdb, 0x0b02 + (i << 16), i);
    }
    w->source = (struct source){.ring = &w->guest[SENDER].ring, .port = &w->port[SENDER]};
}

/* --- What is offered ------------------------------------------------------------------------- */

static uint64_t place(struct world *w, uint32_t index, uint32_t size)
{
    uint64_t gpa = w->free[index] + random_below(20);
    w->free[index] = gpa + size;
    CHECK(w->free[index] <= MEMORY);
    return gpa;
}

static void store(struct guest *guest, uint64_t gpa, const void *from, uint32_t size)
{
    const uint8_t *next = from;
    uint32_t last = 0;
    for (uint32_t i = 0; i < size; i++) {
        uint64_t reach;
        *region_at(&guest->table, &last, gpa + i, &reach) = next[i];
    }
}

/* A chain of `pieces`: in the ring, or in a table. Where each piece lies, and how long it is. */
static void offer(struct world *w, uint32_t index, uint32_t head, uint32_t size, uint32_t pieces,
                  bool table, struct vring_desc *piece)
{
    struct guest *guest = &w->guest[index];
    const uint16_t write = index == SENDER ? 0 : VRING_DESC_WRITE;
    const uint32_t header = guest->ring.header_size, base = table ? 0 : head;
    for (uint32_t i = 0, left = size; i < pieces; i++) {
        uint32_t part = i + 1 == pieces ? left
                        : i == 0        ? header
                                        : (uint32_t)random_below(left + 1);
        piece[i] = (struct vring_desc){.addr = place(w, index, part),
                                       .len = part,
                                       .flags = write | (i + 1 < pieces ? VRING_DESC_NEXT : 0),
                                       .next = (uint16_t)(base + i + 1)};
        left -= part;
    }
    if (table) {
        uint64_t gpa = TABLES + head * (uint64_t)TABLE_BYTES;
        uint32_t bytes = pieces * (uint32_t)sizeof *piece;
        store(guest, gpa, piece, bytes);
        guest_desc(guest, head, gpa, bytes, VRING_DESC_INDIRECT, 0);
    } else {
        memcpy(&guest->ring.desc[head], piece, pieces * sizeof *piece);
    }
    guest_offer(guest, (uint16_t)head);
}

/* Byte `at` of a chain. */
static uint8_t *chain_at(struct guest *guest, const struct vring_desc *piece, uint32_t at)
{
    uint32_t last = 0;
    uint64_t reach;
    while (at >= piece->len)
        at -= piece++->len;
    return region_at(&guest->table, &last, piece->addr + at, &reach);
}

/* A header that may ask for what the sender has taken, and a frame that it is true of. */
static void dress(struct world *w, const struct vring_desc *piece, uint32_t to, uint32_t size)
{
    struct guest *guest = &w->guest[SENDER];
    uint32_t asks = (uint32_t)random_below(3);
    struct net_header header = {0};
    uint8_t frame[54] = {0x02, 0x0b, (uint8_t)to, 0, 0, 0, 0x02, 0x0b};
    if (to >= MACHINES)
        memset(frame, 0xff, 6);
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[14 + IPV4_PROTOCOL_AT] = PROTOCOL_TCP;
    frame[34 + TCP_OFFSET_AT] = 0x50;
    if (asks > 0) {
        header.flags = NET_HEADER_NEEDS_CSUM;
        header.csum_start = 34;
        header.csum_offset = TCP_CSUM_AT;
        header.gso_type = asks > 1 ? NET_HEADER_GSO_TCPV4 : NET_HEADER_GSO_NONE;
        header.gso_size = (uint16_t)(50 + random_below(400));
    }
    const bool looks = w->fabric.policy == POLICY_LEARN;
    for (uint32_t i = 0; i < guest->ring.header_size; i++) {
        uint8_t *byte = chain_at(guest, piece, i);
        *byte = ((uint8_t *)&header)[i];
        loads_may(byte, 1, 1, 1, true);
    }
    for (uint32_t i = 0; i < sizeof frame && i < size; i++) {
        uint8_t *byte = chain_at(guest, piece, guest->ring.header_size + i);
        *byte = frame[i];
        if (i < FRAME_SIZE_MIN)
            loads_may(byte, 1, looks ? 2 : 1, looks && i >= 12 ? 2 : 1, true);
    }
}

static void offer_all(struct world *w, uint32_t round, long row)
{
    const uint32_t header = w->guest[SENDER].ring.header_size;
    for (uint32_t i = 0; i < PACKETS; i++) {
        struct vring_desc piece[PIECES_MAX];
        uint32_t head = round * PACKETS + i, kind = random_below(4) ? row % 3 : 3;
        uint32_t size = 14 + (uint32_t)random_below(random_below(3) ? 200 : 1500);
        uint32_t pieces = kind == 3 ? PIECES_MAX - 1 : kind == 0 ? 1 : 2;
        offer(w, SENDER, head * 2, header + size, kind == 3 ? 2 : pieces, kind == 2, piece);
        dress(w, piece, row % 4 == 3 ? MACHINES : 1 + (uint32_t)random_below(2), size);
        for (uint32_t to = 1; to < MACHINES; to++) {
            uint32_t room = row & 1 ? 300 : 1700;
            kind = random_below(4) ? row / 3 % 3 : 0;
            offer(w, to, head * 2, room, kind == 0 ? 1 : 2, kind == 2, piece);
        }
    }
    for (uint32_t i = 0; i < MACHINES; i++)
        guest_publish(&w->guest[i]);
}

/* --- What is done ---------------------------------------------------------------------------- */

/* forward_burst by units, see above; at one width, for the others are the same code with wider
 * vectors. */
static void forward(struct burst *burst, struct source *source)
{
    bool paired = false, more = true;
    while (more) {
        bool odd = false;
        unit_begin();
        uint32_t group = forward_alike(burst, source, 16, paired, &odd);
        unit_end();
        if (group > 0)
            continue;
        if (odd && !paired) {
            paired = true;
            continue;
        }
        unit_begin();
        more = forward_one(burst, source, 16);
        unit_end();
    }
    unit_begin();
    publish_touched(burst);
    ring_complete(source->ring, false);
    unit_end();
}

static void run(struct world *w, long row, bool floods, bool changing)
{
    enum policy policy = floods || row % 2 ? POLICY_LEARN : POLICY_PATCH;
    world_begin(w, row, policy, floods);
    random_state = UINT64_C(77777) * (uint64_t)(row + 1);
    changes = changing;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        offer_all(w, round, floods ? row * 4 + 3 : row / 4 * 4 + row % 3);
        forward(&w->burst, &w->source);
        for (uint32_t i = 0; i < MACHINES; i++) {
            unit_begin();
            split_want_kicks(&w->guest[i].ring, row & 1);
            unit_end();
        }
    }
}

static void same_guest(long row, const struct guest *one, const struct guest *two)
{
    for (uint32_t i = 0; i < one->table.count; i++)
        SAME(row, memcmp(one->table.region[i].host, two->table.region[i].host,
                         one->table.region[i].size), 0);
    SAME(row, memcmp(one->ring.used, two->ring.used, USED_BYTES), 0);
    SAME(row, one->ring.last_avail, two->ring.last_avail);
    SAME(row, one->ring.fault, two->ring.fault);
}

int main(int count, char **argument)
{
    uint64_t packets = 0, before = 0;
    const bool floods = count > 1 && strcmp(argument[1], "flood") == 0;
    random_bytes(noise, sizeof noise);
    for (long row = 0; row < ROWS; row++) {
        run(&world[0], row, floods, false);
        run(&world[1], row, floods, true);
        for (uint32_t i = 0; !floods && i < MACHINES; i++)
            same_guest(row, &world[0].guest[i], &world[1].guest[i]);
        for (uint32_t i = 0; i < MACHINES; i++)
            SAME(row, memcmp(world[0].log[i].word, world[1].log[i].word,
                             (world[0].log[i].page_count + 63) / 64 * 8), 0);
        SAME(row, memcmp(world[0].burst.counters, world[1].burst.counters,
                         sizeof world[0].burst.counters), 0);
        for (uint32_t i = 1; i < MACHINES; i++)
            packets += world[1].burst.counters[i].value[TX_PACKETS];
        before += change_count > 0;
    }
    CHECK(packets > 2000); /* what doesn't arrive isn't read */
    CHECK(before == ROWS && change_count > 100 * packets);
    printf("%" PRIu64 " packets, %" PRIu64 " loads, %" PRIu64 " bytes changed behind one\n",
           packets, load_count, change_count);
    return 0;
}
