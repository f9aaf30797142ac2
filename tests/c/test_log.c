/* The log against the truth, page by page: edges, the gathering place's overflow, and a front-end
 * that collects while two rings mark. */
#include <pthread.h>

#include "guest.h"
#include "log.h"

enum { PAGES = 200, LOG_PAGE = 1 << LOG_PAGE_SHIFT };

static const struct {
    uint64_t gpa, size;
    uint64_t first, last; /* pages to be marked; first > last: none */
    uint64_t beyond;
} MARKS[] = {
    {0, 0, 1, 0, 0},
    {0, 1, 0, 0, 0},
    {LOG_PAGE - 1, 1, 0, 0, 0},
    {LOG_PAGE - 1, 2, 0, 1, 0},
    {LOG_PAGE, LOG_PAGE, 1, 1, 0},
    {LOG_PAGE, LOG_PAGE + 1, 1, 2, 0},
    {LOG_PAGE + 1, LOG_PAGE, 1, 2, 0},
    {63 * LOG_PAGE, LOG_PAGE, 63, 63, 0},
    {63 * LOG_PAGE, LOG_PAGE + 1, 63, 64, 0}, /* over the edge of a word */
    {64 * LOG_PAGE, 1, 64, 64, 0},
    {64 * LOG_PAGE, 64 * LOG_PAGE, 64, 127, 0}, /* a whole word */
    {10 * LOG_PAGE + 5, 150 * LOG_PAGE, 10, 160, 0},
    {(PAGES - 1) * LOG_PAGE, LOG_PAGE, PAGES - 1, PAGES - 1, 0}, /* the end of the log */
    {0, (uint64_t)PAGES * LOG_PAGE, 0, PAGES - 1, 0},
    {(PAGES - 1) * LOG_PAGE, LOG_PAGE + 1, PAGES - 1, PAGES - 1, 1}, /* one beyond */
    {(uint64_t)PAGES * LOG_PAGE, 1, 1, 0, 1},
    {(uint64_t)PAGES * LOG_PAGE, 0, 1, 0, 0},
    {UINT64_MAX, 1, 1, 0, 1},
    {UINT64_MAX, 2, 1, 0, 1}, /* wraps */
    {0, UINT64_MAX, 0, PAGES - 1, 1},
    {LOG_PAGE, UINT64_MAX, 1, PAGES - 1, 1},
};

static void test_marks(void)
{
    for (size_t i = 0; i < COUNT(MARKS); i++) {
        struct log log = guest_log(PAGES);
        struct marker marker = {.log = &log};
        log_mark(&marker, MARKS[i].gpa, MARKS[i].size);
        for (uint64_t page = 0; page < PAGES; page++)
            CHECK(!log_has(&log, page)); /* bits wait for the fence */
        log_flush(&marker, false);
        for (uint64_t page = 0; page < PAGES; page++)
            SAME(i, log_has(&log, page), page >= MARKS[i].first && page <= MARKS[i].last);
        SAME(i, log.beyond, MARKS[i].beyond);
        SAME(i, marker.count, 0);
        struct log at_once = guest_log(PAGES);
        log_set_range(&at_once, MARKS[i].gpa, MARKS[i].size);
        for (uint64_t page = 0; page < PAGES; page++)
            SAME(i, log_has(&at_once, page), log_has(&log, page));
        SAME(i, at_once.beyond, MARKS[i].beyond);
    }
}

static void test_without_a_log(void)
{
    struct marker marker = {.log = NULL};
    log_mark(&marker, 0, UINT64_MAX);
    log_flush(&marker, false);
    SAME(-1, marker.count, 0);
}

/* More words than can be gathered, some again and again, bits of others kept: none is lost. */
static void test_random_marks(void)
{
    enum { PAGE_COUNT = 64 * 200 };
    static bool truth[PAGE_COUNT];
    struct log log = guest_log(PAGE_COUNT);
    struct marker marker = {.log = &log};
    log.word[7] = UINT64_C(1) << 42;
    truth[7 * 64 + 42] = true;
    for (uint32_t i = 0; i < 3000; i++) {
        uint64_t page = random_below(PAGE_COUNT), offset = random_below(LOG_PAGE);
        uint64_t size = random_below(3) ? random_below(2 * LOG_PAGE) : random_below(300 * LOG_PAGE);
        uint64_t gpa = page * LOG_PAGE + offset;
        if (gpa + size > (uint64_t)PAGE_COUNT * LOG_PAGE || random_below(4) == 0)
            continue;
        log_mark(&marker, gpa, size);
        for (uint64_t at = gpa / LOG_PAGE; size > 0 && at <= (gpa + size - 1) / LOG_PAGE; at++)
            truth[at] = true;
        if (random_below(100) == 0)
            log_flush(&marker, false);
        if (i % 500 == 0) { /* start anew, or soon all is marked */
            log_flush(&marker, false);
            for (uint64_t at = 0; at < PAGE_COUNT; at++)
                SAME(at, log_has(&log, at), truth[at]);
            memset(log.word, 0, PAGE_COUNT / 8);
            memset(truth, 0, sizeof truth);
        }
    }
    SAME(-1, log.beyond, 0);
}

/* As many words as there is room for wait for the flush, so that each is an atomic once. */
static void test_words_wait(void)
{
    enum { WORDS = LOG_CACHE_SIZE + 1, WORD_BYTES = 64 * LOG_PAGE };
    struct log log = guest_log(64 * WORDS);
    struct marker marker = {.log = &log};
    for (uint64_t word = 0; word < WORDS; word++)
        log_mark(&marker, word * WORD_BYTES, 1);
    for (uint64_t word = 0; word < WORDS; word++)
        CHECK(!log_has(&log, word * 64));
    log_flush(&marker, false);
    for (uint64_t word = 0; word < WORDS; word++)
        CHECK(log_has(&log, word * 64));
}

