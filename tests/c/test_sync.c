/* Words that are read once or written once: their bytes, at any address. */
#include <pthread.h>
#include <sched.h>

#include "sync.h"

#include "check.h"

static void test_descriptor_at_any_address(void)
{
    const struct vring_desc desc = {.addr = UINT64_C(0x0123456789abcdef), .len = 0xfedcba98,
                                    .flags = 0xf00f, .next = 0x8001};
    for (size_t shift = 0; shift < sizeof desc; shift++) {
        uint8_t *at = guarded(sizeof desc + shift);
        memcpy(at, &desc, sizeof desc);
        struct vring_desc got = load_once_desc((const struct vring_desc *)at);
        SAME(shift, memcmp(&got, &desc, sizeof desc), 0);
    }
}

static void test_used_element(void)
{
    struct vring_used_element element[3] = {{1, 2}, {3, 4}, {5, 6}};
    store_once_used(&element[1], 0xffff0001, 0xfffffffe);
    SAME(0, element[1].id, 0xffff0001);
    SAME(1, element[1].len, 0xfffffffe);
    CHECK(element[0].id == 1 && element[0].len == 2 && element[2].id == 5 && element[2].len == 6);
}

static void test_words(void)
{
    uint16_t u16 = 0;
    uint32_t u32 = 7;
    uint64_t u64 = 1;
    store_release_u16(&u16, 0xffff);
    SAME(0, load_acquire_u16(&u16), 0xffff);
    SAME(1, load_once_u16(&u16), 0xffff);
    SAME(2, exchange_acquire_u32(&u32, 9), 7);
    SAME(3, load_acquire_u32(&u32), 9);
    or_u64(&u64, UINT64_C(1) << 63);
    SAME(4, load_once_u64(&u64), UINT64_C(0x8000000000000001));
}

/* Two threads walk the same words in step, each sets its own bit: both bits stay. */
enum { WORD_COUNT = 100000 };

static uint64_t shared_word[WORD_COUNT];
static uint32_t progress[2];

static void *set_bits(void *second)
{
    const uint32_t me = second != NULL;
    for (uint32_t i = 0; i < WORD_COUNT; i++) {
        store_release_u32(&progress[me], i);
        for (uint32_t spun = 0; load_acquire_u32(&progress[!me]) < i; spun++)
            if (spun > 1000)
                sched_yield(); /* the other one may wait for this CPU */
        or_u64(&shared_word[i], UINT64_C(1) << (me ? 63 : 0));
    }
    store_release_u32(&progress[me], WORD_COUNT);
    return NULL;
}

static void test_or_loses_no_bit_of_another(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, set_bits, shared_word) == 0);
    set_bits(NULL);
    pthread_join(thread, NULL);
    for (uint32_t i = 0; i < WORD_COUNT; i++)
        SAME(i, shared_word[i], UINT64_C(0x8000000000000001));
}

static void test_clock_goes_on(void)
{
    uint64_t first = cycle_count();
    for (int i = 0; i < 1000; i++)
        relax();
    CHECK(cycle_count() > first);
}

int main(void)
{
    test_descriptor_at_any_address();
    test_used_element();
    test_words();
    test_or_loses_no_bit_of_another();
    test_clock_goes_on();
    return 0;
}
