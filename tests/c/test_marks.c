/* The log's promise, held against the worst front-end there can be: it takes each bit in the moment
 * in which it is set, copies the page at once, and sees of it no more than what our last full fence
 * made certain. A byte that was stored without a mark, before its fence or after its bit is missing
 * in the copy; used.idx may be seen only once all data is there. And no page is marked but those
 * that the used elements name, and the used ring's own.
 *
 * The verbs are compiled with its eyes in the place of sync.h's fence, or and release.
 */
#include "sync.h"

static void on_fence(void);
static void on_or(uint64_t *at, uint64_t bits);
static void on_release(uint16_t *at, uint16_t value);
#define fence_full on_fence
#define or_u64 on_or
#define store_release_u16 on_release

#include "mend.h"

#include "guest.h"

/* A region for each used ring; then blocks of two regions that touch inside a page, each block
 * across the edge of a word of the log; then one for buffers in a row; then words without memory,
 * marked beforehand, so that what is gathered goes out at any moment. */
enum {
    RING_COUNT = 4, /* a side's: 0, 2 receive, 1, 3 send */
    SIZE = 64,
    USED_BYTES = 4 + 8 * SIZE + 2,
    WORD = 64 * PAGE, /* bytes whose pages share a word */
    BLOCK_COUNT = 24,
    BLOCK_FIRST = RING_COUNT + 1,
    BLOCK_BYTES = 0xc03,
    BLOCK_BEFORE = 0x400, /* so many before the edge */
    BLOCK_CUT = 0x205,
    ROW_FIRST = BLOCK_FIRST + BLOCK_COUNT + 1,
    ROW_BYTES = 24 * PAGE,
    REGION_COUNT = RING_COUNT + 2 * BLOCK_COUNT + 1,
    FILL_FIRST = ROW_FIRST + 1,
    PAGES = 64 * (FILL_FIRST + LOG_CACHE_SIZE),
    PIECE_MAX = 3,
    ROWS = 360,
    ROUNDS = 4,
};

struct piece {
    uint64_t gpa;
    uint32_t size;
};

/* Of a row's buffers: any; one piece each; the header in one piece and the frame in one. */
enum shape { ANY, SINGLE, PAIR, SHAPE_COUNT };

static struct side {
    struct guest ring[RING_COUNT]; /* the first one's table is everybody's */
    struct log log;
    uint8_t *settled[REGION_COUNT]; /* memory as of the last full fence */
    uint8_t *copy[REGION_COUNT];    /* what the front-end has */
    uint64_t used_gpa[RING_COUNT];
    uint16_t used_seen[RING_COUNT];
    uint16_t released[RING_COUNT];
    uint32_t head[RING_COUNT]; /* the next free descriptor */
    enum shape shape;
    bool in_a_row;     /* buffers behind each other, of one size or nearly, and many */
    uint64_t row_next; /* GPA of the next of these */
    struct piece piece[RING_COUNT][SIZE][PIECE_MAX]; /* what was offered, by head */
    bool marked[PAGES], expected[PAGES];
    uint64_t witnessed[PAGES / 64]; /* log.marked, where there is a witness */
} side[2];

static struct fabric fabric;
static struct port port[2];
static struct burst burst;
static uint64_t packets, pages_marked;

/* --- The front-end */

static uint8_t *at(struct side *s, uint8_t **map, uint64_t gpa)
{
    uint32_t last = 0;
    uint64_t reach;
    struct region_table *table = &s->ring[0].table;
    uint8_t *host = region_at(table, &last, gpa, &reach);
    return map == NULL ? host : map[last] + (gpa - table->region[last].gpa);
}

static void on_fence(void)
{
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t r = 0; r < side[i].ring[0].table.count; r++)
            memcpy(side[i].settled[r], side[i].ring[0].table.region[r].host,
                   side[i].ring[0].table.region[r].size);
}

static void copy_page(struct side *s, uint64_t page)
{
    for (uint32_t r = 0; r < REGION_COUNT; r++) {
        const struct region *region = &s->ring[0].table.region[r];
        uint64_t from = page * PAGE > region->gpa ? page * PAGE : region->gpa;
        uint64_t end = region->gpa + region->size;
        uint64_t to = (page + 1) * PAGE < end ? (page + 1) * PAGE : end;
        if (from < to)
            memcpy(s->copy[r] + (from - region->gpa), s->settled[r] + (from - region->gpa),
                   to - from);
    }
}

