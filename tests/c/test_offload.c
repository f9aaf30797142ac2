/* Segments and sums against rules of their own, counted byte by byte; and whatever a guest may say
 * of whatever frame: what is accepted is cut without a byte too many, what is not is refused.
 *
 * The second is a libFuzzer target as well: clang -fsanitize=fuzzer,address,undefined -DFUZZER.
 */
#include "offload.h"

#include "check.h"

enum { PAYLOAD = 1000, FRAME_MAX = 2000, FUZZ_ROWS = 60000 };

/* A TCP packet: how it is wrapped, and what it holds. */
struct shape {
    uint32_t tags, ip_options, tcp_options; /* a tag has 4 bytes; of options IPv6 takes 8 or none */
    bool over_ipv6;
    uint8_t flags;
};

struct made {
    uint8_t *frame; /* ends before a page that nobody may touch */
    uint32_t size, ip, tcp;
    struct net_header header;
};

static uint8_t *memory_end, *head_end;

static void store_be32(uint8_t *at, uint32_t value)
{
    store_be16(at, value >> 16);
    store_be16(at + 2, value);
}

static uint32_t load_be32(const uint8_t *at)
{
    return (uint32_t)load_be16(at) << 16 | load_be16(at + 2);
}

static struct made make(const struct shape *shape, uint32_t payload, uint16_t gso_size)
{
    struct made made = {.ip = 14 + 4 * shape->tags};
    made.tcp = made.ip + (shape->over_ipv6 ? 40 : 20) + shape->ip_options;
    uint32_t hdr_len = made.tcp + 20 + shape->tcp_options;
    made.size = hdr_len + payload;
    made.frame = memory_end - made.size;
    random_bytes(made.frame, made.size);
    uint8_t *ip = made.frame + made.ip, *tcp = made.frame + made.tcp;
    for (uint32_t i = 0; i < shape->tags; i++)
        store_be16(made.frame + 12 + 4 * i, i + 1 < shape->tags ? 0x88a8 : 0x8100);
    store_be16(ip - 2, shape->over_ipv6 ? 0x86dd : 0x0800);
    if (shape->over_ipv6) {
        ip[0] = 0x60;
        ip[6] = shape->ip_options ? 0 : 6; /* options for each hop, then TCP */
        if (shape->ip_options) {
            ip[40] = 6;
            ip[41] = (uint8_t)(shape->ip_options / 8 - 1);
        }
    } else {
        ip[0] = (uint8_t)(0x40 | (20 + shape->ip_options) / 4);
        store_be16(ip + 6, 0x4000); /* don't fragment */
        ip[9] = 6;
    }
    store_be32(tcp + 4, UINT32_MAX - 500); /* the sequence number wraps */
    tcp[12] = (uint8_t)((20 + shape->tcp_options) / 4 << 4);
    tcp[13] = shape->flags;
    made.header = (struct net_header){.flags = 1, .csum_offset = 16, .gso_size = gso_size};
    made.header.csum_start = (uint16_t)made.tcp;
    made.header.gso_type = shape->over_ipv6 ? 4 : 1;
    return made;
}

static bool accepted(struct made *made)
{
    uint32_t size = made->size < HEADERS_SIZE_MAX ? made->size : HEADERS_SIZE_MAX;
    memcpy(head_end - size, made->frame, size);
    return offload_check(&made->header, head_end - size, size, made->size);
}

static void memory_make(void)
{
    memory_end = guarded_pages(17 * PAGE) + 17 * PAGE;
    head_end = guarded_pages(PAGE) + PAGE;
}

/* RFC 1071 by the byte. */
static uint32_t plain_sum(const uint8_t *at, uint32_t size, uint32_t sum)
{
    for (uint32_t i = 0; i < size; i++)
        sum += i % 2 ? at[i] : (uint32_t)at[i] << 8;
    while (sum > 0xffff)
        sum = sum % 0x10000 + sum / 0x10000;
    return sum;
}

