/* Where the cycles of a packet go: each stage of the direct path by itself, on rings in our own
 * memory, then the whole burst. One CPU plays guests and worker, so no line comes from another.
 *
 * A stage does what the burst does with OFFER packets, between two looks at the cycle counter. What
 * a stage stores is stored again by the burst behind it, which is checked.
 */
#include <stdio.h>
#include <stdlib.h>

#include "guests.h"

enum { ROUNDS = 20001, WARM = 1000 };
enum stage { LOOK_SENT, LOOK_ROOM, ADDRESSES, HEADERS, COPY, PUSH, MARK, WHOLE, STAGES };

static const char *const NAMES[STAGES] = {
    "look at the sender's chains",
    "look at the receiver's buffers",
    "addresses, table (learn)",
    "net headers",
    "copy, 16 bytes at a time",
    "used elements",
    "marks (log on)",
    "a whole burst",
};
static double cycles[STAGES][ROUNDS];
static burst_function forward;
enum { GROUPS = OFFER / GROUP_SIZE };
static struct direct sent[GROUPS], room[GROUPS];
static struct addresses addresses[OFFER];

static int by_size(const void *one, const void *other)
{
    double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static uint32_t look(struct ring *ring, struct direct *direct, enum direction direction)
{
    uint16_t at = ring->last_avail;
    uint32_t seen = 0;
    bool odd = false;
    for (; seen < GROUPS; seen++, ring->last_avail += GROUP_SIZE)
        if (direction == DEVICE_READS)
            peek_direct(ring, &direct[seen], GROUP_SIZE, DEVICE_READS, false, &odd);
        else
            peek_direct(ring, &direct[seen], GROUP_SIZE, DEVICE_WRITES, false, &odd);
    ring->last_avail = at;
    return odd ? 0 : seen * GROUP_SIZE;
}

static uint8_t *header(const struct direct *groups, uint32_t at)
{
    return groups[at / GROUP_SIZE].header[at % GROUP_SIZE];
}

static uint32_t head(const struct direct *groups, uint32_t at)
{
    return groups[at / GROUP_SIZE].head[at % GROUP_SIZE];
}

static void find(struct ring *from)
{
    for (uint32_t i = 0; i < GROUPS; i++) {
        struct addresses *of_group = &addresses[i * GROUP_SIZE];
        uint32_t count = GROUP_SIZE;
        direct_addresses(&fabric.fdb, &sent[i], from->header_size, of_group, count, false);
        direct_target(&fabric, &guests[0].port, of_group, &count);
        direct_learn(&fabric.fdb, &guests[0].port, of_group, count);
    }
}

static void push(struct ring *from, struct ring *to, uint32_t size)
{
    uint16_t at[2] = {from->used_next, to->used_next};
    for (uint32_t i = 0; i < OFFER; i++) {
        split_push(to, head(room, i), size);
        split_push(from, head(sent, i), 0);
    }
    from->used_next = at[0];
    to->used_next = at[1];
}

static void do_stage(enum stage stage, struct ring *from, struct ring *to, uint32_t size)
{
    const uint32_t header_size = to->header_size;
    switch (stage) {
    case LOOK_SENT:
        look(from, sent, DEVICE_READS);
        break;
    case LOOK_ROOM:
        look(to, room, DEVICE_WRITES);
        break;
    case ADDRESSES:
        find(from);
        break;
    case HEADERS:
        for (uint32_t i = 0; i < OFFER; i++)
            if ((*(const volatile u64_any *)header(sent, i) & NET_HEADER_OFFLOADS) == 0)
                store_net_header(header(room, i), header_size, 0, 0);
        break;
    case COPY:
        for (uint32_t i = 0; i < OFFER; i++)
            copy_bytes(header(room, i) + header_size, header(sent, i) + header_size, size, 16);
        break;
    case PUSH:
        push(from, to, header_size + size);
        break;
    case MARK:
        to->marker.log = &guests[1].log;
        for (uint32_t i = 0; i < GROUPS; i++)
            direct_mark_group(to, &room[i], sent[i].size, header_size, GROUP_SIZE, false);
        log_flush(&to->marker, false);
        to->marker.log = NULL;
        break;
    case WHOLE:
        forward(&burst, &source);
        break;
    default:
        break;
    }
}

static void run(uint32_t frame_size)
{
    const struct shape shape = {"", frame_size, POLICY_PATCH, 2};
    struct ring *from = &guests[0].sends.ring, *to = &guests[1].receives.ring;
    guests_reset(&shape);
    for (uint32_t round = 0; round < WARM + ROUNDS; round++) {
        sender_lean(&guests[0].sender, true);
        for (enum stage stage = 0; stage < STAGES; stage++) {
            uint64_t before = cycle_count();
            do_stage(stage, from, to, frame_size);
            if (round >= WARM)
                cycles[stage][round - WARM] = (double)(cycle_count() - before) / OFFER;
        }
        receiver_lean(&guests[1].receiver);
    }
    lean_check_all(&guests[1].receiver);
    if (guests[1].receiver.corrupt || guests[1].receiver.packets != (WARM + ROUNDS) * OFFER)
        exit(1);
    for (enum stage stage = 0; stage < STAGES; stage++) {
        qsort(cycles[stage], ROUNDS, sizeof(double), by_size);
        printf("%u\t%s\t%.1f\n", frame_size, NAMES[stage], cycles[stage][ROUNDS / 2]);
    }
}

int main(void)
{
    for (enum level level = LEVEL_BASELINE; level < LEVEL_COUNT; level++)
        if (burst_at(level) != NULL)
            forward = burst_at(level);
    run(64);
    run(512);
    run(1500);
    return 0;
}
