/* The virtio-net header over every way to cut it, and what a guest may say in it. */
#include "nethdr.h"

#include "check.h"

enum { EVERYTHING = OFFLOAD_CSUM | OFFLOAD_TSO4 | OFFLOAD_TSO6 | OFFLOAD_ECN };
enum { CUT_BYTES = NET_HEADER_SIZE + 2, FRAME_SIZE = 20 };

static uint8_t *slot[CUT_BYTES + 1];
static struct span span[CUT_BYTES + 1];
static uint8_t copy[FRAME_SIZE_MAX];

/* header + frame in pieces: one ends behind byte i where bit i of `cuts` is set. 1 to 15 pieces. */
static struct chain cut(uint32_t cuts, uint32_t size)
{
    struct chain chain = {.span = span, .size = size};
    for (uint32_t begin = 0, end = 1; begin < size; end++) {
        if (end < size && (end > CUT_BYTES || !(cuts >> (end - 1) & 1)))
            continue;
        span[chain.count] = (struct span){.host = slot[chain.count] + PAGE - (end - begin),
                                          .size = end - begin};
        chain.count++;
        begin = end;
    }
    return chain;
}

static void scatter(const struct chain *chain, const uint8_t *from)
{
    for (uint32_t i = 0; i < chain->count; from += chain->span[i++].size)
        memcpy(chain->span[i].host, from, chain->span[i].size);
}

static void gather(const struct chain *chain, uint8_t *to)
{
    for (uint32_t i = 0; i < chain->count; to += chain->span[i++].size)
        memcpy(to, chain->span[i].host, chain->span[i].size);
}

static void test_every_cut(uint32_t header_size)
{
    uint8_t packet[NET_HEADER_SIZE + FRAME_SIZE], got[sizeof packet];
    const uint32_t size = header_size + FRAME_SIZE;
    for (uint32_t cuts = 0; cuts < 1 << CUT_BYTES; cuts++) {
        struct chain chain = cut(cuts, size);
        struct packet frame = {0};
        random_bytes(packet, size);
        memcpy(packet, (const uint8_t[]){1, 0, 9, 9, 9, 9, 14, 0, 3, 0, 9, 9}, header_size);
        scatter(&chain, packet);
        SAME(cuts, nethdr_read(&frame, &chain, header_size, OFFLOAD_CSUM, copy), true);
        SAME(cuts, frame.size, FRAME_SIZE);
        SAME(cuts, frame.header.csum_start << 8 | frame.header.csum_offset, 14 << 8 | 3);
        cursor_read(&frame.at, got, frame.size);
        SAME(cuts, memcmp(got, packet + header_size, FRAME_SIZE), 0);

        struct marker marker = {.log = NULL};
        struct cursor cursor = chain_start(&chain);
        nethdr_write(&cursor, &marker, header_size, frame.header, 0x0102);
        memset(packet, 0, header_size);
        packet[0] = 1;
        packet[6] = 14;
        packet[8] = 3;
        if (header_size == NET_HEADER_SIZE) {
            packet[10] = 0x02;
            packet[11] = 0x01;
        }
        gather(&chain, got);
        SAME(cuts, memcmp(got, packet, size), 0);
    }
}

/* What may be said of a frame of 20 bytes that is not TCP, by one who has taken that, and as what
 * it is passed on: hdr_len and gso_size blank, and so is all that is not asked for. */