/* Segment `index` as a packet on the wire: lengths, numbers, flags and sums, and the payload. */
static void check_segment(long row, const struct made *made, const struct segment *segment,
                          uint32_t index, bool last, bool partial)
{
    uint8_t packet[FRAME_MAX];
    const uint8_t *was = made->frame;
    uint32_t hdr_len = made->header.hdr_len, gso_size = made->header.gso_size;
    uint32_t size = hdr_len + segment->payload_size;
    SAME(row, segment->headers_size, hdr_len);
    CHECK(size <= sizeof packet && (last || segment->payload_size == gso_size));
    memcpy(packet, segment->headers, hdr_len);
    memcpy(packet + hdr_len, segment->payload, segment->payload_size);
    SAME(row, memcmp(packet + hdr_len, was + hdr_len + index * gso_size, segment->payload_size), 0);
    SAME(row, memcmp(packet, was, made->ip), 0);
    const uint8_t *ip = packet + made->ip, *tcp = packet + made->tcp;
    bool over_ipv6 = ip[0] >> 4 == 6;
    uint32_t tcp_size = size - made->tcp;
    SAME(row, load_be16(ip + (over_ipv6 ? 4 : 2)), size - made->ip - (over_ipv6 ? 40 : 0));
    if (!over_ipv6) {
        SAME(row, load_be16(ip + 4), (uint16_t)(load_be16(was + made->ip + 4) + index));
        SAME(row, plain_sum(ip, (ip[0] & 15) * 4, 0), 0xffff);
    }
    SAME(row, load_be32(tcp + 4), load_be32(was + made->tcp + 4) + index * gso_size);
    uint8_t off = (uint8_t)((last ? 0 : 0x09) | (index ? 0x80 : 0));
    SAME(row, tcp[13], was[made->tcp + 13] & ~off);
    uint32_t sum = plain_sum(over_ipv6 ? ip + 8 : ip + 12, over_ipv6 ? 32 : 8, tcp_size + 6);
    SAME(row, segment->header.flags, partial);
    SAME(row, segment->header.csum_start, partial ? made->tcp : 0);
    if (partial)
        SAME(row, load_be16(tcp + 16), sum);
    else
        SAME(row, plain_sum(tcp, tcp_size, sum), 0xffff);
}

/* The frame in segments: none missing, and the fewest there are. */
static void check_all(long row, const struct made *made, bool partial)
{
    uint32_t count = offload_segment_count(&made->header, made->size), total = 0;
    SAME(row, count > 1 && count <= SEGMENT_COUNT_MAX, true);
    for (uint32_t i = 0; i < count; i++) {
        struct segment segment;
        offload_segment(&segment, made->frame, made->size, &made->header, i, partial);
        check_segment(row, made, &segment, i, i + 1 == count, partial);
        total += segment.payload_size;
    }
    SAME(row, total, made->size - made->header.hdr_len);
}

static void test_segments(void)
{
    static const struct shape shape[] = {
        {0}, {.over_ipv6 = true}, {.tags = 1}, {.tags = 2, .over_ipv6 = true}, {.ip_options = 40},
        {.tcp_options = 40, .flags = 0xff}, {.tcp_options = 12, .flags = 0x99, .over_ipv6 = true},
        {.over_ipv6 = true, .ip_options = 8, .tcp_options = 12}, {.flags = 0x88},
        {.over_ipv6 = true, .ip_options = 80, .tcp_options = 40, .tags = 2},
    };
    static const uint16_t gso_size[] = {1, 2, 3, 7, 499, 500, 501, 998, 999};
    for (size_t i = 0; i < COUNT(shape); i++) {
        for (size_t j = 0; j < COUNT(gso_size); j++) {
            struct made made = make(&shape[i], PAYLOAD, gso_size[j]);
            SAME(i, accepted(&made), true);
            check_all((long)(10 * i + j), &made, j % 2);
        }
        for (uint16_t one = PAYLOAD; one < PAYLOAD + 2; one++) { /* it is one packet */
            struct made made = make(&shape[i], PAYLOAD, one);
            SAME(i, accepted(&made), true);
            SAME(i, made.header.gso_type + made.header.gso_size + made.header.hdr_len, 0);
            SAME(i, offload_needs(&made.header), OFFLOAD_CSUM);
        }
    }
}

