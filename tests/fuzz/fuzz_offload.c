/* Any header before any frame, amid changes: what is taken for lawful can be cut and summed, and
 * what comes out is whole, with lengths and sums that are right. */
#include "scene.h"

static uint8_t copy[FRAME_SIZE_MAX + 1];
static struct span span[SPAN_COUNT_MAX];

/* Sum of TCP and its pseudo-header, which has to be ffff; of one packet. */
static uint16_t tcp_sum(const struct segment *packet, uint32_t tcp)
{
    uint16_t ethertype;
    static uint8_t all[HEADERS_SIZE_MAX + FRAME_SIZE_MAX];
    uint32_t ip = find_ip(packet->headers, packet->headers_size, &ethertype);
    uint32_t size = packet->headers_size + packet->payload_size;
    memcpy(all, packet->headers, packet->headers_size);
    memcpy(all + packet->headers_size, packet->payload, packet->payload_size);
    bool over_ipv6 = ethertype == ETHERTYPE_IPV6;
    uint64_t sum = sum_bytes(all + tcp, size - tcp, 0);
    sum += __builtin_bswap16((uint16_t)(size - tcp)) + __builtin_bswap16(PROTOCOL_TCP);
    SAME(size, load_be16(all + ip + (over_ipv6 ? IPV6_LENGTH_AT : IPV4_LENGTH_AT)),
         size - ip - (over_ipv6 ? IPV6_SIZE : 0));
    if (!over_ipv6)
        SAME(size, sum_fold(sum_bytes(all + ip, (all[ip] & 15) * UINT32_C(4), 0)), 0xffff);
    return sum_fold(sum_bytes(all + ip + (over_ipv6 ? 8 : 12), over_ipv6 ? 32 : 8, sum));
}

static void check_segments(const struct packet *frame, bool partial)
{
    uint32_t count = offload_segment_count(&frame->header, frame->size), payload = 0;
    CHECK(count > 0 && count <= SEGMENT_COUNT_MAX);
    for (uint32_t i = 0; i < count; i++) {
        struct segment packet;
        offload_segment(&packet, frame->copy, frame->size, &frame->header, i, partial);
        SAME(i, packet.headers_size, frame->header.hdr_len);
        CHECK(packet.payload == frame->copy + frame->header.hdr_len + payload);
        CHECK(packet.headers_size + packet.payload_size <= frame->wire_size);
        payload += packet.payload_size;
        if (!partial)
            SAME(i, tcp_sum(&packet, frame->header.csum_start), 0xffff);
    }
    SAME(count, frame->header.hdr_len + payload, frame->size);
}

static void check_packet(struct packet *frame, uint32_t taken, bool partial)
{
    const struct net_header *header = &frame->header;
    SAME(-1, frame->needs & ~taken, 0);
    CHECK(frame->size >= FRAME_SIZE_MIN && frame->size <= FRAME_SIZE_MAX);
    CHECK(frame->looked_at <= frame->copied && frame->copied <= frame->size);
    if (header->flags != 0)
        CHECK(header->csum_start + (uint32_t)header->csum_offset + 2 <= frame->size);
    watching = true;
    if (take_below(&(struct input){copy, copy + 1}, 2))
        packet_look(frame, FRAME_SIZE_MIN);
    packet_copy_whole(frame);
    watching = false;
    SAME(-1, frame->copied, frame->size);
    SAME(-1, copy[frame->size], 0xa5);
    if (header->gso_type != NET_HEADER_GSO_NONE)
        check_segments(frame, partial);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    scene_start(&in);
    uint32_t taken = take_below(&in, 16);
    bool partial = take(&in, 1) & 1;
    struct ring *ring = &machine[0].tx;
    for (uint32_t i = 0; i < 16 && in.at < in.end; i++) {
        struct chain chain = {.span = span};
        struct taken head;
        struct packet frame;
        offer(&in, &machine[0], true);
        if (take(&in, 1) & 1)
            plan(&in, take_change(&in));
        memset(copy, 0xa5, sizeof copy);
        watching = true;
        bool lawful = split_pop(ring, &chain, &head, DEVICE_READS) == POP_GOT &&
                      nethdr_read(&frame, &chain, ring->header_size, taken, copy);
        watching = false;
        if (lawful)
            check_packet(&frame, taken, partial);
    }
    return 0;
}
