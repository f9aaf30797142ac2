/* Sees each load and store of the code under test, and has the guest change a word once it has been
 * loaded, so that a second load of it finds something else.
 *
 * The compiler calls these functions before each access when it is told to look for races
 * (-fsanitize=thread); ThreadSanitizer itself is not linked, so they are ours. Whatever accesses
 * guest memory is seen, whether by an accessor of sync.h or not. */
#ifndef TESTS_LOADS_H
#define TESTS_LOADS_H

#include "check.h"

#define UNSEEN __attribute__((no_sanitize_thread, noinline))

enum { WATCHED_MAX = 64, TOUCHED_MAX = 1 << 20, EVER = 255 };

struct watched {
    uint8_t *at;
    size_t size;
    struct byte {
        uint8_t count;  /* of loads in this unit */
        uint8_t may;    /* be loaded so often */
        uint8_t steady; /* for so many loads, then the guest changes it */
        bool changed;
        bool word; /* what is decided by, not payload */
        const void *by; /* the code that loaded it last */
    } *byte;
};

static struct watched watched[WATCHED_MAX];
static uint32_t watched_count;
static bool counting; /* within a unit */
static bool changes;  /* the guest changes what was loaded */
static uint64_t load_count, change_count;
static uint8_t *last_at; /* the access before: bytes that were loaded and not yet changed */
static size_t last_size;
static uint8_t *touched[TOUCHED_MAX]; /* bytes loaded in this unit */
static uint32_t touched_count;

UNSEEN static struct watched *watched_at(const uint8_t *at)
{
    static struct watched *found = watched; /* mostly the same as before */
    if ((uintptr_t)at - (uintptr_t)found->at < found->size)
        return found;
    for (uint32_t i = 0; i < watched_count; i++)
        if ((uintptr_t)at - (uintptr_t)watched[i].at < watched[i].size)
            return found = &watched[i];
    return NULL;
}

UNSEEN static struct byte *byte_of(const uint8_t *at)
{
    struct watched *range = watched_at(at);
    return &range->byte[at - range->at];
}

static void watch_memory(void *at, size_t size)
{
    CHECK(watched_count < WATCHED_MAX);
    watched[watched_count++] = (struct watched){at, size, calloc(size, sizeof(struct byte))};
}

static void loads_may(void *at, size_t size, uint8_t may, uint8_t steady, bool word)
{
    for (uint8_t *next = at; next < (uint8_t *)at + size; next++)
        *byte_of(next) = (struct byte){.may = may, .steady = steady, .word = word};
}

/* A copy's last vector overlaps the one before it, or is the same where it copies 2, 4 or 8 bytes
 * (copy.h): the byte is stored twice, the second time with what is stored in the end, and nothing
 * was decided in between. */
UNSEEN static bool load_is_lawful(const uint8_t *next, const uint8_t *at, size_t size)
{
    bool overlaps = size == last_size && at >= last_at && next < last_at + last_size;
    return overlaps && (at > last_at || !byte_of(next)->word);
}

/* The guest changes what was loaded before, but for what a copy is amid of. */
UNSEEN static void change_last(const uint8_t *at, size_t size)
{
    for (uint8_t *next = last_at; changes && next < last_at + last_size; next++) {
        struct byte *byte = byte_of(next);
        if ((next >= at && next < at + size) || byte->changed || byte->count < byte->steady)
            continue;
        *next ^= 0xff;
        byte->changed = true;
        change_count++;
    }
}

UNSEEN static void loaded(void *address, size_t size, const void *by)
{
    uint8_t *at = address;
    if (!counting || watched_at(at) == NULL)
        return;
    change_last(at, size);
    for (uint8_t *next = at; next < at + size; next++) {
        struct byte *byte = byte_of(next);
        if (load_is_lawful(next, at, size))
            continue;
        if (byte->count >= byte->may) {
            fprintf(stderr, "byte %td of range %td is loaded at %p, and again at %p\n",
                    next - watched_at(next)->at, watched_at(next) - watched, byte->by, by);
            abort();
        }
        byte->by = by;
        byte->count += byte->may != EVER;
        touched[touched_count++] = next;
        CHECK(touched_count < TOUCHED_MAX);
    }
    load_count++;
    last_at = at;
    last_size = size;
}