/* A byte of a lawful TCP packet over IPv4 or IPv6 that makes it another thing. */
static void test_what_is_refused(void)
{
    enum { ETHERNET, IP, TCP, HEADER };
    static const struct {
        bool over_ipv6;
        uint8_t part, at, value;
    } row[] = {
        {0, ETHERNET, 12, 0x86}, {0, ETHERNET, 13, 6}, {1, ETHERNET, 13, 0},
        {0, IP, 0, 0x65}, {0, IP, 0, 0x44}, {0, IP, 0, 0x46}, /* version, too short, too long */
        {0, IP, 9, 17}, {0, IP, 9, 1},                        /* UDP, ICMP */
        {0, IP, 6, 0x20}, {0, IP, 7, 1},                      /* the first of fragments; another */
        {1, IP, 0, 0x40}, {1, IP, 6, 17}, {1, IP, 6, 44}, {1, IP, 6, 43}, {1, IP, 6, 59},
        {1, IP, 6, 0}, {1, IP, 6, 60},                        /* options that are none */
        {0, TCP, 12, 0x40}, {0, TCP, 12, 0}, {1, TCP, 12, 0x40},
        {0, HEADER, 0, 0}, {1, HEADER, 0, 0xfe},              /* no NEEDS_CSUM */
        {0, HEADER, 1, 4}, {1, HEADER, 1, 1}, {1, HEADER, 1, 0x81},
        {0, HEADER, 4, 0},                                    /* gso_size */
        {0, HEADER, 6, 33}, {0, HEADER, 6, 35}, {1, HEADER, 6, 34}, {0, HEADER, 6, 0},
        {0, HEADER, 7, 0xff}, {0, HEADER, 8, 6}, {0, HEADER, 8, 15}, {1, HEADER, 9, 0xff},
    };
    for (size_t i = 0; i < COUNT(row); i++) {
        struct made made = make(&(struct shape){.over_ipv6 = row[i].over_ipv6}, PAYLOAD, 100);
        uint8_t *part[] = {made.frame, made.frame + made.ip, made.frame + made.tcp,
                           (uint8_t *)&made.header};
        part[row[i].part][row[i].at] = row[i].value;
        SAME(i, accepted(&made), false);
    }
    struct made made = make(&(struct shape){0}, PAYLOAD, 100);
    made.frame[made.ip] = 0x44; /* TCP within the IP header */
    made.header.csum_start -= 4;
    made.frame[made.tcp - 4 + 12] = 0x50;
    SAME(-1, accepted(&made), false);
}

/* Frames that end within their headers, whatever csum_start says; nothing behind is looked at. */
static void test_truncated(void)
{
    for (uint32_t options = 0; options <= 240; options += 8) {
        struct shape shape = {.over_ipv6 = options % 16 == 0, .tags = 1 + options % 2};
        shape.ip_options = shape.over_ipv6 ? options : options % 48;
        shape.tcp_options = 40;
        struct made whole = make(&shape, PAYLOAD, 100);
        uint32_t hdr_len = whole.tcp + 60;
        SAME(options, accepted(&whole), hdr_len <= HEADERS_SIZE_MAX);
        for (uint32_t size = FRAME_SIZE_MIN; size < hdr_len; size++) {
            for (uint32_t start = 0; start < 2; start++) {
                struct made made = make(&shape, PAYLOAD, 100);
                memmove(memory_end - size, made.frame, size);
                made.frame = memory_end - size;
                made.size = size;
                if (start == 0)
                    made.header.csum_start = FRAME_SIZE_MIN, made.header.csum_offset = 0;
                SAME(size, accepted(&made), false);
            }
        }
    }
}

/* The longest that IP can say, and as many segments as there may be. */
static void test_limits(void)
{
    static const struct {
        bool over_ipv6;
        uint32_t payload;
        uint16_t gso_size;
        bool lawful;
    } row[] = {
        {0, 65535 - 40, 1400, true}, {0, 65535 - 39, 1400, false}, {1, 65535 - 20, 1400, true},
        {1, 65535 - 19, 1400, false}, {0, 4096, 2, true}, {0, 4097, 2, false},
        {0, 65495, 31, false},
        {0, 65495, 32, true}, {0, 65495, 65494, true}, {0, 65495, 65535, true}, {0, 0, 1, true},
        {0, 0, 0, false},
    };
    for (size_t i = 0; i < COUNT(row); i++) {
        struct made made = make(&(struct shape){.over_ipv6 = row[i].over_ipv6}, row[i].payload,
                                row[i].gso_size);
        SAME(i, accepted(&made), row[i].lawful);
    }
}

