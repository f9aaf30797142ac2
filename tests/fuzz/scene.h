/* Three machines on one fabric, what the fuzzer has them do, and what holds whatever they do. */
#ifndef FUZZ_SCENE_H
#define FUZZ_SCENE_H

#include "machine.h"

enum { STEP_COUNT_MAX = 64, TCP_HEADERS = 54, ETHERTYPE_TEST = 0xb588 };

static struct fabric *fabric;
static struct port port[MACHINE_COUNT];
static struct source source[MACHINE_COUNT];
static struct burst burst;
static uint8_t *may; /* which bytes of the arena may be stored to, by the descriptors */
static bool blurred; /* a guest's buffers lie over its rings: who wrote what is not to be told */

static void scene_start(struct input *in)
{
    const uint64_t size = sizeof *fabric;
    uint32_t kind = (uint32_t)take(in, 1);
    machines_start(in);
    if (fabric == NULL) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        fabric = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
        may = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
        CHECK(fabric != MAP_FAILED && may != MAP_FAILED);
    }
    CHECK(madvise(fabric, size, MADV_DONTNEED) == 0); /* blank again, and quickly */
    memset(may, 0, ARENA_SIZE);
    blurred = false;
    burst_init(&burst, fabric);
    burst.held = burst.touched = NULL;
    fabric->policy = kind % 4;
    for (uint32_t i = 0; i < MACHINE_COUNT; i++) {
        struct machine *it = &machine[i];
        port[i] = (struct port){.index = i, .event_fd = -1, .regions = &it->table};
        port[i].log = it->rx.marker.log;
        port[i].receiver[port[i].receiver_count++] = &it->rx;
        source[i] = (struct source){.ring = &it->tx, .port = &port[i]};
        fabric->port[fabric->port_count++] = fabric->by_index[i] = &port[i];
        memset(&burst.counters[i], 0, sizeof burst.counters[i]);
    }
    port[0].peer = &port[1];
    port[1].peer = &port[0];
}

/* --- What a guest does ---------------------------------------------------------------------- */

/* Somewhere in memory, mostly; over an edge, or over its rings, at times. */
static uint64_t take_place(struct input *in)
{
    switch (take_below(in, 8)) {
    case 0:
        return LOW_SIZE - take_below(in, 64);
    case 1:
        return HIGH + take_below(in, HIGH_SIZE);
    case 2:
        return take_edge(in);
    default:
        return take_below(in, LOW_SIZE + NEXT_SIZE);
    }
}

static uint32_t take_size(struct input *in)
{
    static const uint32_t top[] = {16, 100, 100, 2048, 2048, 4096, 17000};
    uint32_t which = take_below(in, COUNT(top) + 1);
    return which < COUNT(top) ? take_below(in, top[which] + 1) : (uint32_t)take_edge(in);
}

/* A header and a frame that may be lawful: of TCP, to be cut or summed, or plain; to each other. */
static void dress(struct input *in, struct machine *it, uint64_t header, uint64_t frame,
                  uint32_t size)
{
    static const uint8_t gso[] = {NET_HEADER_GSO_NONE, NET_HEADER_GSO_TCPV4, NET_HEADER_GSO_TCPV6,
                                  NET_HEADER_GSO_TCPV4 | NET_HEADER_GSO_ECN};
    uint32_t kind = (uint32_t)take(in, 1), to = kind % 5;
    struct net_header said = {0};
    uint8_t packet[80] = {0x02, (uint8_t)to, 0, 0, 0, 0, 0x02, (uint8_t)(it - machine)};
    if (to > 3)
        memset(packet, 0xff, 6);
    packet[12] = 0x08;
    packet[14] = 0x45;
    packet[14 + IPV4_PROTOCOL_AT] = PROTOCOL_TCP;
    packet[34 + TCP_OFFSET_AT] = 0x50;
    if (kind & 0x20) { /* over IPv6 */
        packet[12] = 0x86;
        packet[13] = 0xdd;
        packet[14] = 0x60;
        packet[14 + IPV6_NEXT_AT] = PROTOCOL_TCP;
        packet[54 + TCP_OFFSET_AT] = 0x50;
    }
    if (kind & 0x40) {
        said.flags = NET_HEADER_NEEDS_CSUM;
        said.csum_start = kind & 0x20 ? 54 : 34;
        said.csum_offset = TCP_CSUM_AT;
        said.gso_type = gso[take_below(in, COUNT(gso))];
        said.gso_size = (uint16_t)take_size(in);
    }
    guest_write(it, frame, packet, size < sizeof packet ? size : sizeof packet);
    guest_write(it, header, &said, NET_HEADER_SIZE_LEGACY);
    if (kind & 0x80) /* and any byte of it another */
        guest_write(it, frame + take_below(in, 64), in->at, in->at < in->end);
}

