/* A guest in a few lines: memory in regions, each between guard pages, and the driver's side of one
 * split ring whose three areas end where they end. */
#ifndef TESTS_GUEST_H
#define TESTS_GUEST_H

#include "check.h"
#include "split.h"

struct guest {
    struct region_table table;
    struct ring ring;   /* the back-end's */
    uint16_t avail_idx; /* the driver's */
};

/* Give the guest `size` bytes at `gpa`, above all that it has. */
static inline uint8_t *guest_memory(struct guest *guest, uint64_t gpa, uint64_t size)
{
    uint8_t *host = guarded(size);
    guest->table.region[guest->table.count++] =
        (struct region){.gpa = gpa, .size = size, .uva = gpa, .host = host};
    return host;
}

/* A ring of `size` entries whose indices go on at `index`. Without EVENT_IDX its last fields don't
 * exist. The areas aren't in guest memory: nobody looks for them by GPA once a ring runs. */
static inline void guest_ring(struct guest *guest, uint32_t size, uint16_t index, bool event_idx)
{
    struct ring *ring = &guest->ring;
    const size_t element = sizeof(struct vring_used_element);
    *ring = (struct ring){.size = size, .event_idx = event_idx, .indirect = true};
    ring->header_size = NET_HEADER_SIZE;
    ring->frame_size_max = FRAME_SIZE_MAX;
    ring->call_fd = -1;
    ring->regions = &guest->table;
    ring->desc = (struct vring_desc *)guarded(size * sizeof(struct vring_desc));
    ring->avail = (struct vring_avail *)guarded(4 + 2 * (size_t)size + (event_idx ? 2 : 0));
    ring->used = (struct vring_used *)guarded(4 + element * size + (event_idx ? 4 : 0));
    ring->used->idx = ring->avail->idx = guest->avail_idx = index;
    split_start(ring);
}

static inline void guest_desc(struct guest *guest, uint32_t index, uint64_t gpa, uint32_t len,
                              uint16_t flags, uint16_t next)
{
    guest->ring.desc[index] =
        (struct vring_desc){.addr = gpa, .len = len, .flags = flags, .next = next};
}

/* Put `head` into the avail ring, without telling yet. */
static inline void guest_offer(struct guest *guest, uint16_t head)
{
    guest->ring.avail->ring[guest->avail_idx++ & (guest->ring.size - 1)] = head;
}

static inline void guest_publish(struct guest *guest)
{
    store_release_u16(&guest->ring.avail->idx, guest->avail_idx);
}

/* A log of `pages` pages that ends where it ends, as far as words allow. */
static inline struct log guest_log(uint64_t pages)
{
    return (struct log){.word = (uint64_t *)guarded((pages + 63) / 64 * 8),
                        .page_count = pages,
                        .event_fd = -1};
}

static inline bool log_has(const struct log *log, uint64_t page)
{
    return log->word[page / 64] >> (page % 64) & 1;
}

#endif
