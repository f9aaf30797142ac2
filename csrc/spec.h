/* Layouts and constants of virtio 1.3 (2.7 split virtqueues, 5.1 network device), and every limit
 * of ours.
 *
 * No other file has a magic number: what bounds a loop, an index or an array stands in `enum
 * limit`.
 */
#ifndef VHOSTFAST_SPEC_H
#define VHOSTFAST_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

enum limit {
    VRING_SIZE_MAX = 32768, /* virtio 2.7 */
    REGION_COUNT_MAX = 509, /* what the kernel's vhost and rust-vmm take */
    REGION_PLACES = 1024,   /* of GPAs, for each of which the search of a region is narrowed */
    PORT_COUNT_MAX = 256,
    PAIR_COUNT_MAX = 128, /* the index of SET_VRING_KICK has eight bits: 256 rings */
    WORKER_COUNT_MAX = 64,
    BURST_SIZE = 128,       /* packets a source may send before the next one has its turn */
    TURN_PIECES_MAX = 1024, /* or spans of odd packets, its receivers' with them */
    SEGMENT_PIECES_MAX = 4096, /* or amid the segments of one that is cut, and its receiver's */
    GROUP_SIZE = 16,        /* descriptors looked at together by the direct path */
    FRAME_SIZE_MIN = 14,    /* an Ethernet header */
    FRAME_SIZE_MAX = 65589, /* virtio 5.1.6.3.1: 65535 of IP, Ethernet header, VLAN tags, room */
    SEGMENT_COUNT_MAX = 2048, /* packets made of one frame: segments of 32 bytes are the least */
    HEADERS_SIZE_MAX = 256,   /* of a frame to be segmented: Ethernet, VLAN tags, IP, TCP */
    SPAN_COUNT_MAX = 2 * VRING_SIZE_MAX +
        REGION_COUNT_MAX, /* the spans of one packet, however cut */
    LOG_PAGE_SHIFT = 12,  /* VHOST_LOG_PAGE: 4096 bytes, whatever the host's page size */
    LOG_CACHE_SIZE = 32,  /* 64-page words gathered before they are or'ed into the log */
    BELL_EVENT_COUNT = 256, /* signals whose completion nobody has looked at yet */
    CACHE_LINE = 64,
};

enum vring_desc_flag {
    VRING_DESC_NEXT = 1,
    VRING_DESC_WRITE = 2,
    VRING_DESC_INDIRECT = 4,
};

enum vring_suppression {
    VRING_AVAIL_NO_INTERRUPT = 1,
    VRING_USED_NO_NOTIFY = 1,
};

struct vring_desc {
    uint64_t addr; /* GPA */
    uint32_t len;
    uint16_t flags;
    uint16_t next;
};

struct vring_avail {
    uint16_t flags;
    uint16_t idx;
    uint16_t ring[]; /* [size], then used_event */
};

struct vring_used_element {
    uint32_t id;
    uint32_t len;
};

struct vring_used {
    uint16_t flags;
    uint16_t idx;
    struct vring_used_element ring[]; /* [size], then avail_event, a u16 */
};

_Static_assert(sizeof(struct vring_desc) == 16, "virtio 2.7.5");
_Static_assert(offsetof(struct vring_desc, flags) == 12, "virtio 2.7.5");
_Static_assert(offsetof(struct vring_avail, ring) == 4, "virtio 2.7.6");
_Static_assert(offsetof(struct vring_used, ring) == 4, "virtio 2.7.8");
_Static_assert(sizeof(struct vring_used_element) == 8, "virtio 2.7.8");

enum net_header_flag { NET_HEADER_NEEDS_CSUM = 1 };

enum net_header_gso { /* gso_type */
    NET_HEADER_GSO_NONE = 0,
    NET_HEADER_GSO_TCPV4 = 1,
    NET_HEADER_GSO_TCPV6 = 4,
    NET_HEADER_GSO_ECN = 0x80,
};

/* What a guest has taken, as the sender of a ring or as its receiver: CSUM, HOST_TSO4, HOST_TSO6
 * and HOST_ECN, or GUEST_CSUM and so on (5.1.3). */
enum offload {
    OFFLOAD_CSUM = 1,
    OFFLOAD_TSO4 = 2,
    OFFLOAD_TSO6 = 4,
    OFFLOAD_ECN = 8,
    OFFLOAD_UNKNOWN = 16, /* nobody has */
};

struct net_header { /* virtio 5.1.6 */
    uint8_t flags;
    uint8_t gso_type;
    uint16_t hdr_len;
    uint16_t gso_size;
    uint16_t csum_start;
    uint16_t csum_offset;
    uint16_t num_buffers; /* absent where neither MRG_RXBUF nor VERSION_1 was negotiated */
};

enum net_header_size { NET_HEADER_SIZE_LEGACY = 10, NET_HEADER_SIZE = 12 };

_Static_assert(sizeof(struct net_header) == NET_HEADER_SIZE, "virtio 5.1.6");
_Static_assert(offsetof(struct net_header, num_buffers) == NET_HEADER_SIZE_LEGACY, "virtio 5.1.6");

/* Why a ring was unhooked, and its port closed: the guest broke a rule of the specification, or the
 * front-end took away what we had mapped. */
enum fault {
    FAULT_NONE = 0,
    FAULT_AVAIL_INDEX, /* avail.idx is ahead by more than the ring's size */
    FAULT_HEAD,        /* a head or next outside of its table */
    FAULT_LOOP,        /* a chain with more descriptors than the ring has */
    FAULT_ADDRESS,     /* a buffer, or part of it, outside of guest memory */
    FAULT_DIRECTION,   /* a writable buffer to be sent, or a read-only one to be filled */
    FAULT_INDIRECT,    /* not negotiated, nested, with NEXT, or of a wrong length */
    FAULT_LENGTH,      /* a chain of 4 GiB or more, or of too many pieces */
    FAULT_BUFFER_SIZE, /* a mergeable receive buffer smaller than the header */
    FAULT_MEMORY,      /* guest memory has vanished from its map */
    FAULT_LOG,         /* the migration log has */
    FAULT_KICK,        /* the kernel can't wait for a kick: by the control plane */
    FAULT_COUNT,
};

#endif
