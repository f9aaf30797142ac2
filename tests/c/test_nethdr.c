/* The virtio-net header over every way to cut it, and what a guest may say in it. */
#include "nethdr.h"

#include "check.h"

enum { CUT_BYTES = NET_HEADER_SIZE + 2, FRAME_SIZE = 20 };

static uint8_t *slot[CUT_BYTES + 1];
static struct span span[CUT_BYTES + 1];

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
        struct cursor cursor = chain_start(&chain);
        uint32_t frame_size = 0;
        random_bytes(packet, size);
        packet[0] &= 0xfe; /* NEEDS_CSUM */
        packet[1] = 0;     /* gso_type */
        scatter(&chain, packet);
        SAME(cuts, nethdr_read(&cursor, &chain, header_size, &frame_size), true);
        SAME(cuts, frame_size, FRAME_SIZE);
        cursor_read(&cursor, got, frame_size);
        SAME(cuts, memcmp(got, packet + header_size, FRAME_SIZE), 0);

        struct marker marker = {.log = NULL};
        cursor = chain_start(&chain);
        nethdr_write(&cursor, &marker, header_size, 0x0102);
        memset(packet, 0, header_size);
        if (header_size == NET_HEADER_SIZE) {
            packet[10] = 0x02;
            packet[11] = 0x01;
        }
        gather(&chain, got);
        SAME(cuts, memcmp(got, packet, size), 0);
    }
}

static const struct {
    uint8_t header[NET_HEADER_SIZE];
    bool lawful;
} SAID[] = {
    {{0}, true},
    {{1}, false},                                /* NEEDS_CSUM was not offered */
    {{1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff}, false},
    {{2}, true},                                 /* DATA_VALID, and flags that nobody knows */
    {{0xfe}, true},
    {{0xff}, false},
    {{0, 1}, false},                             /* TCPV4, UFO, TCPV6, USO, ECN alone, unknown */
    {{0, 3}, false},
    {{0, 4}, false},
    {{0, 5}, false},
    {{0, 0x80}, false},
    {{0, 0xff}, false},
    {{0, 0, 0xff, 0xff}, true},                  /* hdr_len is a hint */
    {{0, 0, 0, 0, 0xff, 0xff}, true},            /* gso_size, csum_*: nothing without their flags */
    {{0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, true},
    {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, true}, /* num_buffers: not to be read */
};

static void test_what_a_guest_may_say(void)
{
    uint8_t packet[NET_HEADER_SIZE + FRAME_SIZE] = {0};
    struct chain chain = cut(0, sizeof packet);
    for (size_t i = 0; i < COUNT(SAID); i++) {
        struct cursor cursor = chain_start(&chain);
        uint32_t frame_size;
        memcpy(packet, SAID[i].header, NET_HEADER_SIZE);
        scatter(&chain, packet);
        SAME(i, nethdr_read(&cursor, &chain, NET_HEADER_SIZE, &frame_size), SAID[i].lawful);
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
        struct cursor cursor = chain_start(&chain);
        uint32_t frame_size = 0;
        SAME(i, nethdr_read(&cursor, &chain, header_size, &frame_size), size[i].lawful);
        if (size[i].lawful)
            SAME(i, frame_size, size[i].size - header_size);
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
