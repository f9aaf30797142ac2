/* The forwarding table: MAC address to port. Learned from source addresses, aged by the control
 * plane.
 *
 * A bucket is a cache line: seven entries (MAC in the upper 48 bits, port + 1 in the lower 16; 0 is
 * free) and their ages. Workers read and learn at the same time without a lock: an entry is one
 * word. A full bucket forgets its oldest.
 */
#ifndef VHOSTFAST_FDB_H
#define VHOSTFAST_FDB_H

#include "sync.h"

enum fdb_limit {
    FDB_BUCKET_BITS = 16,
    FDB_BUCKET_COUNT = 1 << FDB_BUCKET_BITS, /* 4 MiB: of 100,000 addresses 20 find no room */
    FDB_BUCKET_SIZE = 7,
    FDB_NOWHERE = -1,
};

struct fdb_bucket {
    uint64_t entry[FDB_BUCKET_SIZE];
    uint8_t age[8]; /* ticks since the address was seen */
};

_Static_assert(sizeof(struct fdb_bucket) == CACHE_LINE, "one line a look-up");

struct fdb {
    struct fdb_bucket bucket[FDB_BUCKET_COUNT] __attribute__((aligned(CACHE_LINE)));
};

/* The six bytes at `at` as a number; the first byte, with the group bit, is the lowest. Reads
 * eight: a frame has 14. */
ALWAYS_INLINE uint64_t mac_load(const uint8_t *at)
{
    return *(const volatile u64_any *)at & UINT64_C(0xffffffffffff);
}
ALWAYS_INLINE bool mac_is_group(uint64_t mac) { return mac & 1; }

ALWAYS_INLINE struct fdb_bucket *fdb_bucket_of(struct fdb *fdb, uint64_t mac)
{
    uint64_t folded = mac ^ mac >> 24; /* or such as differ in some bits only would cluster */
    return &fdb->bucket[(folded * UINT64_C(0x9e3779b97f4a7c15)) >> (64 - FDB_BUCKET_BITS)];
}

/* The port that the address was last seen on, or FDB_NOWHERE. All places are compared: where in a
 * bucket an address stands is not to be foretold. */
ALWAYS_INLINE int fdb_find(struct fdb *fdb, uint64_t mac)
{
    struct fdb_bucket *bucket = fdb_bucket_of(fdb, mac);
    uint64_t port = 0; /* + 1 */
    for (uint32_t i = 0; i < FDB_BUCKET_SIZE; i++) {
        uint64_t entry = load_once_u64(&bucket->entry[i]);
        port |= entry >> 16 == mac ? entry & 0xffff : 0;
    }
    return (int)port - 1;
}

/* An address that is not known, or not on this port. */
static inline void fdb_learn_anew(struct fdb_bucket *bucket, uint64_t mac, uint64_t wanted)
{
    uint32_t victim = 0, victim_age = 0;
    for (uint32_t i = 0; i < FDB_BUCKET_SIZE; i++) {
        uint64_t entry = load_once_u64(&bucket->entry[i]);
        uint32_t age = entry == 0 ? 256 : load_once_u8(&bucket->age[i]);
        if (entry >> 16 == mac && entry != 0)
            age = 512; /* it moved here from another port */
        if (age >= victim_age) {
            victim = i;
            victim_age = age;
        }
    }
    store_once_u8(&bucket->age[victim], 0);
    store_once_u64(&bucket->entry[victim], wanted);
}

ALWAYS_INLINE void fdb_learn(struct fdb *fdb, uint64_t mac, uint32_t port)
{
    if (mac_is_group(mac) || mac == 0)
        return;
    struct fdb_bucket *bucket = fdb_bucket_of(fdb, mac);
    uint64_t wanted = mac << 16 | (port + 1);
    uint32_t place = FDB_BUCKET_SIZE;
    for (uint32_t i = 0; i < FDB_BUCKET_SIZE; i++)
        place = load_once_u64(&bucket->entry[i]) == wanted ? i : place;
    if (unlikely(place == FDB_BUCKET_SIZE))
        fdb_learn_anew(bucket, mac, wanted);
    else if (load_once_u8(&bucket->age[place]) != 0)
        store_once_u8(&bucket->age[place], 0);
}

/* One tick older; what was not seen for `limit` ticks is forgotten. Limit 0 to 255. */
static inline void fdb_age(struct fdb *fdb, uint8_t limit)
{
    for (uint32_t b = 0; b < FDB_BUCKET_COUNT; b++) {
        struct fdb_bucket *bucket = &fdb->bucket[b];
        for (uint32_t i = 0; i < FDB_BUCKET_SIZE; i++) {
            if (load_once_u64(&bucket->entry[i]) == 0)
                continue;
            uint8_t age = load_once_u8(&bucket->age[i]);
            if (age >= limit)
                store_once_u64(&bucket->entry[i], 0);
            else
                store_once_u8(&bucket->age[i], age + 1);
        }
    }
}

static inline void fdb_forget_port(struct fdb *fdb, uint32_t port)
{
    for (uint32_t b = 0; b < FDB_BUCKET_COUNT; b++)
        for (uint32_t i = 0; i < FDB_BUCKET_SIZE; i++)
            if ((load_once_u64(&fdb->bucket[b].entry[i]) & 0xffff) == port + 1)
                store_once_u64(&fdb->bucket[b].entry[i], 0);
}

#endif
