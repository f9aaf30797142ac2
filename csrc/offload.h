/* Checksums and segments in software, for a receiver that has not taken what a sender's header asks
 * for (virtio 1.3, 5.1.6.2). Private memory in, private memory out: no ring, no guest memory.
 *
 * A header that has passed `offload_check` says nothing that the frame is too short for, and of a
 * frame to be segmented its bytes were looked at: Ethernet, up to two VLAN tags, IPv4 or IPv6, TCP.
 * The same bytes have to be given to `offload_segment`.
 *
 *   frame      | headers, hdr_len bytes            | payload                              |
 *   segment i  | the same, with lengths, id, seq,  | gso_size bytes of it, the last fewer |
 *              | flags and sums of its own         |
 */
#ifndef VHOSTFAST_OFFLOAD_H
#define VHOSTFAST_OFFLOAD_H

#include "copy.h"

enum wire { /* RFC 791, 8200, 9293, IEEE 802.1Q */
            ETHERTYPE_AT = 12,
            ETHERTYPE_IPV4 = 0x0800,
            ETHERTYPE_IPV6 = 0x86dd,
            ETHERTYPE_VLAN = 0x8100,
            ETHERTYPE_SERVICE_VLAN = 0x88a8,
            VLAN_TAG_SIZE = 4,
            VLAN_TAG_COUNT_MAX = 2,
            IPV4_SIZE = 20, /* without options */
            IPV4_LENGTH_AT = 2,
            IPV4_ID_AT = 4,
            IPV4_FRAGMENT_AT = 6, /* with the flag "more" 0x2000 */
            IPV4_PROTOCOL_AT = 9,
            IPV4_CSUM_AT = 10,
            IPV4_ADDRESSES_AT = 12,
            IPV6_SIZE = 40,
            IPV6_LENGTH_AT = 4,
            IPV6_NEXT_AT = 6,
            IPV6_ADDRESSES_AT = 8,
            IPV6_OPTION_SIZE = 8, /* at least, and the unit of its length */
            IP_LENGTH_MAX = 65535,
            PROTOCOL_HOP_BY_HOP = 0,
            PROTOCOL_TCP = 6,
            PROTOCOL_DESTINATION_OPTIONS = 60,
            TCP_SIZE = 20, /* without options */
            TCP_SEQUENCE_AT = 4,
            TCP_OFFSET_AT = 12,
            TCP_FLAGS_AT = 13,
            TCP_CSUM_AT = 16,
            TCP_FIN = 0x01,
            TCP_PSH = 0x08,
            TCP_CWR = 0x80,
};

/* One packet to be stored: header for its receiver, headers, payload. */
struct segment {
    struct net_header header;
    uint32_t headers_size;
    uint32_t payload_size;
    const uint8_t *payload; /* in the frame */
    uint8_t headers[HEADERS_SIZE_MAX];
};

ALWAYS_INLINE uint16_t load_be16(const uint8_t *at)
{
    return __builtin_bswap16(*(const u16_any *)at);
}
ALWAYS_INLINE void store_be16(uint8_t *at, uint32_t value)
{
    *(u16_any *)at = __builtin_bswap16((uint16_t)value);
}

/* RFC 1071, in the byte order of memory: such a sum is stored as it is, and a number is swapped
 * before it is added. */
static inline uint64_t sum_bytes(const uint8_t *at, uint32_t size, uint64_t sum)
{
    uint32_t i = 0;
    for (; size - i >= 4; i += 4)
        sum += *(const u32_any *)(at + i);
    if (size - i >= 2) {
        sum += *(const u16_any *)(at + i);
        i += 2;
    }
    return i < size ? sum + at[i] : sum;
}

static inline uint16_t sum_fold(uint64_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return (uint16_t)sum;
}

/* What a guest has to have taken to send or to receive such a header. */
static inline uint32_t offload_needs(const struct net_header *header)
{
    uint32_t needs = header->flags & NET_HEADER_NEEDS_CSUM ? OFFLOAD_CSUM : 0;
    switch (header->gso_type) {
    case NET_HEADER_GSO_NONE:
        return needs;
    case NET_HEADER_GSO_TCPV4:
        return needs | OFFLOAD_TSO4;
    case NET_HEADER_GSO_TCPV6:
        return needs | OFFLOAD_TSO6;
    case NET_HEADER_GSO_TCPV4 | NET_HEADER_GSO_ECN:
        return needs | OFFLOAD_TSO4 | OFFLOAD_ECN;
    case NET_HEADER_GSO_TCPV6 | NET_HEADER_GSO_ECN:
        return needs | OFFLOAD_TSO6 | OFFLOAD_ECN;
    default:
        return OFFLOAD_UNKNOWN;
    }
}

