/* Buckets are in order, without a gap, as narrow as they are said to be, and the last holds the
 * highest number there is. */
#include "driver/histogram.h"

#include "check.h"

static const struct {
    uint64_t value;
    uint32_t bucket;
    uint64_t top;
} rows[] = {
    {0, 0, 0},
    {1, 1, 1},
    {255, 255, 255},
    {256, 256, 257},
    {257, 256, 257},
    {258, 257, 259},
    {511, 383, 511},
    {512, 384, 515},
    {1023, 511, 1023},
    {UINT64_MAX - (UINT64_C(1) << 56), HISTOGRAM_BUCKETS - 2, UINT64_MAX - (UINT64_C(1) << 56)},
    {UINT64_MAX, HISTOGRAM_BUCKETS - 1, UINT64_MAX},
};

static void test_table(void)
{
    for (size_t i = 0; i < COUNT(rows); i++) {
        SAME((long)i, histogram_bucket(rows[i].value), rows[i].bucket);
        SAME((long)i, histogram_top(rows[i].bucket), rows[i].top);
    }
}

static void test_each_bucket(void)
{
    for (uint32_t bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++) {
        uint64_t first = bucket ? histogram_top(bucket - 1) + 1 : 0, top = histogram_top(bucket);
        SAME(bucket, histogram_bucket(first), bucket);
        SAME(bucket, histogram_bucket(top), bucket);
        CHECK((top - first) <= first / HISTOGRAM_PARTS);
    }
}

static void test_nothing_is_left_out(void)
{
    static struct histogram histogram;
    uint64_t total = 0;
    for (uint32_t shift = 0; shift < 64; shift++)
        histogram_note(&histogram, UINT64_MAX >> shift);
    for (uint32_t bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++)
        total += histogram.count[bucket];
    SAME(-1, total, 64);
    SAME(-1, histogram.max, UINT64_MAX);
}

int main(void)
{
    test_table();
    test_each_bucket();
    test_nothing_is_left_out();
    return 0;
}