static void test_sum(void)
{
    for (uint32_t size = 20; size < 200; size++) {
        struct net_header header = {.flags = 1, .csum_start = 14 + size % 5};
        uint8_t *frame = memory_end - size;
        header.csum_offset = (uint16_t)random_below(size - header.csum_start - 1);
        random_bytes(frame, size);
        uint8_t *field = frame + header.csum_start + header.csum_offset;
        uint32_t pseudo = load_be16(field);
        offload_sum(frame, size, &header);
        uint32_t sum = plain_sum(frame + header.csum_start, size - header.csum_start, pseudo);
        if (header.csum_offset % 2 == 0) /* else across two words, as no protocol has it */
            SAME(size, sum, 0xffff);
    }
    uint8_t zero[20] = {[14] = 0xff, [15] = 0xff};
    struct net_header header = {.flags = 1, .csum_start = 14, .csum_offset = 4};
    offload_sum(zero, sizeof zero, &header);
    SAME(-1, load_be16(zero + 18), 0xffff); /* 0 would say that there is no sum */
}

/* A header and a frame: any. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct made made = {0};
    if (size < NET_HEADER_SIZE + FRAME_SIZE_MIN || size > NET_HEADER_SIZE + FRAME_MAX)
        return 0;
    made.size = (uint32_t)size - NET_HEADER_SIZE;
    made.frame = memory_end - made.size;
    memcpy(&made.header, data, NET_HEADER_SIZE);
    memcpy(made.frame, data + NET_HEADER_SIZE, made.size);
    if (offload_needs(&made.header) & OFFLOAD_UNKNOWN || !accepted(&made))
        return 0;
    CHECK(made.header.num_buffers == 0 && (made.header.flags & ~1) == 0);
    if (made.header.gso_type == NET_HEADER_GSO_NONE) {
        CHECK(made.header.gso_size == 0 && made.header.hdr_len == 0);
        if (made.header.flags)
            offload_sum(made.frame, made.size, &made.header);
        return 0;
    }
    uint16_t ethertype;
    made.ip = find_ip(made.frame, made.size, &ethertype);
    made.tcp = made.header.csum_start;
    check_all(-1, &made, data[0] & 2);
    return 1;
}

#ifdef FUZZER
int LLVMFuzzerInitialize(int *count, char ***argument)
{
    (void)count, (void)argument;
    memory_make();
    return 0;
}
#else
static void test_what_a_guest_may_say(void)
{
    uint32_t segmented = 0;
    for (uint32_t i = 0; i < FUZZ_ROWS; i++) {
        uint8_t data[NET_HEADER_SIZE + FRAME_MAX];
        struct shape shape = {.tags = (uint32_t)random_below(3), .over_ipv6 = random_below(2)};
        shape.ip_options = 8 * (uint32_t)random_below(3);
        shape.tcp_options = 4 * (uint32_t)random_below(11);
        struct made made = make(&shape, (uint32_t)random_below(600), (uint16_t)random_below(300));
        memcpy(data, &made.header, NET_HEADER_SIZE);
        memcpy(data + NET_HEADER_SIZE, made.frame, made.size);
        for (uint64_t flips = random_below(4); flips > 0; flips--)
            data[random_below(NET_HEADER_SIZE + 100)] ^= (uint8_t)(1 << random_below(8));
        uint64_t cut = random_below(4) ? 0 : random_below(made.size - FRAME_SIZE_MIN);
        segmented += (uint32_t)LLVMFuzzerTestOneInput(data, NET_HEADER_SIZE + made.size - cut);
    }
    CHECK(segmented > FUZZ_ROWS / 10); /* a test in which nothing is cut says nothing */
    CHECK(segmented < FUZZ_ROWS / 10 * 9);
}

int main(void)
{
    memory_make();
    test_segments();
    test_what_is_refused();
    test_truncated();
    test_limits();
    test_sum();
    test_what_a_guest_may_say();
    return 0;
}
#endif