static const struct {
    uint8_t header[NET_HEADER_SIZE];
    uint32_t taken;
    bool lawful, partial;
} SAID[] = {
    {{0}, 0, true, false},
    {{2}, 0, true, false},                       /* DATA_VALID, and flags that nobody knows */
    {{0xfe}, EVERYTHING, true, false},
    {{0, 0, 0xff, 0xff}, 0, true, false},        /* hdr_len is a hint */
    {{0, 0, 0, 0, 0xff, 0xff}, 0, true, false},  /* gso_size, csum_*: nothing without their flags */
    {{0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, EVERYTHING, true, false},
    {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, 0, true, false}, /* num_buffers: not read */
    {{1, 0, 0, 0, 0, 0, 14, 0, 2, 0}, 0, false, false}, /* NEEDS_CSUM, not taken */
    {{1, 0, 0, 0, 0, 0, 14, 0, 2, 0}, EVERYTHING - OFFLOAD_CSUM, false, false},
    {{1, 0, 0, 0, 0, 0, 14, 0, 2, 0}, OFFLOAD_CSUM, true, true},
    {{0xff, 0, 9, 9, 9, 9, 14, 0, 2, 0, 9, 9}, OFFLOAD_CSUM, true, true},
    {{1, 0, 0, 0, 0, 0, 14, 0, 4, 0}, OFFLOAD_CSUM, true, true}, /* the last two bytes */
    {{1, 0, 0, 0, 0, 0, 14, 0, 5, 0}, OFFLOAD_CSUM, false, false},
    {{1, 0, 0, 0, 0, 0, 13, 0, 4, 0}, OFFLOAD_CSUM, false, false}, /* of the Ethernet header */
    {{1, 0, 0, 0, 0, 0, 20, 0, 0, 0}, OFFLOAD_CSUM, false, false},
    {{1, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0}, OFFLOAD_CSUM, false, false},
    {{1, 0, 0, 0, 0, 0, 14, 0, 0xff, 0xff}, OFFLOAD_CSUM, false, false},
    {{1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, OFFLOAD_CSUM, false, false},
    {{0, 1}, EVERYTHING, false, false},          /* TCPV4, UFO, TCPV6, USO, ECN alone, unknown */
    {{0, 3}, EVERYTHING, false, false},
    {{0, 4}, EVERYTHING, false, false},
    {{0, 5}, EVERYTHING, false, false},
    {{0, 0x80}, EVERYTHING, false, false},
    {{0, 0xff}, EVERYTHING, false, false},
    {{1, 3, 0, 0, 1, 0, 14, 0, 2, 0}, EVERYTHING, false, false},
    {{1, 5, 0, 0, 1, 0, 14, 0, 2, 0}, EVERYTHING, false, false},
    {{1, 0x80, 0, 0, 1, 0, 14, 0, 2, 0}, EVERYTHING, false, false},
    {{1, 1, 0, 0, 1, 0, 14, 0, 2, 0}, EVERYTHING, false, false}, /* it is no TCP */
    {{1, 4, 0, 0, 1, 0, 14, 0, 2, 0}, EVERYTHING, false, false},
};

static void test_what_a_guest_may_say(void)
{
    uint8_t packet[NET_HEADER_SIZE + FRAME_SIZE] = {0};
    struct chain chain = cut(0, sizeof packet);
    for (size_t i = 0; i < COUNT(SAID); i++) {
        struct packet frame;
        struct net_header said = {0};
        uint64_t first;
        memcpy(packet, SAID[i].header, NET_HEADER_SIZE);
        memcpy(&first, packet, sizeof first);
        scatter(&chain, packet);
        SAME(i, nethdr_read(&frame, &chain, NET_HEADER_SIZE, SAID[i].taken, copy), SAID[i].lawful);
        uint16_t csum_offset = *(const u16_any *)(packet + 8);
        SAME(i, nethdr_partial(&first, csum_offset, FRAME_SIZE, SAID[i].taken), SAID[i].partial);
        if (!SAID[i].lawful)
            continue;
        if (SAID[i].partial)
            said = (struct net_header){1, .csum_start = packet[6], .csum_offset = packet[8]};
        SAME(i, memcmp(&frame.header, &said, sizeof said), 0);
        SAME(i, frame.needs, SAID[i].partial ? OFFLOAD_CSUM : 0);
        if (SAID[i].partial)
            SAME(i, memcmp(&first, &said, sizeof first), 0);
    }
}

static void test_sizes(uint32_t header_size)
{
    const struct {
        uint32_t size;
        bool lawful;
    } size[] = {
        {0, false}, {1, false}, {header_size - 1, false}, {header_size, false},
        {header_size + FRAME_SIZE_MIN - 1, false}, {header_size + FRAME_SIZE_MIN, true},
        {header_size + FRAME_SIZE_MAX, true}, {header_size + FRAME_SIZE_MAX + 1, false},
        {70000, false}, {UINT32_MAX, false},
    };
    uint8_t *memory = guarded(header_size + FRAME_SIZE_MAX);
    for (size_t i = 0; i < COUNT(size); i++) {
        struct span whole = {.host = memory, .size = size[i].size};
        struct chain chain = {.span = &whole, .count = 1, .size = size[i].size};
        struct packet frame;
        SAME(i, nethdr_read(&frame, &chain, header_size, 0, copy), size[i].lawful);
        if (size[i].lawful)
            SAME(i, frame.size, size[i].size - header_size);
    }
}

int main(void)
{
    for (size_t i = 0; i < COUNT(slot); i++)
        slot[i] = guarded_pages(PAGE);
    test_every_cut(NET_HEADER_SIZE);
    test_every_cut(NET_HEADER_SIZE_LEGACY);
    test_what_a_guest_may_say();
    test_sizes(NET_HEADER_SIZE);
    test_sizes(NET_HEADER_SIZE_LEGACY);
    return 0;
}
