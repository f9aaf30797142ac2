/* Three ports; the memory of one vanishes, at any page, amid any traffic: its port closes, and what
 * the other two say to each other arrives once, whole and in order. */
#include "worker.h"

#include "guest.h"
#include "vanish.h"

enum {
    SIZE = 64,
    ROUNDS = 800,
    TURNS = 6,
    FRAMES = 40,
    FRAME = 900, /* two buffers of a mergeable ring; or two segments */
    HEADERS = 54,
    CONTENT = 8, /* behind a frame's number and the size of its payload */
    STRIDE = 1024,
    RX = 0, /* pages of a machine's buffers, after the victim's rings */
    TX = 16,
    USED = 5, /* the page of the victim's used elements of what it sends */
    TABLES = 8, /* pages of the victim's rings, before its buffers */
    PAGES = TABLES + 24,
    LOG_PAGES = 0x100,
    SENDER = 0, /* the ports */
    VICTIM = 1,
    RECEIVER = 2,
};

/* What a guest has; the rings of the victim lie in memory that vanishes. */
struct machine {
    struct guest rx, tx;
    uint8_t *memory;
};

static struct machine machine[3];
static struct port port[3];
static struct fabric fabric;
static struct source source[3];
static struct worker worker;
static struct vanishing victim, victim_log;
static struct log logs[3];
static uint16_t next; /* of the receiver's used ring */
static uint32_t sent[3], seen[3]; /* frames to the receiver, by sender */
static uint32_t begun[3], whole[3]; /* of the frame that comes: bytes so far, and in all */
static uint32_t offered[3];       /* frames to anyone */
static uint32_t sent_by[TURNS * SIZE]; /* of the victim: frames to the receiver among the first n */

static uint64_t mac_of(uint32_t index) { return 0x0b02 + (uint64_t)(index << 16); }

/* A page each for desc, avail and used, so that each vanishes on its own. */
static void victim_ring(struct guest *guest, size_t page)
{
    struct ring *ring = &guest->ring;
    ring->desc = (struct vring_desc *)(victim.host + page * PAGE);
    ring->avail = (struct vring_avail *)(victim.host + (page + 1) * PAGE);
    ring->used = (struct vring_used *)(victim.host + (page + 2) * PAGE);
    ring->used->idx = ring->avail->idx = guest->avail_idx;
    split_start(ring);
}

static void machine_start(uint32_t index, bool shared, bool mergeable, uint32_t order)
{
    static const uint32_t offloads[] = {0, OFFLOAD_CSUM, OFFLOAD_CSUM | OFFLOAD_TSO4};
    struct machine *it = &machine[index];
    struct guest *const both[] = {&it->rx, &it->tx};
    if (it->memory == NULL)
        it->memory = index == VICTIM ? victim.host : guarded_pages((size_t)PAGES * PAGE);
    for (size_t i = 0; i < COUNT(both); i++) {
        both[i]->table = (struct region_table){.count = 1};
        both[i]->table.region[0] = (struct region){.size = PAGES * PAGE, .host = it->memory};
        if (both[i]->ring.desc == NULL || index == VICTIM)
            guest_ring(both[i], SIZE, 65500, true);
        both[i]->ring.used->idx = both[i]->ring.avail->idx = both[i]->avail_idx = 65500;
        if (index == VICTIM)
            victim_ring(both[i], 3 * i);
        split_start(&both[i]->ring);
        both[i]->ring.mergeable = mergeable;
        both[i]->ring.marker = (struct marker){.log = &logs[index]};
        both[i]->ring.touched = false;
    }
    it->rx.ring.shared = shared;
    it->tx.ring.offloads = OFFLOAD_CSUM | OFFLOAD_TSO4;
    it->rx.ring.offloads = offloads[random_below(COUNT(offloads))];
    port[index] = (struct port){.index = index, .event_fd = -1, .log = &logs[index]};
    port[index].regions = &it->rx.table;
    port[index].receiver[port[index].receiver_count++] = &it->rx.ring;
    fabric.by_index[index] = &port[index];
    fabric.port[(index + order) % 3] = &port[index];
    source[(index + order) % 3] = (struct source){.ring = &it->tx.ring, .port = &port[index]};
    fdb_learn(&fabric.fdb, mac_of(index), index);
}