/* Where the IP header begins, and of which kind it says to be; `size` bytes are there, at least
 * FRAME_SIZE_MIN. */
static inline uint32_t find_ip(const uint8_t *frame, uint32_t size, uint16_t *ethertype)
{
    uint32_t at = ETHERTYPE_AT;
    *ethertype = load_be16(frame + at);
    for (uint32_t tags = 0; tags < VLAN_TAG_COUNT_MAX; tags++) {
        bool tag = *ethertype == ETHERTYPE_VLAN || *ethertype == ETHERTYPE_SERVICE_VLAN;
        if (!tag || at + VLAN_TAG_SIZE + sizeof *ethertype > size)
            break;
        at += VLAN_TAG_SIZE;
        *ethertype = load_be16(frame + at);
    }
    return at + sizeof *ethertype;
}

/* Where TCP begins, for an IP header at `at`; 0: it isn't there, or is a part of a packet. */
static inline uint32_t find_tcp_over_ipv4(const uint8_t *frame, uint32_t size, uint32_t at)
{
    if (at + IPV4_SIZE > size || frame[at] >> 4 != 4)
        return 0;
    uint32_t header_size = (frame[at] & 15) * UINT32_C(4);
    if (header_size < IPV4_SIZE || frame[at + IPV4_PROTOCOL_AT] != PROTOCOL_TCP ||
        load_be16(frame + at + IPV4_FRAGMENT_AT) & 0x3fff)
        return 0;
    return at + header_size;
}

/* Behind options for each hop or the destination. Not behind a routing header: TCP's sum is then of
 * an address that stands elsewhere. */
static inline uint32_t find_tcp_over_ipv6(const uint8_t *frame, uint32_t size, uint32_t at)
{
    if (at + IPV6_SIZE > size || frame[at] >> 4 != 6)
        return 0;
    uint8_t next = frame[at + IPV6_NEXT_AT];
    at += IPV6_SIZE;
    while (next == PROTOCOL_HOP_BY_HOP || next == PROTOCOL_DESTINATION_OPTIONS) {
        if (at + IPV6_OPTION_SIZE > size)
            return 0;
        next = frame[at];
        at += (frame[at + 1] + UINT32_C(1)) * IPV6_OPTION_SIZE;
    }
    return next == PROTOCOL_TCP ? at : 0;
}

/* Of a frame of `frame_size` bytes, of which the first `size` are here: whether it is the TCP
 * packet that the header says, to be cut into lawful ones. hdr_len, a hint, becomes what it is. */
static inline bool offload_check_tcp(struct net_header *header, const uint8_t *frame, uint32_t size,
                                     uint32_t frame_size)
{
    uint16_t ethertype;
    bool over_ipv6 = (header->gso_type & ~NET_HEADER_GSO_ECN) == NET_HEADER_GSO_TCPV6;
    uint32_t ip = find_ip(frame, size, &ethertype);
    if (ethertype != (over_ipv6 ? ETHERTYPE_IPV6 : ETHERTYPE_IPV4))
        return false;
    uint32_t tcp =
        over_ipv6 ? find_tcp_over_ipv6(frame, size, ip) : find_tcp_over_ipv4(frame, size, ip);
    if (tcp == 0 || tcp != header->csum_start || header->csum_offset != TCP_CSUM_AT ||
        tcp + TCP_SIZE > size)
        return false;
    uint32_t tcp_size = (frame[tcp + TCP_OFFSET_AT] >> 4) * UINT32_C(4);
    if (tcp_size < TCP_SIZE || tcp + tcp_size > size ||
        frame_size - ip > (uint32_t)IP_LENGTH_MAX + (over_ipv6 ? IPV6_SIZE : 0))
        return false;
    header->hdr_len = (uint16_t)(tcp + tcp_size);
    return frame_size - header->hdr_len <= (uint32_t)SEGMENT_COUNT_MAX * header->gso_size;
}

/* Whether the frame is what its header says. What the header need not say is blanked, so that it
 * can be passed on. `frame` is its first `size` bytes: all, or HEADERS_SIZE_MAX; where no segments
 * are asked for it is not looked at. */
static inline bool offload_check(struct net_header *header, const uint8_t *frame, uint32_t size,
                                 uint32_t frame_size)
{
    header->flags &= NET_HEADER_NEEDS_CSUM;
    header->num_buffers = 0;
    if (header->flags == 0) {
        bool plain = header->gso_type == NET_HEADER_GSO_NONE;
        *header = (struct net_header){0};
        return plain;
    }
    uint32_t sum_end = (uint32_t)header->csum_start + header->csum_offset + sizeof(uint16_t);
    if (header->csum_start < FRAME_SIZE_MIN || sum_end > frame_size)
        return false;
    if (header->gso_type != NET_HEADER_GSO_NONE) {
        if (header->gso_size == 0 || !offload_check_tcp(header, frame, size, frame_size))
            return false;
        if (frame_size - header->hdr_len > header->gso_size)
            return true;
    }
    header->gso_type = NET_HEADER_GSO_NONE; /* it is one packet, whatever was asked for */
    header->gso_size = header->hdr_len = 0;
    return true;
}