static void on_or(uint64_t *at_word, uint64_t bits)
{
    for (uint32_t i = 0; i < 2; i++) {
        if (at_word >= side[i].witnessed && at_word < side[i].witnessed + PAGES / 64) {
            *at_word |= bits;
            return;
        }
        if (at_word < side[i].log.word || at_word >= side[i].log.word + PAGES / 64)
            continue;
        for (uint32_t bit = 0; bit < 64; bit++) {
            uint64_t page = (uint64_t)(at_word - side[i].log.word) * 64 + bit;
            if (bits >> bit & 1) {
                side[i].marked[page] = true;
                copy_page(&side[i], page);
            }
        }
        return;
    }
    CHECK(!"a bit in a log that nobody gave");
}

/* The bytes in which copy and memory differ, but for the used rings where `data_only`. */
static uint64_t missing(struct side *s, bool data_only)
{
    uint64_t count = 0;
    for (uint32_t r = data_only ? RING_COUNT : 0; r < REGION_COUNT; r++) {
        const struct region *region = &s->ring[0].table.region[r];
        if (memcmp(s->copy[r], region->host, region->size) == 0)
            continue;
        for (uint64_t i = 0; i < region->size; i++)
            count += s->copy[r][i] != region->host[i];
    }
    return count;
}

static void on_release(uint16_t *at_idx, uint16_t value)
{
    for (uint32_t i = 0; i < 2 * RING_COUNT; i++) {
        struct side *s = &side[i / RING_COUNT];
        const struct ring *ring = &s->ring[i % RING_COUNT].ring;
        if (at_idx != &ring->used->idx)
            continue;
        s->released[i % RING_COUNT] = value;
        bool brings = i % RING_COUNT % 2 == 0; /* what was sent is told first, also by loopback */
        if (ring->marker.log != NULL && brings)
            SAME(i, missing(s, true), 0);
    }
    __atomic_store_n(at_idx, value, __ATOMIC_RELEASE);
}

/* The hypervisor logs what the guest stores itself. */
static void guest_store(struct side *s, uint64_t gpa, const void *from, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++)
        *at(s, NULL, gpa + i) = *at(s, s->settled, gpa + i) = *at(s, s->copy, gpa + i) =
            ((const uint8_t *)from)[i];
}

static void expect(struct side *s, uint64_t gpa, uint64_t size)
{
    for (uint64_t i = 0; i < size; i++)
        s->expected[(gpa + i) / PAGE] = true;
}

static void expect_used(struct side *s, uint32_t r, uint64_t offset, uint64_t size)
{
    if (s->ring[r].ring.marker.log != NULL && s->ring[r].ring.marks_used)
        expect(s, s->used_gpa[r] + offset, size);
}

/* What the used elements say was written. */
static void expect_by_used(struct side *s, uint32_t r)
{
    const struct ring *ring = &s->ring[r].ring;
    SAME(r, ring->used->idx, s->released[r]);
    if (s->used_seen[r] != ring->used->idx)
        expect_used(s, r, SPLIT_USED_IDX, 2);
    for (; s->used_seen[r] != ring->used->idx; s->used_seen[r]++) {
        uint32_t slot = s->used_seen[r] & (SIZE - 1), left = ring->used->ring[slot].len;
        const struct piece *piece = s->piece[r][ring->used->ring[slot].id];
        expect_used(s, r, SPLIT_USED_RING + 8 * slot, 8);
        packets += r % 2 == 0;
        for (uint32_t i = 0; left > 0; i++) {
            uint32_t part = piece[i].size < left ? piece[i].size : left;
            CHECK(i < PIECE_MAX);
            if (ring->marker.log != NULL)
                expect(s, piece[i].gpa, part);
            left -= part;
        }
    }
}

/* Marked is what was expected, and the front-end has all that it was told of. */
static void same(long row)
{
    for (uint32_t i = 0; i < 2; i++) {
        struct side *s = &side[i];
        bool whole = true;
        for (uint32_t r = 0; r < RING_COUNT; r++) {
            expect_by_used(s, r);
            SAME(row, s->ring[r].ring.marker.count, 0);
            SAME(row, s->ring[r].ring.fault, FAULT_NONE);
            whole = whole && s->ring[r].ring.marks_used;
        }
        for (uint32_t page = 0; page < PAGES; page++) {
            bool witnessed = s->witnessed[page / 64] >> (page % 64) & 1;
            SAME(page, s->marked[page], s->expected[page]);
            SAME(page, witnessed, s->log.marked != NULL && s->expected[page]);
            pages_marked += s->marked[page];
        }
        if (s->ring[0].ring.marker.log != NULL)
            SAME(row, missing(s, !whole), 0);
        SAME(row, s->log.beyond, 0);
        memset(s->marked, 0, sizeof s->marked);
        memset(s->witnessed, 0, sizeof s->witnessed);
        memset(s->expected, 0, sizeof s->expected);
    }
}