/* What we store stays, whatever the guest had there. */
UNSEEN static void stored(void *address, size_t size)
{
    uint8_t *at = address;
    if (!counting || watched_at(at) == NULL)
        return;
    for (uint8_t *next = at; next < at + size; next++)
        byte_of(next)->changed = false;
}

/* A unit: within it each byte is loaded as often as it may be. */
UNSEEN static void unit_begin(void)
{
    touched_count = 0;
    last_size = 0;
    counting = true;
}

/* The guest puts back what it had changed, so that the next unit begins with what was offered. */
UNSEEN static void unit_end(void)
{
    counting = false;
    for (uint32_t i = 0; i < touched_count; i++) {
        struct byte *byte = byte_of(touched[i]);
        if (byte->changed)
            *touched[i] ^= 0xff;
        byte->changed = false;
        byte->count = 0;
    }
}

/* --- What the compiler calls ------------------------------------------------------------------ */

#define BY __builtin_return_address(0)
#define ACCESS(name, size)                                                                         \
    UNSEEN void __tsan_read##name(void *at) { loaded(at, size, BY); }                              \
    UNSEEN void __tsan_write##name(void *at) { stored(at, size); }
#define ATOMIC(bits, type)                                                                         \
    UNSEEN type __tsan_atomic##bits##_load(const volatile void *at, int order)                     \
    {                                                                                              \
        (void)order;                                                                               \
        loaded((void *)(uintptr_t)at, sizeof(type), BY);                                           \
        return *(const volatile type *)at;                                                         \
    }                                                                                              \
    UNSEEN void __tsan_atomic##bits##_store(volatile void *at, type value, int order)              \
    {                                                                                              \
        (void)order;                                                                               \
        stored((void *)(uintptr_t)at, sizeof(type));                                               \
        *(volatile type *)at = value;                                                              \
    }                                                                                              \
    UNSEEN type __tsan_atomic##bits##_exchange(volatile void *at, type value, int order)           \
    {                                                                                              \
        (void)order;                                                                               \
        return __atomic_exchange_n((volatile type *)at, value, __ATOMIC_SEQ_CST);                  \
    }                                                                                              \
    UNSEEN type __tsan_atomic##bits##_fetch_or(volatile void *at, type value, int order)           \
    {                                                                                              \
        (void)order;                                                                               \
        return __atomic_fetch_or((volatile type *)at, value, __ATOMIC_SEQ_CST);                    \
    }

ACCESS(1, 1)
ACCESS(2, 2)
ACCESS(4, 4)
ACCESS(8, 8)
ACCESS(16, 16)
UNSEEN void __tsan_unaligned_read2(void *at) { loaded(at, 2, BY); }
UNSEEN void __tsan_unaligned_read4(void *at) { loaded(at, 4, BY); }
UNSEEN void __tsan_unaligned_read8(void *at) { loaded(at, 8, BY); }
UNSEEN void __tsan_unaligned_read16(void *at) { loaded(at, 16, BY); }
UNSEEN void __tsan_unaligned_write2(void *at) { stored(at, 2); }
UNSEEN void __tsan_unaligned_write4(void *at) { stored(at, 4); }
UNSEEN void __tsan_unaligned_write8(void *at) { stored(at, 8); }
UNSEEN void __tsan_unaligned_write16(void *at) { stored(at, 16); }
UNSEEN void __tsan_read_range(void *at, long size) { loaded(at, (size_t)size, BY); }
UNSEEN void __tsan_write_range(void *at, long size) { stored(at, (size_t)size); }
ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)
UNSEEN void __tsan_atomic_thread_fence(int order) { (void)order; }
UNSEEN void __tsan_atomic_signal_fence(int order) { (void)order; }
UNSEEN void __tsan_func_entry(void *from) { (void)from; }
UNSEEN void __tsan_func_exit(void *to) { (void)to; }
UNSEEN void __tsan_init(void) {}

#endif
