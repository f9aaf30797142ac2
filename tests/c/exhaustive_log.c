/* Every log of up to 130 pages and every range of pages that begins in or just behind it, with each
 * edge of a page, and sizes up to the end of all addresses: exactly the bits of the pages touched
 * are set, others are kept, and a range that ends beyond the log is counted.
 */
#include "log.h"

#include "check.h"

typedef unsigned __int128 wide;

enum { PAGES_MAX = 130, WORDS_MAX = (PAGES_MAX + 63) / 64, LOG_PAGE = 1 << LOG_PAGE_SHIFT };

static uint64_t marks;

/* `word` ends where the log ends, as far as words allow; behind it is no memory. */
static void mark(uint64_t *word, uint64_t page_count, uint64_t gpa, uint64_t size, uint64_t before)
{
    struct log log = {.word = word, .page_count = page_count, .event_fd = -1};
    struct marker marker = {.log = &log};
    wide end = (wide)gpa + size;
    bool holds = size == 0 || end <= (wide)page_count * LOG_PAGE;
    uint64_t words = (page_count + 63) / 64;
    marks++;
    for (uint64_t i = 0; i < words; i++)
        word[i] = before;
    log_mark(&marker, gpa, size);
    log_flush(&marker, false);
    SAME(marks, log.beyond, !holds);
    for (uint64_t i = 0; i < words; i++) {
        uint64_t wanted = before;
        for (uint64_t bit = 0; size > 0 && bit < 64; bit++) {
            uint64_t page = i * 64 + bit;
            if (page < page_count && (wide)page * LOG_PAGE < end &&
                (wide)(page + 1) * LOG_PAGE > gpa)
                wanted |= UINT64_C(1) << bit;
        }
        SAME(marks, word[i], wanted);
    }
}

/* From the first or the last byte of a page to the first or the last of another. */
static void mark_pages(uint64_t *word, uint64_t page_count, uint64_t first, uint64_t last)
{
    uint64_t others = marks % 2 ? UINT64_C(0x5555aaaa00ff5a5a) : 0;
    for (uint32_t edges = 0; edges < 4; edges++) {
        uint64_t gpa = first * LOG_PAGE + (edges & 1 ? LOG_PAGE - 1 : 0);
        uint64_t end = last * LOG_PAGE + (edges & 2 ? LOG_PAGE : 1);
        if (end > gpa)
            mark(word, page_count, gpa, end - gpa, others);
    }
}

static void mark_odd(uint64_t *word, uint64_t page_count)
{
    static const uint64_t at[] = {0, 1, LOG_PAGE - 1, LOG_PAGE, LOG_PAGE + 5, UINT64_C(1) << 63,
                                  UINT64_MAX - LOG_PAGE, UINT64_MAX - 1, UINT64_MAX};
    static const uint64_t size[] = {0, 1, 2, UINT32_MAX, UINT64_C(1) << 63, UINT64_MAX - LOG_PAGE,
                                    UINT64_MAX - 3, UINT64_MAX - 1, UINT64_MAX};
    for (size_t a = 0; a < COUNT(at); a++)
        for (size_t s = 0; s < COUNT(size); s++)
            if ((wide)at[a] + size[s] <= UINT64_MAX)
                mark(word, page_count, at[a], size[s], 0);
}

int main(void)
{
    for (uint64_t pages = 0; pages <= PAGES_MAX; pages++) {
        uint64_t bytes = (pages + 63) / 64 * 8;
        uint64_t *word = (uint64_t *)guarded(bytes ? bytes : 8);
        for (uint64_t first = 0; first < pages + 2; first++)
            for (uint64_t last = first; last < pages + 3; last++)
                mark_pages(word, pages, first, last);
        mark_odd(word, pages);
    }
    printf("%" PRIu64 " marks\n", marks);
    CHECK(marks > 1000000);
    return 0;
}