/* The descriptors of one chain, in the ring or in a table: mostly lawful. */
static void describe(struct input *in, struct machine *it, uint64_t at, uint32_t first,
                     uint32_t count, uint32_t pieces, uint16_t write)
{
    uint64_t header = 0, frame = 0;
    uint32_t size = 0;
    for (uint32_t i = 0; i < pieces; i++) {
        struct vring_desc desc = {.addr = take_place(in), .flags = write};
        bool head = i == 0 && pieces > 1;
        desc.len = head && take_below(in, 4) ? it->tx.header_size : take_size(in);
        desc.next = (uint16_t)((first + i + 1) % count);
        desc.flags |= i + 1 < pieces ? VRING_DESC_NEXT : 0;
        guest_write(it, at + (first + i) % count * sizeof desc, &desc, sizeof desc);
        if (i == 0)
            header = desc.addr;
        if (i == (pieces > 1)) {
            frame = pieces > 1 ? desc.addr : header + it->tx.header_size;
            size = desc.len;
        }
    }
    if (write == 0)
        dress(in, it, header, frame, size);
}

static void offer(struct input *in, struct machine *it, bool sends)
{
    struct ring *ring = sends ? &it->tx : &it->rx;
    const uint64_t gpa = sends ? TX : RX;
    uint32_t *free = sends ? &it->tx_free : &it->rx_free, shape = (uint32_t)take(in, 1);
    uint16_t *next = sends ? &it->tx_next : &it->rx_next, write = sends ? 0 : VRING_DESC_WRITE;
    uint16_t head = (uint16_t)(*free % ring->size);
    uint32_t pieces = shape & 1 ? 1 : shape & 2 ? 2 : 1 + take_below(in, TABLE_COUNT);
    if (shape & 4) {
        struct vring_desc desc = {.addr = TABLES + head * (uint64_t)TABLE_BYTES,
                                  .len = pieces * (uint32_t)sizeof desc,
                                  .flags = VRING_DESC_INDIRECT};
        describe(in, it, desc.addr, 0, TABLE_COUNT, pieces, write);
        guest_write(it, gpa + head * sizeof desc, &desc, sizeof desc);
        *free += 1;
    } else {
        describe(in, it, gpa, head, ring->size, pieces, write);
        *free += pieces;
    }
    guest_write(it, gpa + AVAIL + 4 + 2 * (*next % ring->size), &head, sizeof head);
    *next += 1;
    guest_write(it, gpa + AVAIL + 2, next, sizeof *next);
}

/* --- What holds ----------------------------------------------------------------------------- */

/* The descriptors as they are say where a receiver's ring may be written to. */
static void allow(const struct machine *it, const struct vring_desc *desc, bool nested)
{
    if (desc->flags & VRING_DESC_INDIRECT) {
        for (uint32_t i = 0; !nested && i < RING_SIZE_TOP; i++) {
            struct vring_desc entry = {0};
            for (uint32_t b = 0; b < sizeof entry; b++) { /* it may lie in two regions */
                uint64_t reach;
                uint8_t *at = guest_at((struct machine *)it,
                                       desc->addr + i * sizeof entry + b, &reach);
                ((uint8_t *)&entry)[b] = at == NULL ? 0 : *at;
            }
            allow(it, &entry, true);
        }
        return;
    }
    if (!(desc->flags & VRING_DESC_WRITE))
        return;
    for (uint32_t i = 0; i < it->table.count; i++) {
        const struct region *region = &it->table.region[i];
        uint64_t from = desc->addr > region->gpa ? desc->addr : region->gpa;
        uint64_t end = desc->addr + desc->len, region_end = region->gpa + region->size;
        if (end > region_end || end < desc->addr)
            end = region_end;
        if (from >= end)
            continue;
        memset(may + (region->host + (from - region->gpa) - arena), 1, end - from);
        blurred |= region->gpa == HIGH && from < TABLES + 0x1000;
    }
}