/* --- The guests */

static void add_memory(struct side *s, uint64_t gpa, uint64_t size)
{
    uint32_t r = s->ring[0].table.count;
    guest_memory(&s->ring[0], gpa, size);
    s->settled[r] = malloc(size);
    s->copy[r] = malloc(size);
}

static void side_make(struct side *s)
{
    for (uint64_t i = 0; i < RING_COUNT; i++) /* aligned for us may be any GPA */
        add_memory(s, i * WORD, 2 * PAGE + i);
    for (uint64_t i = 0; i < BLOCK_COUNT; i++) {
        uint64_t block = (BLOCK_FIRST + i) * WORD - BLOCK_BEFORE;
        add_memory(s, block, BLOCK_CUT);
        add_memory(s, block + BLOCK_CUT, BLOCK_BYTES - BLOCK_CUT);
    }
    add_memory(s, ROW_FIRST * WORD, ROW_BYTES);
    s->log = guest_log(PAGES);
    for (uint32_t r = 0; r < RING_COUNT; r++)
        guest_ring(&s->ring[r], SIZE, 0, true);
}

/* Across a page's edge, so that words and elements lie before, on and behind it; or nearly. */
static uint64_t used_place(struct side *s, uint64_t region)
{
    uint64_t gpa = region * WORD + PAGE - 2 - random_below(USED_BYTES);
    if (random_below(4) == 0)
        gpa = region * WORD + PAGE - USED_BYTES - random_below(8);
    while ((uintptr_t)at(s, NULL, gpa) % 4)
        gpa++;
    return gpa;
}

static void side_start(struct side *s, bool logs, bool mergeable, uint32_t header_size)
{
    static const uint32_t offloads[] = {0, OFFLOAD_CSUM, OFFLOAD_CSUM | OFFLOAD_TSO4};
    bool event_idx = random_below(2);
    s->shape = (enum shape)random_below(SHAPE_COUNT);
    s->in_a_row = random_below(2);
    s->row_next = ROW_FIRST * WORD;
    s->log.marked = random_below(2) ? s->witnessed : NULL;
    uint64_t shift = random_below(RING_COUNT);
    for (uint32_t r = 0; r < REGION_COUNT; r++)
        random_bytes(s->ring[0].table.region[r].host, 64); /* enough to tell from another's */
    for (uint32_t r = 0; r < RING_COUNT; r++) {
        struct guest *guest = &s->ring[r];
        struct ring *ring = &guest->ring;
        uint16_t index = (uint16_t)random_below(0x10000);
        s->used_gpa[r] = used_place(s, (r + shift) % RING_COUNT);
        ring->used = (struct vring_used *)at(s, NULL, s->used_gpa[r]);
        memset(ring->used, 0x5a, USED_BYTES);
        ring->used->idx = ring->avail->idx = guest->avail_idx = index;
        s->used_seen[r] = s->released[r] = index;
        s->head[r] = 0;
        ring->regions = &s->ring[0].table;
        ring->last_region = 0;
        ring->event_idx = event_idx;
        ring->mergeable = mergeable;
        ring->header_size = header_size;
        ring->offloads = offloads[random_below(COUNT(offloads))];
        ring->shared = random_below(4) == 0;
        ring->marker = (struct marker){.log = logs ? &s->log : NULL};
        ring->marks_used = random_below(4) != 0;
        ring->used_log = s->used_gpa[r];
    }
    for (uint32_t r = 0; r < REGION_COUNT; r++)
        memcpy(s->copy[r], s->ring[0].table.region[r].host, s->ring[0].table.region[r].size);
    for (uint32_t r = 0; r < RING_COUNT; r++) {
        split_start(&s->ring[r].ring);
        expect_used(s, r, SPLIT_USED_FLAGS, 2);
        if (event_idx)
            expect_used(s, r, SPLIT_USED_RING + 8 * SIZE, 2);
    }
}

/* A place for `size` bytes, often from or up to a page's edge, give or take a byte. */
static uint64_t somewhere(uint32_t size)
{
    uint64_t edge = (BLOCK_FIRST + random_below(BLOCK_COUNT)) * WORD;
    uint64_t low = edge - BLOCK_BEFORE, high = low + BLOCK_BYTES - (size > 0 ? size : 1);
    uint64_t gpa = low + random_below(high - low + 1);
    edge += random_below(3) - 1;
    if (random_below(3) == 0)
        gpa = edge;
    else if (random_below(2) == 0)
        gpa = edge - size;
    return gpa < low ? low : gpa > high ? high : gpa;
}

