/* What bench/steps.c offers to the suites, by ctypes, and to bench/instructions.c.
 *
 * prepare_* lays out what the next calls work on. timed_* does a step `count` times, and nothing
 * else that takes time; each suite's null row is timed_null, the same loop round nothing. run_burst
 * is the guests' part round timed_burst. What a call came to is its result, or is asked for next.
 * What the suites call returns 64 bits, which is what they read.
 */
#ifndef BENCH_STEPS_H
#define BENCH_STEPS_H

#include <stdbool.h>
#include <stdint.h>

/* Packets on offer: all go in one burst, in three buffers each at most. */
enum { OFFER = 64 };

bool has_level(uint32_t level);
uint64_t timed_null(uint32_t count);

void prepare_ring(uint32_t layout, bool logged);
uint64_t timed_pop(uint32_t count);     /* bytes of the chains */
uint64_t timed_push(uint32_t count);    /* the sum of ids and lengths in the used ring */
uint64_t timed_publish(uint32_t count); /* by how much used.idx went up */
uint64_t logged_pages(void);

void prepare_copy(uint32_t size);
uint64_t timed_copy(uint32_t level, uint32_t count); /* bytes */
uint64_t copied(void);

void prepare_chains(uint32_t from_spans, uint32_t to_spans, uint32_t size);
uint64_t timed_chain(uint32_t level, uint32_t count); /* bytes; then ask copied() */

void prepare_regions(uint32_t count, bool scattered);
uint64_t timed_translate(uint32_t count); /* addresses that were right */

void prepare_marks(uint32_t page_count);
uint64_t timed_mark(uint32_t count); /* marks */
uint64_t marked_pages(void);         /* since it was prepared */

uint64_t fdb_room(void); /* addresses that the table is made for */
void prepare_addresses(uint32_t count);
uint64_t timed_find(uint32_t count);  /* addresses that were found at their port */
uint64_t timed_learn(uint32_t count); /* addresses that were learned */
uint64_t known_addresses(void);       /* all that are at their port */

const char *shape_name(uint32_t index); /* NULL: there are no more */
uint64_t shape_copies(uint32_t index);  /* of each packet that are to come */
bool shape_waits(uint32_t index);       /* packets stay where they are, for want of buffers */
void prepare_burst(uint32_t index, uint32_t level);
uint64_t run_burst(uint32_t count); /* packets that came, at all receivers */
uint64_t run_turns(uint32_t count); /* nothing is offered: packets that moved all the same */
uint64_t wrong_frames(void);        /* of all that lie in receive buffers */

#endif