static void allow_used(const struct ring *ring)
{
    memset(may + ((uint8_t *)ring->used - arena), 1,
           sizeof *ring->used + 8 * (size_t)ring->size + 2);
}

static void allow_all(void)
{
    for (struct machine *it = machine; it < machine + MACHINE_COUNT; it++) {
        for (uint32_t i = 0; i < it->rx.size; i++)
            allow(it, &it->rx.desc[i], false);
        allow_used(&it->rx);
        allow_used(&it->tx);
    }
}

/* What was given back is what was offered, in order; of what is sent, nothing was written. */
static void check_used(const struct ring *ring, uint16_t from)
{
    const uint32_t mask = ring->size - 1;
    if (ring->fault != FAULT_AVAIL_INDEX) /* else it was offered, and then taken back */
        CHECK((uint16_t)(ring->used_next - from) <= (uint16_t)(ring->avail_seen - from));
    for (uint16_t i = from; i != ring->used_next; i++) {
        SAME(i, ring->used->ring[i & mask].id, ring->avail->ring[i & mask]);
        CHECK(ring->regions != &machine[0].table || ring->used->ring[i & mask].id < ring->size);
    }
}

/* A turn of one source, and what it leaves. */
static uint32_t scene_turn(uint32_t index, uint32_t (*turn)(struct source *))
{
    struct source *from = &source[index];
    uint16_t rx_before[MACHINE_COUNT], tx_before = from->ring->used_next;
    const uint64_t done = change_done;
    if (port[index].fault != FAULT_NONE)
        return 0;
    for (uint32_t i = 0; i < MACHINE_COUNT; i++)
        rx_before[i] = machine[i].rx.used_next;
    allow_all();
    watching = true;
    uint32_t moved = turn(from);
    watching = false;
    CHECK(moved <= BURST_SIZE);
    CHECK(burst.touched == NULL && burst.held == NULL);
    SAME(index, (uint16_t)(from->ring->used_next - tx_before), moved);
    for (uint32_t i = 0; i < MACHINE_COUNT; i++) {
        struct ring *const both[] = {&machine[i].rx, &machine[i].tx};
        for (uint32_t k = 0; k < COUNT(both); k++) {
            if (both[k]->fault == FAULT_NONE)
                SAME(i, both[k]->used_next, both[k]->last_avail); /* taken is pushed */
            SAME(i, both[k]->used_next, both[k]->used_published);
            SAME(i, both[k]->lock, 0);
            SAME(i, both[k]->marker.count, 0);
        }
        if (port[i].fault != FAULT_NONE)
            CHECK(port[i].fault == machine[i].rx.fault || port[i].fault == machine[i].tx.fault);
        if (!blurred && done == change_done)
            check_used(&machine[i].rx, rx_before[i]);
    }
    if (!blurred && done == change_done)
        check_used(from->ring, tx_before);
    return moved;
}

/* Each frame that was taken is counted, once; and nothing was stored where it may not be. */
static void scene_check(void)
{
    for (uint32_t i = 0; i < MACHINE_COUNT; i++) {
        const uint64_t *counted = burst.counters[i].value;
        SAME(i, counted[RX_PACKETS] + counted[RX_DROPPED_MALFORMED],
             (uint16_t)(machine[i].tx.used_next - INDEX));
        check_stores(&machine[i], blurred || change_done > 0 ? NULL : may, true);
    }
}

#endif