/* The next in a row; to a page that nobody stores to it takes a gap of a page or more. */
static uint64_t next_in_row(struct side *s, uint32_t size)
{
    static const uint32_t wide[] = {PAGE - 60, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE};
    uint64_t end = (ROW_FIRST * WORD) + ROW_BYTES;
    uint64_t gpa = s->row_next + (random_below(40) ? random_below(3) * random_below(40)
                                                   : wide[random_below(COUNT(wide))]);
    if (gpa + size > end)
        gpa = ROW_FIRST * WORD + random_below(2 * PAGE);
    s->row_next = gpa + size;
    return gpa;
}

/* Offer `size` bytes; the head. */
static uint32_t offer(struct side *s, uint32_t r, uint32_t size, uint16_t write)
{
    uint32_t head = s->head[r];
    uint32_t pieces = s->shape == PAIR                      ? 2
                      : s->shape == SINGLE || random_below(4) ? 1
                                                              : 2 + (uint32_t)random_below(2);
    for (uint32_t i = 0, left = size; i < pieces; i++) {
        uint32_t part = i + 1 == pieces    ? left
                        : s->shape == PAIR ? s->ring[r].ring.header_size
                                           : (uint32_t)random_below(left + 1);
        struct piece piece = {s->in_a_row ? next_in_row(s, part) : somewhere(part), part};
        bool more = i + 1 < pieces;
        guest_desc(&s->ring[r], (head + i) % SIZE, piece.gpa, part,
                   (uint16_t)(write | (more ? VRING_DESC_NEXT : 0)),
                   (uint16_t)((head + i + 1) % SIZE));
        s->piece[r][head][i] = piece;
        left -= part;
    }
    guest_offer(&s->ring[r], (uint16_t)head);
    s->head[r] = (head + pieces) % SIZE;
    return head;
}

/* What a sender may leave to us: the checksum of anything, or a TCP packet to be cut. */
static void dress_offload(uint8_t *header, uint8_t *frame, uint32_t size)
{
    bool tcp = size > 300 && random_below(2);
    if (size < FRAME_SIZE_MIN + 2)
        return;
    struct net_header said = {.flags = NET_HEADER_NEEDS_CSUM, .csum_start = FRAME_SIZE_MIN};
    if (tcp) {
        said.gso_type = NET_HEADER_GSO_TCPV4;
        said.gso_size = (uint16_t)(100 + random_below(200));
        said.csum_start = 34;
        said.csum_offset = 16;
        memcpy(frame + 12, (const uint8_t[]){8, 0, 0x45}, 3);
        frame[20] = frame[21] = 0; /* not a fragment */
        frame[23] = 6;
        frame[46] = 0x50;
    }
    memcpy(header, &said, NET_HEADER_SIZE_LEGACY);
}

/* Header and addresses, wherever the pieces of the chain at `head` lie. */
static void dress(struct side *s, uint32_t r, uint32_t head, uint32_t size)
{
    static const uint8_t last[] = {1, 2, 2, 3, 0xff};
    uint8_t whole[2600];
    uint32_t header_size = s->ring[r].ring.header_size, done = 0;
    uint8_t target = last[random_below(COUNT(last))];
    random_bytes(whole, size);
    memset(whole, 0, header_size);
    memset(whole + header_size, target == 0xff ? 0xff : 0, 6);
    if (target != 0xff)
        whole[header_size] = 2;
    whole[header_size + 5] = target;
    if (s->ring[r].ring.offloads & OFFLOAD_TSO4)
        dress_offload(whole, whole + header_size, size - header_size);
    for (uint32_t i = 0; done < size; done += s->piece[r][head][i++].size)
        guest_store(s, s->piece[r][head][i].gpa, whole + done, s->piece[r][head][i].size);
}

/* As many as the descriptors surely hold. */
static void guest_offers(struct side *s, uint32_t r)
{
    uint32_t header_size = s->ring[r].ring.header_size;
    uint32_t waiting = (uint16_t)(s->ring[r].avail_idx - s->used_seen[r]);
    uint32_t most = SIZE / PIECE_MAX - waiting;
    for (uint64_t i = s->in_a_row ? most : random_below(most + 1); i > 0; i--) {
        uint32_t size = header_size + FRAME_SIZE_MIN + (uint32_t)random_below(i % 4 ? 120 : 2000);
        if (i % 2) /* so that frames often fill a buffer exactly */
            size = header_size + 60;
        if (s->in_a_row) /* a whole group fits */
            size = header_size + (r % 2 ? 60 : 70) + (uint32_t)random_below(10);
        uint32_t head = offer(s, r, size, r % 2 ? 0 : VRING_DESC_WRITE);
        if (r % 2)
            dress(s, r, head, size);
    }
    guest_publish(&s->ring[r]);
}