static void start(enum policy policy, bool shared, bool mergeable, enum level level)
{
    if (victim.host != NULL) {
        vanishing_give(&victim);
        vanishing_give(&victim_log);
    }
    machine[VICTIM] = (struct machine){0};
    vanishing_take(&victim, PAGES);
    vanishing_take(&victim_log, 1);
    memset(&fabric, 0, sizeof fabric);
    next = 65500;
    memset(seen, 0, sizeof seen);
    memset(begun, 0, sizeof begun);
    memset(sent, 0, sizeof sent);
    memset(offered, 0, sizeof offered);
    fabric.policy = policy;
    fabric.port_count = 3;
    const uint32_t order = (uint32_t)random_below(3); /* in which a frame goes to all */
    for (uint32_t i = 0; i < 3; i++) {
        if (i != VICTIM && logs[i].word == NULL)
            logs[i] = guest_log(LOG_PAGES);
        else if (i == VICTIM)
            logs[i] = (struct log){.word = (uint64_t *)victim_log.host, .event_fd = -1};
        logs[i].page_count = LOG_PAGES;
        machine_start(i, shared, mergeable, order);
    }
    port[SENDER].peer = &port[VICTIM]; /* patch */
    memset(&worker, 0, sizeof worker);
    worker_init(&worker);
    worker.word = WORKER_GO;
    worker.source = source;
    worker.source_count = 3;
    worker.forward = burst_at(level);
    worker_look_anew(&worker);
    burst_init(&worker.burst, &fabric);
}

static void post(uint32_t index)
{
    struct guest *guest = &machine[index].rx;
    uint32_t page = index == VICTIM ? TABLES + RX : RX;
    uint32_t size = guest->ring.mergeable ? STRIDE / 2 : STRIDE;
    while ((uint16_t)(guest->avail_idx - guest->ring.used->idx) < SIZE) {
        uint32_t head = guest->avail_idx % SIZE;
        guest_desc(guest, head, page * PAGE + head * STRIDE, size, VRING_DESC_WRITE, 0);
        guest_offer(guest, (uint16_t)head);
    }
    guest_publish(guest);
}

/* TCP over IPv4, as far as we look; its payload is a number, its own size, and what follows from
 * the number. It is left to us to sum it, or to cut it in two, or not. */
static void fill_frame(uint8_t *header, uint32_t number, uint32_t size)
{
    uint8_t *frame = header + NET_HEADER_SIZE, *payload = frame + HEADERS;
    const uint32_t payload_size = size - HEADERS;
    struct net_header said = {.flags = (uint8_t)random_below(2), .csum_start = 34};
    said.csum_offset = 16;
    if (said.flags && payload_size > 2 * CONTENT && random_below(2)) {
        said.gso_type = NET_HEADER_GSO_TCPV4;
        said.gso_size = (uint16_t)((payload_size + 1) / 2);
    }
    memcpy(header, &said, sizeof said);
    memset(frame + 12, 0, HEADERS - 12);
    memcpy(frame + 12, (const uint8_t[]){8, 0, 0x45}, 3);
    frame[23] = 6;
    frame[46] = 0x50;
    memcpy(payload, &number, sizeof number);
    memcpy(payload + 4, &payload_size, sizeof payload_size);
    for (uint32_t i = CONTENT; i < payload_size; i++)
        payload[i] = (uint8_t)(number * 7 + i);
}

/* Frames of one to a few in a row for the same port: in one piece, or in two. */
static void send(uint32_t index, uint32_t count)
{
    struct guest *guest = &machine[index].tx;
    static const uint64_t to[] = {0x0b02, 0x10b02, 0x20b02, 0x20b02, 0x20b02, 0xffffffffffff};
    uint64_t target = 0;
    for (; count > 0; count--) {
        uint32_t slot = guest->avail_idx % (SIZE / 2);
        uint32_t size = random_below(3) ? 64 : 64 + (uint32_t)random_below(FRAME - 64);
        uint64_t gpa = (uint64_t)(index == VICTIM ? TABLES + TX : TX) * PAGE + slot * STRIDE;
        uint8_t *frame = machine[index].memory + gpa;
        if (target == 0 || random_below(6) == 0)
            target = to[random_below(COUNT(to))];
        uint64_t from = mac_of(index);
        memcpy(frame + NET_HEADER_SIZE, &target, 6);
        memcpy(frame + NET_HEADER_SIZE + 6, &from, 6);
        bool for_receiver = index != RECEIVER && (target == mac_of(RECEIVER) || target & 1);
        uint32_t number = for_receiver ? sent[index]++ : 0;
        fill_frame(frame, number, size);
        uint32_t cut = random_below(2) ? 0 : 1 + (uint32_t)random_below(size);
        guest_desc(guest, 2 * slot, gpa, cut ? cut : size + NET_HEADER_SIZE,
                   cut ? VRING_DESC_NEXT : 0, (uint16_t)(2 * slot + 1));
        guest_desc(guest, 2 * slot + 1, gpa + cut, size + NET_HEADER_SIZE - cut, 0, 0);
        guest_offer(guest, (uint16_t)(2 * slot));
        offered[index]++;
        if (index == VICTIM)
            sent_by[offered[index]] = sent[index];
    }
    guest_publish(guest);
}

