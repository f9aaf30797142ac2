/* The forwarding table: learn, move, age, forget, and a bucket that is full. */
#include "fdb.h"

#include "check.h"

static struct fdb fdb;

/* Unicast addresses that share a bucket. */
static void colliding(uint64_t *mac, uint32_t count)
{
    uint64_t next = 2;
    mac[0] = next;
    for (uint32_t found = 1; found < count;) {
        next += 2;
        if (fdb_bucket_of(&fdb, next) == fdb_bucket_of(&fdb, mac[0]))
            mac[found++] = next;
    }
}

static void test_addresses(void)
{
    const uint8_t frame[FRAME_SIZE_MIN] = {0x02, 1, 2, 3, 4, 5, 0x01, 7, 8, 9, 10, 11, 0xff, 0xff};
    SAME(0, mac_load(frame), UINT64_C(0x050403020102));
    SAME(1, mac_load(frame + 6), UINT64_C(0x0b0a09080701));
    CHECK(!mac_is_group(mac_load(frame)) && mac_is_group(mac_load(frame + 6)));
    CHECK(mac_is_group(UINT64_C(0xffffffffffff)));
}

static void test_learn_and_move(void)
{
    memset(&fdb, 0, sizeof fdb);
    const uint64_t mac = UINT64_C(0xfedcba987652);
    SAME(0, fdb_find(&fdb, mac), FDB_NOWHERE);
    fdb_learn(&fdb, mac, 0);
    SAME(1, fdb_find(&fdb, mac), 0);
    fdb_learn(&fdb, mac, PORT_COUNT_MAX - 1);
    SAME(2, fdb_find(&fdb, mac), PORT_COUNT_MAX - 1);
    fdb_learn(&fdb, mac, PORT_COUNT_MAX - 1);
    SAME(3, fdb_find(&fdb, mac), PORT_COUNT_MAX - 1);
    fdb_forget_port(&fdb, PORT_COUNT_MAX - 1);
    SAME(4, fdb_find(&fdb, mac), FDB_NOWHERE); /* nothing was left behind at the first port */
    fdb_learn(&fdb, mac, 4);
    fdb_forget_port(&fdb, 3);
    SAME(5, fdb_find(&fdb, mac), 4);
}

static void test_never_learned(void)
{
    memset(&fdb, 0, sizeof fdb);
    const uint64_t never[] = {0, UINT64_C(0xffffffffffff), UINT64_C(0x010000005e01), 1};
    for (size_t i = 0; i < COUNT(never); i++) {
        fdb_learn(&fdb, never[i], 3);
        SAME(i, fdb_find(&fdb, never[i]), FDB_NOWHERE);
    }
    static const struct fdb empty;
    SAME(-1, memcmp(&fdb, &empty, sizeof fdb), 0);
}

static void test_ageing(void)
{
    enum { LIMIT = 5 };
    memset(&fdb, 0, sizeof fdb);
    fdb_learn(&fdb, 2, 1);
    fdb_learn(&fdb, 4, 2);
    for (uint32_t tick = 0; tick < LIMIT; tick++) {
        fdb_age(&fdb, LIMIT);
        fdb_learn(&fdb, 4, 2); /* seen again and again */
        SAME(tick, fdb_find(&fdb, 2), 1);
    }
    fdb_age(&fdb, LIMIT);
    SAME(-1, fdb_find(&fdb, 2), FDB_NOWHERE);
    SAME(-1, fdb_find(&fdb, 4), 2);
    fdb_age(&fdb, 0);
    SAME(-1, fdb_find(&fdb, 4), FDB_NOWHERE);
    fdb_learn(&fdb, 6, 3);
    for (uint32_t tick = 0; tick < 255; tick++)
        fdb_age(&fdb, 255);
    SAME(-1, fdb_find(&fdb, 6), 3);
    fdb_age(&fdb, 255); /* an age doesn't wrap */
    SAME(-1, fdb_find(&fdb, 6), FDB_NOWHERE);
}

static void test_full_bucket_forgets_its_oldest(void)
{
    uint64_t mac[FDB_BUCKET_SIZE + 2];
    memset(&fdb, 0, sizeof fdb);
    colliding(mac, COUNT(mac));
    for (uint32_t i = 0; i < FDB_BUCKET_SIZE; i++)
        fdb_learn(&fdb, mac[i], i);
    for (uint32_t i = 0; i < FDB_BUCKET_SIZE; i++)
        SAME(i, fdb_find(&fdb, mac[i]), i);
    fdb_age(&fdb, 200);
    for (uint32_t i = 0; i < FDB_BUCKET_SIZE; i++)
        if (i != 3)
            fdb_learn(&fdb, mac[i], i);
    fdb_learn(&fdb, mac[FDB_BUCKET_SIZE], 77);
    SAME(-1, fdb_find(&fdb, mac[3]), FDB_NOWHERE);
    SAME(-1, fdb_find(&fdb, mac[FDB_BUCKET_SIZE]), 77);
    for (uint32_t i = 0; i < FDB_BUCKET_SIZE; i++)
        if (i != 3)
            SAME(i, fdb_find(&fdb, mac[i]), i);
    fdb_learn(&fdb, mac[0], 99); /* a move takes its own entry, not the oldest one's */
    for (uint32_t i = 1; i < FDB_BUCKET_SIZE; i++)
        if (i != 3)
            SAME(i, fdb_find(&fdb, mac[i]), i);
    SAME(-1, fdb_find(&fdb, mac[0]), 99);
    fdb_forget_port(&fdb, 5);
    fdb_learn(&fdb, mac[FDB_BUCKET_SIZE + 1], 66); /* a free entry comes before any old one */
    SAME(-1, fdb_find(&fdb, mac[FDB_BUCKET_SIZE + 1]), 66);
    SAME(-1, fdb_find(&fdb, mac[FDB_BUCKET_SIZE]), 77);
    SAME(-1, fdb_find(&fdb, mac[5]), FDB_NOWHERE);
}

/* Addresses as hosts give them: counted up in the last bytes, in the first, or drawn. */
static uint64_t nth_address(int kind, uint64_t i)
{
    if (kind == 0)
        return 0x005452 | (i >> 16 & 255) << 24 | (i >> 8 & 255) << 32 | (i & 255) << 40;
    return kind == 1 ? 0x0202 | i << 16 : random_below(UINT64_C(1) << 46) << 2 | 2;
}

static void test_a_hundred_thousand(void)
{
    enum { ADDRESSES = 100000, LOST_MAX = 100 };
    static uint64_t mac[ADDRESSES];
    for (int kind = 0; kind < 3; kind++) {
        uint32_t lost = 0;
        memset(&fdb, 0, sizeof fdb);
        for (uint32_t i = 0; i < ADDRESSES; i++) {
            mac[i] = nth_address(kind, i);
            fdb_learn(&fdb, mac[i], i % 7);
        }
        for (uint32_t i = 0; i < ADDRESSES; i++)
            lost += fdb_find(&fdb, mac[i]) != (int)(i % 7);
        CHECK(lost <= LOST_MAX);
    }
}

int main(void)
{
    test_addresses();
    test_learn_and_move();
    test_never_learned();
    test_ageing();
    test_full_bucket_forgets_its_oldest();
    test_a_hundred_thousand();
    return 0;
}
