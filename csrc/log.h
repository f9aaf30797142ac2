/* The migration log: a bit a 4 KiB page of guest memory, from GPA 0, shared with the front-end
 * (vhost-user, Migration). "step:" names a step of the model that proves the order: tests/order.py,
 * docs/migration.md.
 *
 * The front-end takes a word by exchange with zero and copies its pages later, so a bit promises
 * that the bytes are visible already:   bytes -> full fence -> bit -> used.idx.   Bits are gathered
 * (one atomic or a word, a burst) and go out in log_flush, before the ring publishes. Other rings,
 * ports and processes share the words: always an atomic or.
 */
#ifndef VHOSTFAST_LOG_H
#define VHOSTFAST_LOG_H

#include "bell.h"

struct log {
    uint64_t *word;      /* the first word of the map, offset applied */
    uint64_t page_count; /* pages that it covers */
    uint64_t beyond; /* runs past its end: made impossible when it was checked, so each is a bug of
                        ours */
    uint64_t *marked; /* every bit that we have set, for a witness to compare; NULL: nobody does */
    int event_fd;     /* told when bits were set (SET_LOG_FD); -1: nobody is */
    uint32_t news;    /* bits were set since it was told */
};

/* A ring's own gathering place. */
struct marker {
    struct log *log;     /* NULL: nothing is marked */
    uint64_t start, end; /* GPA: the run of neighbours that was marked last; equal: there is none */
    uint32_t count;      /* of words */
    struct {
        uint64_t index;
        uint64_t bits;
    } word[LOG_CACHE_SIZE];
};

/* Whether an address of ours is in the log. */
static inline bool log_holds(const struct log *log, const uint8_t *host)
{
    return log != NULL && (uintptr_t)host - (uintptr_t)log->word < (log->page_count + 7) / 8;
}

/* What is set already is left alone: most bits are, from one look of the front-end to its next. */
ALWAYS_INLINE void log_set_word(uint64_t *word, uint64_t bits)
{
    bits &= ~load_once_u64(word); /* step: test */
    if (bits != 0)
        or_u64(word, bits); /* step: bit */
}

/* Once a slice. */
static inline void log_tell(struct log *log)
{
    if (log == NULL || log->event_fd < 0 || !exchange_acquire_u32(&log->news, 0))
        return;
    bell_ring(log->event_fd);
}

/* Bits of a word, behind a full fence (E) and what was stored before it. */
ALWAYS_INLINE void log_set_bits(struct log *log, uint64_t index, uint64_t bits)
{
    log_set_word(&log->word[index], bits);
    if (unlikely(log->marked != NULL))
        log_set_word(&log->marked[index], bits);
}

/* For log_tell. */
ALWAYS_INLINE void log_has_news(struct log *log)
{
    if (log->event_fd >= 0)
        store_once_u32(&log->news, 1);
}

/* The gathered bits go out, behind a full fence (E) and what was stored before it. */
static inline void log_set_words(struct marker *marker)
{
    for (uint32_t i = 0; i < marker->count; i++)
        log_set_bits(marker->log, marker->word[i].index, marker->word[i].bits);
    log_has_news(marker->log);
    marker->count = 0;
}

static inline void log_gather(struct marker *marker, uint64_t index, uint64_t bits)
{
    for (uint32_t i = marker->count; i-- > 0;) {
        if (marker->word[i].index == index) {
            marker->word[i].bits |= bits;
            return;
        }
    }
    if (marker->count == LOG_CACHE_SIZE) {
        fence_full(); /* E; step: fence */
        log_set_words(marker);
    }
    marker->word[marker->count].index = index;
    marker->word[marker->count].bits = bits;
    marker->count++;
}

/* The page behind that of byte `last`, or where the log ends. */
ALWAYS_INLINE uint64_t log_stop(struct log *log, uint64_t start, uint64_t last)
{
    const uint64_t stop = (last >> LOG_PAGE_SHIFT) + 1;
    if (likely(stop <= log->page_count && start <= last))
        return stop;
    log->beyond++;
    return log->page_count;
}

/* Of the word that `page` is in, the bits from it on, without those from `stop` on. */
ALWAYS_INLINE uint64_t log_bits(uint64_t page, uint64_t stop)
{
    const uint64_t next = (page / 64 + 1) * 64, last = (next < stop ? next : stop) - 1;
    return (~UINT64_C(0) << page % 64) & (~UINT64_C(0) >> (63 - last % 64));
}

/* The run has ended: its pages, as far as the log goes. */
static inline void log_gather_run(struct marker *marker)
{
    const uint64_t start = marker->start, end = marker->end;
    if (start == end)
        return;
    marker->start = marker->end = 0; /* what lies within a page of 0 is on page 0 */
    const uint64_t stop = log_stop(marker->log, start, end - 1);
    for (uint64_t page = start >> LOG_PAGE_SHIFT; page < stop; page = (page / 64 + 1) * 64)
        log_gather(marker, page / 64, log_bits(page, stop));
}

/* Set the bits of [gpa, gpa + size) at once, behind a full fence (E) and what was stored there. */
static inline void log_set_range(struct log *log, uint64_t gpa, uint64_t size)
{
    if (size == 0)
        return;
    const uint64_t stop = log_stop(log, gpa, gpa + size - 1);
    for (uint64_t page = gpa >> LOG_PAGE_SHIFT; page < stop; page = (page / 64 + 1) * 64)
        log_set_bits(log, page / 64, log_bits(page, stop));
    log_has_news(log);
}

/* Mark the pages of [gpa, gpa + size), which ends before 2^64 as each region does, and whose bytes
 * have been stored. Neighbours are marked as one: between them is less than a page, so none that
 * was not stored to. */
ALWAYS_INLINE void log_mark(struct marker *marker, uint64_t gpa, uint64_t size)
{
    if (likely(marker->log == NULL) || size == 0)
        return;
    if (unlikely(gpa - marker->end >= UINT64_C(1) << LOG_PAGE_SHIFT)) {
        log_gather_run(marker);
        marker->start = gpa;
    }
    marker->end = gpa + size;
}

/* Another log from now on, or none. What is still kept, of a burst that broke off, is of buffers
 * that are not the guest's yet; in the new log there may be no place for it. */
static inline void log_turn(struct marker *marker, struct log *log)
{
    if (marker->log == log)
        return;
    marker->log = log;
    marker->start = marker->end = 0;
    marker->count = 0;
}

/* What was marked goes out, everything stored before it first. `fenced`: a full fence stands behind
 * all of it already. */
static inline void log_flush(struct marker *marker, bool fenced)
{
    if (marker->log == NULL || (marker->count == 0 && marker->start == marker->end))
        return;
    if (!fenced)
        fence_full(); /* E; step: fence */
    log_gather_run(marker);
    log_set_words(marker);
}

#endif