/* A packet of a sender's next frame, or the rest of one. */
static void check_packet(long row, const uint8_t *packet, uint32_t size)
{
    struct net_header header;
    memcpy(&header, packet, sizeof header);
    SAME(row, offload_needs(&header) & ~machine[RECEIVER].rx.ring.offloads, 0);
    const uint8_t *payload = packet + NET_HEADER_SIZE + HEADERS;
    const uint32_t from = packet[NET_HEADER_SIZE + 8]; /* of its MAC address */
    CHECK(from < 3 && size > NET_HEADER_SIZE + HEADERS);
    for (uint32_t i = 0; i < size - NET_HEADER_SIZE - HEADERS; i++, begun[from]++) {
        if (begun[from] >= CONTENT)
            SAME(row, payload[i], (uint8_t)(seen[from] * 7 + begun[from]));
        else if (begun[from] == 0)
            SAME(row, memcmp(payload, &seen[from], sizeof seen[from]), 0);
        else if (begun[from] == 4)
            memcpy(&whole[from], payload + 4, sizeof whole[from]);
    }
    if (begun[from] == whole[from]) {
        begun[from] = 0;
        seen[from]++;
    }
}

/* What came is what was sent: each frame whole, and the next of its sender's. */
static void take(long row)
{
    struct guest *guest = &machine[RECEIVER].rx;
    while (next != guest->ring.used->idx) {
        uint8_t packet[NET_HEADER_SIZE + FRAME];
        uint32_t size = 0, buffers = 1;
        for (uint32_t i = 0; i < buffers; i++, next++) {
            const struct vring_used_element *used = &guest->ring.used->ring[next % SIZE];
            CHECK(size + used->len <= sizeof packet);
            memcpy(packet + size, machine[RECEIVER].memory + used->id * STRIDE, used->len);
            size += used->len;
            buffers = packet[10] | packet[11] << 8;
        }
        check_packet(row, packet, size);
    }
}

static void turn(long row)
{
    post(SENDER);
    post(RECEIVER);
    accounts_forgive(&worker.burst.accounts);
    worker_turn(&worker);
    CHECK(worker.burst.held == NULL && worker.burst.touched == NULL);
    for (uint32_t i = 0; i < 3; i++)
        SAME(row, machine[i].rx.ring.lock + machine[i].rx.ring.touched, 0);
    take(row);
}

static void one_vanishes(long row)
{
    bool of_log = random_below(12) == 0, used_is_there = true;
    bool closed = random_below(8) == 0; /* by another worker, before this one sees what is gone */
    for (uint32_t i = 0; i < TURNS; i++) {
        bool there = i <= 1 + row % 3;
        if (there)
            post(VICTIM);
        for (uint32_t j = 0; j < 3; j++)
            if (j != VICTIM || there)
                send(j, (uint32_t)random_below(SIZE / 8));
        if (i == 1 + row % 3) {
            for (uint32_t left = 1 + (uint32_t)random_below(3); left > 0; left--) {
                size_t page = random_below(2) ? random_below(6) : TABLES + random_below(24);
                vanish(of_log ? &victim_log : &victim, of_log ? 0 : page);
                used_is_there &= of_log || page != USED;
            }
            if (closed)
                port[VICTIM].fault = FAULT_HEAD;
        }
        turn(row);
        worker_want_kicks(&worker, i % 2);
    }
    while (machine[SENDER].tx.ring.used->idx != machine[SENDER].tx.avail_idx)
        turn(row);
    turn(row);
    uint32_t fault = port[VICTIM].fault;
    if (closed)
        CHECK(fault == FAULT_HEAD);
    else
        CHECK(fault == FAULT_NONE || fault == (of_log ? FAULT_LOG : FAULT_MEMORY));
    CHECK(port[SENDER].fault == FAULT_NONE && port[RECEIVER].fault == FAULT_NONE);
    SAME(row, seen[SENDER], fabric.policy == POLICY_LEARN ? sent[SENDER] : 0);
    CHECK(seen[VICTIM] <= sent[VICTIM]);
    if (used_is_there) /* what has arrived is not sent again by who goes on with this ring */
        CHECK(seen[VICTIM] <= sent_by[(uint16_t)(machine[VICTIM].tx.ring.used->idx - 65500)]);
    const uint64_t *counted = worker.burst.counters[SENDER].value;
    SAME(row, counted[RX_PACKETS], offered[SENDER]);
}

static uint32_t broken[FAULT_COUNT];

int main(void)
{
    guard_install();
    for (long row = 0; row < ROUNDS; row++) {
        enum level level = (enum level)random_below(LEVEL_COUNT);
        enum policy policy = random_below(5) ? POLICY_LEARN : POLICY_PATCH;
        if (burst_at(level) == NULL)
            level = LEVEL_BASELINE;
        start(policy, random_below(2), random_below(2), level);
        one_vanishes(row);
        broken[port[VICTIM].fault]++;
    }
    CHECK(broken[FAULT_MEMORY] > ROUNDS / 4); /* the test found what it looks for */
    CHECK(broken[FAULT_LOG] > 10 && broken[FAULT_HEAD] > 10);
    return 0;
}