/* Where the sum is to be put, and so far is that of the pseudo-header, or whatever else was to be
 * added. */
ALWAYS_INLINE u16_any *offload_sum_field(uint8_t *frame, const struct net_header *header)
{
    return (u16_any *)(frame + header->csum_start + header->csum_offset);
}

/* Put the whole sum there, once. Never 0, which says in UDP that there is none. */
static inline void offload_sum(uint8_t *frame, uint32_t size, const struct net_header *header)
{
    uint64_t sum = sum_bytes(frame + header->csum_start, size - header->csum_start, 0);
    uint16_t whole = (uint16_t)~sum_fold(sum);
    *offload_sum_field(frame, header) = whole == 0 ? 0xffff : whole;
}

static inline uint32_t offload_segment_count(const struct net_header *header, uint32_t frame_size)
{
    if (header->gso_type == NET_HEADER_GSO_NONE)
        return 1;
    return (frame_size - header->hdr_len + header->gso_size - 1) / header->gso_size;
}

/* The IP header of the packet in `segment`, and the sum of TCP's pseudo-header. */
static inline uint64_t segment_ip(struct segment *segment, uint32_t index, uint32_t tcp)
{
    uint16_t ethertype;
    uint8_t *ip = segment->headers + find_ip(segment->headers, segment->headers_size, &ethertype);
    const uint8_t *end = segment->headers + segment->headers_size;
    uint32_t tcp_size = segment->headers_size - tcp + segment->payload_size;
    uint32_t ip_size = (uint32_t)(end - ip) + segment->payload_size;
    uint64_t sum = __builtin_bswap16((uint16_t)tcp_size);
    sum += __builtin_bswap16(PROTOCOL_TCP);
    if (ethertype == ETHERTYPE_IPV6) {
        store_be16(ip + IPV6_LENGTH_AT, ip_size - IPV6_SIZE);
        return sum_bytes(ip + IPV6_ADDRESSES_AT, 32, sum);
    }
    store_be16(ip + IPV4_LENGTH_AT, ip_size);
    store_be16(ip + IPV4_ID_AT, load_be16(ip + IPV4_ID_AT) + index);
    store_be16(ip + IPV4_CSUM_AT, 0);
    uint64_t own = sum_bytes(ip, (ip[0] & 15) * UINT32_C(4), 0);
    *(u16_any *)(ip + IPV4_CSUM_AT) = (uint16_t)~sum_fold(own);
    return sum_bytes(ip + IPV4_ADDRESSES_AT, 8, sum);
}

/* Packet `index` of those that the frame is cut into. `partial`: its receiver sums the payload. */
static inline void offload_segment(struct segment *segment, const uint8_t *frame, uint32_t size,
                                   const struct net_header *header, uint32_t index, bool partial)
{
    uint32_t done = index * header->gso_size, payload_size = size - header->hdr_len;
    bool last = payload_size - done <= header->gso_size;
    uint8_t *tcp = segment->headers + header->csum_start;
    *segment = (struct segment){.headers_size = header->hdr_len};
    segment->payload_size = last ? payload_size - done : header->gso_size;
    segment->payload = frame + header->hdr_len + done;
    copy_bytes(segment->headers, frame, header->hdr_len, 16);
    uint64_t sum = segment_ip(segment, index, header->csum_start);
    u32_any *sequence = (u32_any *)(tcp + TCP_SEQUENCE_AT);
    *sequence = __builtin_bswap32(__builtin_bswap32(*sequence) + done);
    if (!last)
        tcp[TCP_FLAGS_AT] &= (uint8_t)~(TCP_FIN | TCP_PSH);
    if (index > 0)
        tcp[TCP_FLAGS_AT] &= (uint8_t)~TCP_CWR;
    if (partial) {
        *(u16_any *)(tcp + TCP_CSUM_AT) = sum_fold(sum);
        segment->header.flags = NET_HEADER_NEEDS_CSUM;
        segment->header.csum_start = header->csum_start;
        segment->header.csum_offset = header->csum_offset;
        return;
    }
    *(u16_any *)(tcp + TCP_CSUM_AT) = 0;
    sum = sum_bytes(tcp, header->hdr_len - header->csum_start, sum);
    sum = sum_bytes(segment->payload, segment->payload_size, sum);
    *(u16_any *)(tcp + TCP_CSUM_AT) = (uint16_t)~sum_fold(sum);
}

#endif
