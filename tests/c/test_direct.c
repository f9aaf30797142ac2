/* The marks of a group on the direct path: of buffers in a row, whose run ends about a page's end,
 * each right behind the last or a byte or two further, with one gap or one step back at any place.
 * Exactly the pages that hold a byte of a header or of a frame are marked, told as one run or by
 * each.
 */
#include "direct.h"

#include "guest.h"

enum { PAGES = 1024, ROWS = 200000 };

static struct guest guest;
static struct log log;
static struct direct room;
static uint32_t sent_size[GROUP_SIZE];
static uint64_t whole_runs, words;

/* Where the next begins, when the last has ended at `gpa`. */
static uint64_t next(uint64_t gpa, uint64_t step, bool odd)
{
    static const uint64_t gap[] = {1,        PAGE - 1,  PAGE,      PAGE + 1,
                                   2 * PAGE, -PAGE / 2, -3 * PAGE, UINT64_C(1) << 20};
    return gpa + (odd ? gap[random_below(COUNT(gap))] : step);
}

/* Buffers for frames of the size of those sent, from `gpa` on, headers apart if `paired`. */
static uint64_t lay(uint64_t gpa, uint32_t count, uint32_t skip, bool paired)
{
    const uint32_t header_size = guest.ring.header_size;
    const uint64_t step = random_below(3);
    const uint64_t odd = random_below(2) ? random_below(2 * count) : UINT64_MAX;
    for (uint64_t i = 0; i < count; i++) {
        gpa = room.gpa[i] = next(gpa, i > 0 ? step : 0, i > 0 && odd == 2 * i);
        gpa += header_size;
        gpa = room.frame_gpa[i] = next(gpa, paired ? step : 0, paired && odd == 2 * i + 1);
        gpa += sent_size[i] - skip;
    }
    return gpa;
}

static void expect(bool *pages, uint64_t gpa, uint64_t size)
{
    for (uint64_t page = gpa / PAGE; page <= (gpa + size - 1) / PAGE; page++)
        pages[page] = true;
}

static void test_group(long row, uint32_t count, bool paired)
{
    static const uint32_t header_size[] = {NET_HEADER_SIZE_LEGACY, NET_HEADER_SIZE};
    const uint32_t skip = header_size[random_below(2)], most = random_below(2) ? 100 : 1600;
    const uint64_t first = (uint64_t)PAGES / 2 * PAGE + random_below(PAGE);
    bool pages[PAGES] = {false};
    guest.ring.header_size = header_size[random_below(2)];
    for (uint32_t i = 0; i < count; i++)
        sent_size[i] = skip + FRAME_SIZE_MIN + (uint32_t)random_below(most);
    uint64_t end = lay(first, count, skip, paired);
    end += random_below(3) - 1; /* this byte, the one before or the one behind begins a page */
    for (uint32_t i = 0; i < count; i++) {
        room.gpa[i] -= end % PAGE;
        room.frame_gpa[i] -= end % PAGE;
        expect(pages, room.gpa[i], guest.ring.header_size);
        expect(pages, room.frame_gpa[i], sent_size[i] - skip);
    }
    memset(log.word, 0, PAGES / 8);
    direct_mark_group(&guest.ring, &room, sent_size, skip, count, paired);
    whole_runs += guest.ring.marker.start == room.gpa[0];
    words += guest.ring.marker.count;
    log_flush(&guest.ring.marker, false);
    for (uint64_t page = 0; page < PAGES; page++)
        SAME(row, log_has(&log, page), pages[page]);
}

int main(void)
{
    log = guest_log(PAGES);
    guest.ring.marker.log = &log;
    for (long row = 0; row < ROWS; row++)
        test_group(row, random_below(4) ? GROUP_SIZE : 1 + (uint32_t)random_below(GROUP_SIZE),
                   random_below(2));
    CHECK(whole_runs > ROWS / 4);
    CHECK(words > ROWS / 8);
    return 0;
}
