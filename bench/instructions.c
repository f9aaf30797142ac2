/* What bench/instructions.py counts. Each case is done so often and then, prepared anew, twice as
 * often; how often, and its name, are printed before. Callgrind counts in timed_* only, and writes
 * down and forgets what it has counted where end_of_count returns.
 *
 * Exit code 1: a case that did not do what it should; 3: this CPU lacks AVX2.
 */
#include <stdio.h>
#include <stdlib.h>

#include "forward.h"
#include "steps.h"

enum {
    COUNT = 6400, /* packets */
    TURNS = 640,
    STEP_COUNT = 500,
    REGIONS = REGION_COUNT_MAX,
    ADDRESSES = 4096,
    SCATTERED = 1 << 15, /* pages */
};

static const char *const LEVELS[] = {"baseline", "avx2"}; /* those that valgrind knows */

__attribute__((noipa)) static void end_of_count(void) { __asm__ volatile("" ::: "memory"); }

static void require(bool holds, const char *what, const char *name)
{
    if (holds)
        return;
    fprintf(stderr, "instructions.c: %s: %s\n", name, what);
    exit(1);
}

/* In packets or, where none moves, in turns. */
static void count_bursts(uint32_t level)
{
    for (uint32_t i = 0; shape_name(i) != NULL; i++) {
        const char *name = shape_name(i);
        uint32_t often = shape_waits(i) ? COUNT / OFFER : COUNT;
        printf("%u %s, %s\n", often, name, LEVELS[level]);
        for (uint64_t count = COUNT; count <= 2 * COUNT; count += COUNT) {
            prepare_burst(i, level);
            uint64_t got = run_burst((uint32_t)count);
            end_of_count();
            require(got == shape_copies(i) * count, "not every packet arrived once", name);
            require(wrong_frames() == 0, "a frame has a wrong byte", name);
        }
    }
}

static void count_turns(uint32_t level)
{
    printf("%u a turn without packets, %s\n", TURNS, LEVELS[level]);
    for (uint32_t count = TURNS; count <= 2 * TURNS; count += TURNS) {
        prepare_burst(0, level);
        require(run_turns(count) == 0, "a packet from nowhere", "a turn");
        end_of_count();
    }
}

static void prepare_search(void) { prepare_regions(REGIONS, true); }
static void prepare_log(void) { prepare_marks(SCATTERED); }
static void prepare_table(void) { prepare_addresses(ADDRESSES); }

static const struct {
    const char *name;
    void (*prepare)(void);
    uint64_t (*timed)(uint32_t count);
    uint64_t (*check)(void);
    uint64_t holds; /* check's answer, 0: as many as were done */
} STEPS[] = {
    {"translate, 509 regions", prepare_search, timed_translate, NULL, 0},
    {"mark, scattered pages", prepare_log, timed_mark, marked_pages, 0},
    {"find an address", prepare_table, timed_find, known_addresses, ADDRESSES},
    {"learn an address", prepare_table, timed_learn, known_addresses, ADDRESSES},
};

static void count_steps(void)
{
    for (uint32_t i = 0; i < sizeof STEPS / sizeof *STEPS; i++) {
        printf("%u %s\n", STEP_COUNT, STEPS[i].name);
        for (uint32_t count = STEP_COUNT; count <= 2 * STEP_COUNT; count += STEP_COUNT) {
            STEPS[i].prepare();
            uint64_t right = STEPS[i].timed(count);
            end_of_count();
            uint64_t holds = STEPS[i].holds ? STEPS[i].holds : count;
            require(right == count, "a wrong result", STEPS[i].name);
            require(STEPS[i].check == NULL || STEPS[i].check() == holds, "it did not last",
                    STEPS[i].name);
        }
    }
}

int main(void)
{
    if (!has_level(LEVEL_AVX2)) {
        fprintf(stderr, "instructions.c: this CPU has no AVX2\n");
        return 3;
    }
    for (uint32_t level = LEVEL_BASELINE; level <= LEVEL_AVX2; level++) {
        count_bursts(level);
        count_turns(level);
    }
    count_steps();
    return 0;
}
