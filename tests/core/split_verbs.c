/* The split ring's verbs as functions that ctypes can call. Built by test_split_model.py. */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "split.h"

struct back_end {
    struct ring ring;
    struct region_table table;
    struct log log;
    struct chain chain;
    struct taken taken;
    struct span span[SPAN_COUNT_MAX];
};

/* Map whole pages of a file between two that nobody may touch. */
uint8_t *map_guarded(int fd, uint64_t offset, uint64_t size)
{
    const uint64_t page = 4096;
    uint8_t *map = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    return mmap(map + page, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
                (off_t)offset);
}

void unmap_guarded(uint8_t *map, uint64_t size) { munmap(map - 4096, size + 2 * 4096); }

struct back_end *back_end_new(const struct region *region, uint32_t count)
{
    struct back_end *back_end = aligned_alloc(CACHE_LINE, sizeof *back_end);
    *back_end = (struct back_end){.table.count = count, .ring.call_fd = -1};
    for (uint32_t i = 0; i < count; i++)
        back_end->table.region[i] = region[i];
    back_end->chain.span = back_end->span;
    return back_end;
}

void back_end_free(struct back_end *back_end) { free(back_end); }

void start(struct back_end *back_end, uint32_t size, void *desc, void *avail, void *used,
           bool event_idx, bool indirect)
{
    struct ring *ring = &back_end->ring;
    ring->size = size;
    ring->desc = desc;
    ring->avail = avail;
    ring->used = used;
    ring->event_idx = event_idx;
    ring->indirect = indirect;
    ring->regions = &back_end->table;
    split_start(ring);
}

void set_log(struct back_end *back_end, uint64_t *word, uint64_t pages, bool marks_used,
             uint64_t used_log)
{
    back_end->log = (struct log){.word = word, .page_count = pages, .event_fd = -1};
    back_end->ring.marker.log = &back_end->log;
    back_end->ring.marks_used = marks_used;
    back_end->ring.used_log = used_log;
}

int pop(struct back_end *back_end, bool device_writes)
{
    chain_clear(&back_end->chain);
    return split_pop(&back_end->ring, &back_end->chain, &back_end->taken,
                     device_writes ? DEVICE_WRITES : DEVICE_READS);
}

/* Of the chain that was popped last. */
void fill(struct back_end *back_end, const void *data, uint32_t size)
{
    struct cursor cursor = chain_start(&back_end->chain);
    cursor_write(&cursor, &back_end->ring.marker, data, size);
}

void gather(struct back_end *back_end, void *data, uint32_t size)
{
    struct cursor cursor = chain_start(&back_end->chain);
    cursor_read(&cursor, data, size);
}

uint32_t head(const struct back_end *back_end) { return back_end->taken.head; }
uint32_t chain_size(const struct back_end *back_end) { return back_end->taken.size; }
uint32_t span_count(const struct back_end *back_end) { return back_end->chain.count; }
uint64_t span_gpa(const struct back_end *back_end, uint32_t i) { return back_end->span[i].gpa; }
uint64_t span_size(const struct back_end *back_end, uint32_t i) { return back_end->span[i].size; }
uint32_t fault(const struct back_end *back_end) { return back_end->ring.fault; }
uint32_t last_avail(const struct back_end *back_end) { return back_end->ring.last_avail; }
uint64_t beyond(const struct back_end *back_end) { return back_end->log.beyond; }

void rewind_by(struct back_end *back_end, uint32_t count) { split_rewind(&back_end->ring, count); }
void push(struct back_end *back_end, uint32_t head, uint32_t size)
{
    split_push(&back_end->ring, head, size);
}
bool publish(struct back_end *back_end) { return split_publish(&back_end->ring, false); }
bool wants_call(struct back_end *back_end) { return split_wants_call(&back_end->ring); }
bool want_kicks(struct back_end *back_end, bool wanted)
{
    return split_want_kicks(&back_end->ring, wanted);
}
