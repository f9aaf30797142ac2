/* Marks, far from each other or in runs, against a bit a page; nothing beside them, nothing beyond
 * the end. */
#include "log.h"

#include "machine.h"

enum { PAGE_COUNT = 300, WORD_COUNT = (PAGE_COUNT + 63) / 64 };

static uint64_t wanted[WORD_COUNT], *words, *marked;
static uint64_t beyond;

static void want(uint64_t gpa, uint64_t size, uint64_t page_count)
{
    uint64_t first = gpa / PAGE, last = (gpa + size - 1) / PAGE;
    if (size == 0)
        return;
    beyond += last >= page_count;
    for (uint64_t page = first; page <= last && page < page_count; page++)
        wanted[page / 64] |= UINT64_C(1) << page % 64;
}

/* Ranges in a row as the direct path has them: one where less than a page lies between. */
static void run(struct input *in, struct marker *marker, uint64_t page_count)
{
    for (uint32_t i = take_below(in, 16); i > 0; i--) {
        uint64_t gpa = take(in, 3), size = 1 + take(in, 2);
        if (gpa + size > page_count * PAGE)
            continue;
        log_mark(marker, gpa, size);
        want(gpa, size, page_count);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    if (words == NULL) {
        words = (uint64_t *)guarded(sizeof wanted);
        marked = (uint64_t *)guarded(sizeof wanted);
    }
    memset(words, 0, sizeof wanted);
    memset(marked, 0, sizeof wanted);
    memset(wanted, 0, sizeof wanted);
    struct log log = {.word = words, .page_count = take_below(&in, PAGE_COUNT + 1),
                      .event_fd = -1, .marked = take(&in, 1) & 1 ? marked : NULL};
    struct marker marker = {.log = &log};
    beyond = 0;
    while (in.at < in.end) {
        uint64_t gpa, length;
        switch (take_below(&in, 4)) {
        case 0:
            gpa = take_edge(&in) >> 2; /* nothing that a log covers is near 2^64 */
            length = take_edge(&in) >> 2;
            log_mark(&marker, gpa, length);
            want(gpa, length, log.page_count);
            break;
        case 1:
            gpa = take(&in, 3);
            length = take(&in, 2);
            log_mark(&marker, gpa, length);
            want(gpa, length, log.page_count);
            break;
        case 2:
            run(&in, &marker, log.page_count);
            break;
        default:
            log_flush(&marker, false);
        }
    }
    log_flush(&marker, false);
    CHECK(memcmp(words, wanted, sizeof wanted) == 0);
    CHECK(log.marked == NULL || memcmp(marked, wanted, sizeof wanted) == 0);
    SAME(-1, log.beyond > 0, beyond > 0); /* neighbours are one run */
    return 0;
}