/* --- The back-end at work */

/* A value that nobody stores shows that something was stored over it. */
static void want_kicks(struct side *s, uint32_t r)
{
    struct ring *ring = &s->ring[r].ring;
    const uint16_t canary = ring->event_idx ? (uint16_t)(ring->last_avail + 0x4000) : 0x5aa5;
    uint64_t offset = ring->event_idx ? SPLIT_USED_RING + 8 * SIZE : SPLIT_USED_FLAGS;
    uint16_t *word = ring->event_idx ? split_avail_event(ring) : &ring->used->flags;
    guest_store(s, s->used_gpa[r] + offset, &canary, sizeof canary);
    split_want_kicks(ring, random_below(2));
    if (*word != canary)
        expect_used(s, r, offset, 2);
}

static void world_start(long row)
{
    memset(&fabric, 0, sizeof fabric);
    memset(burst.counters, 0, sizeof burst.counters);
    burst_init(&burst, &fabric);
    fabric.policy = (enum policy)(row / 3 % POLICY_DROP);
    for (uint32_t i = 0; i < 2; i++) {
        side_start(&side[i], random_below(5) != 0, row / 9 % 2,
                   row / 18 % 3 || row / 9 % 2 ? NET_HEADER_SIZE : NET_HEADER_SIZE_LEGACY);
        port[i] = (struct port){.index = i, .peer = &port[!i], .event_fd = -1};
        port[i].receiver[port[i].receiver_count++] = &side[i].ring[0].ring;
        port[i].receiver[port[i].receiver_count++] = &side[i].ring[2].ring;
        fabric.port[fabric.port_count++] = fabric.by_index[i] = &port[i];
        fdb_learn(&fabric.fdb, UINT64_C(2) | (uint64_t)(i + 1) << 40, i);
    }
}

/* Marks that were gathered before, at pages without memory. */
static void fill_marker(struct side *s, struct ring *ring)
{
    if (ring->marker.log == NULL)
        return;
    for (uint64_t i = random_below(LOG_CACHE_SIZE + 1); i > 0; i--) {
        log_mark(&ring->marker, (FILL_FIRST + i - 1) * WORD, 1);
        expect(s, (FILL_FIRST + i - 1) * WORD, 1);
    }
}

static void work(burst_function forward)
{
    static const uint8_t announcement[60] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2};
    for (uint32_t i = 0; i < 2 * RING_COUNT; i++)
        fill_marker(&side[i / RING_COUNT], &side[i / RING_COUNT].ring[i % RING_COUNT].ring);
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t r = 1; r < RING_COUNT; r += 2) {
            struct ring *ring = &side[i].ring[r].ring;
            struct source source = {.ring = ring, .port = &port[i], .queue = r / 2};
            forward(&burst, &source);
        }
        if (random_below(4) == 0)
            inject(&burst, &port[i], announcement, sizeof announcement);
    }
    for (uint32_t i = 0; i < 2 * RING_COUNT; i++) {
        struct ring *ring = &side[i / RING_COUNT].ring[i % RING_COUNT].ring;
        if (ring->used->idx == side[i / RING_COUNT].used_seen[i % RING_COUNT])
            log_flush(&ring->marker, false); /* it had nothing to publish */
    }
}

int main(void)
{
    side_make(&side[0]);
    side_make(&side[1]);
    for (long row = 0; row < ROWS; row++) {
        burst_function forward = burst_at((enum level)(row % LEVEL_COUNT));
        if (forward == NULL) /* this CPU lacks it */
            continue;
        world_start(row);
        same(row);
        for (uint32_t round = 0; round < ROUNDS; round++) {
            for (uint32_t i = 0; i < 2 * RING_COUNT; i++)
                guest_offers(&side[i / RING_COUNT], i % RING_COUNT);
            work(forward);
            same(row);
            for (uint32_t i = 0; i < 2 * RING_COUNT; i++)
                want_kicks(&side[i / RING_COUNT], i % RING_COUNT);
            same(row);
        }
    }
    CHECK(packets > 1000); /* a test in which nothing arrives says nothing */
    CHECK(pages_marked > packets);
    return 0;
}