/* What was kept for one log does not go into the next, of which it may lie beyond the end. */
static void test_another_log(void)
{
    struct log first = guest_log(64 * 4), second = guest_log(64);
    struct marker marker = {.log = &first};
    log_mark(&marker, 200 * LOG_PAGE, 1);
    log_mark(&marker, 100 * LOG_PAGE, 1);
    log_mark(&marker, 5 * LOG_PAGE, 1); /* two are gathered, and a run */
    log_turn(&marker, &first); /* which it is already */
    SAME(0, marker.count, 2);
    log_turn(&marker, &second);
    CHECK(marker.log == &second);
    log_flush(&marker, false);
    CHECK(second.word[0] == 0 && second.beyond == 0);
    log_mark(&marker, 7 * LOG_PAGE, 1);
    log_flush(&marker, false);
    CHECK(second.word[0] == 1 << 7);
    log_turn(&marker, NULL);
    log_mark(&marker, 7 * LOG_PAGE, 1);
    SAME(1, marker.start + marker.end, 0);
}

/* Who waits for news is told of bits, and not of none. */
static void test_news(void)
{
    struct log log = guest_log(PAGES);
    struct marker marker = {.log = &log};
    log.event_fd = 0;
    log_flush(&marker, false);
    log_set_range(&log, 0, 0);
    CHECK(log.news == 0);
    log_mark(&marker, 0, 1);
    log_flush(&marker, false);
    CHECK(log.news == 1);
    log.news = 0;
    log_set_range(&log, 0, 1);
    CHECK(log.news == 1);
}

/* Ranges that follow each other, with gaps up to a page and a byte more, or go back: the pages of
 * each are marked, and no others. */
static void test_runs(void)
{
    enum { PAGE_COUNT = 64 * 40, RANGES = 16 };
    static const uint32_t gaps[] = {0, 1, LOG_PAGE - 1, LOG_PAGE, LOG_PAGE + 1};
    for (uint32_t round = 0; round < 5000; round++) {
        struct log log = guest_log(PAGE_COUNT);
        struct marker marker = {.log = &log};
        bool truth[PAGE_COUNT] = {false};
        uint64_t gpa = random_below(2 * LOG_PAGE);
        for (uint32_t i = 0; i < RANGES; i++) {
            uint64_t size = 1 + random_below(random_below(2) ? 80 : LOG_PAGE + 2);
            log_mark(&marker, gpa, size);
            for (uint64_t page = gpa / LOG_PAGE; page <= (gpa + size - 1) / LOG_PAGE; page++)
                truth[page] = true;
            gpa += size + gaps[random_below(COUNT(gaps))];
            if (random_below(8) == 0)
                gpa = random_below((PAGE_COUNT - 3 * RANGES) * LOG_PAGE);
        }
        log_flush(&marker, false);
        for (uint64_t page = 0; page < PAGE_COUNT; page++)
            SAME(round, log_has(&log, page), truth[page]);
        SAME(round, log.beyond, 0);
    }
}

/* Two rings write to pages of their own that share words of the log, while a front-end takes each
 * word by exchange and then copies its pages. At the end the copy is what the memory is. */
enum { SHARED_PAGES = 64, ROUNDS = 200000, WRITER_COUNT = 2 };

static struct {
    uint64_t memory[SHARED_PAGES], copy[SHARED_PAGES]; /* a word stands for a page */
    struct log log;
    uint32_t writers_done;
    pthread_barrier_t start;
} migration;

static void *write_and_mark(void *odd)
{
    struct marker marker = {.log = &migration.log};
    pthread_barrier_wait(&migration.start);
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        uint64_t page = round * 7 % (SHARED_PAGES / 2) * 2 + (odd != NULL);
        store_once_u64(&migration.memory[page], round);
        log_mark(&marker, page * LOG_PAGE, 8);
        log_flush(&marker, false);
    }
    __atomic_fetch_add(&migration.writers_done, 1, __ATOMIC_RELEASE);
    return NULL;
}

static void collect(void)
{
    for (uint32_t i = 0; i < SHARED_PAGES / 64; i++) {
        uint64_t bits = __atomic_exchange_n(&migration.log.word[i], 0, __ATOMIC_SEQ_CST);
        for (uint32_t bit = 0; bit < 64; bit++)
            if (bits >> bit & 1)
                migration.copy[i * 64 + bit] = load_once_u64(&migration.memory[i * 64 + bit]);
    }
}

static void test_nothing_is_missed_while_it_is_collected(void)
{
    pthread_t writer[WRITER_COUNT];
    migration.log = guest_log(SHARED_PAGES);
    pthread_barrier_init(&migration.start, NULL, WRITER_COUNT + 1);
    for (uint64_t i = 0; i < WRITER_COUNT; i++)
        CHECK(pthread_create(&writer[i], NULL, write_and_mark, i ? &migration : NULL) == 0);
    pthread_barrier_wait(&migration.start);
    while (load_acquire_u32(&migration.writers_done) < WRITER_COUNT)
        collect();
    for (uint64_t i = 0; i < WRITER_COUNT; i++)
        pthread_join(writer[i], NULL);
    collect();
    for (uint32_t page = 0; page < SHARED_PAGES; page++)
        SAME(page, migration.copy[page], migration.memory[page]);
}

int main(void)
{
    test_marks();
    test_without_a_log();
    test_random_marks();
    test_runs();
    test_words_wait();
    test_another_log();
    test_news();
    test_nothing_is_missed_while_it_is_collected();
    return 0;
}
