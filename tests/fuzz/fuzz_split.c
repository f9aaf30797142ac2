/* The verbs of a split ring in any order, on a ring whose guest lies: bounded, within memory, and
 * only what was offered comes back. */
#include "scene.h"

enum { LOADS_OF_DESC = sizeof(struct vring_desc) }; /* at most, where a region's end cuts it */

static struct taken held[RING_SIZE_TOP];
static uint32_t held_count;
static struct span span[SPAN_COUNT_MAX];

/* Spans in memory, and of the direction: those that a device writes, as `may` says. */
static void check_chain(const struct chain *chain, struct machine *it, bool writes)
{
    uint64_t size = 0;
    for (uint32_t i = 0; i < chain->count; i++) {
        const struct span *part = &chain->span[i];
        uint64_t reach;
        CHECK(part->host == guest_at(it, part->gpa, &reach) && part->size <= reach);
        size += part->size;
        for (uint64_t k = 0; writes && change_done == 0 && k < part->size; k += 7)
            CHECK(may[part->host + k - arena]);
    }
    SAME(-1, chain->size, size);
}

static void pop(struct ring *ring, struct machine *it, bool writes)
{
    struct chain chain = {.span = span};
    struct taken *taken = &held[held_count];
    const uint64_t loaded = load_count;
    if (held_count == ring->size)
        return;
    allow_all();
    watching = true;
    int got = split_pop(ring, &chain, taken, writes ? DEVICE_WRITES : DEVICE_READS);
    watching = false;
    CHECK(load_count - loaded <= 2 + (ring->size + 1) * (uint64_t)LOADS_OF_DESC);
    CHECK(chain.count <= 2 * ring->size + it->table.count * ring->size);
    CHECK((got == POP_BROKEN) == (ring->fault != FAULT_NONE));
    if (got != POP_GOT)
        return;
    CHECK(taken->head < ring->size);
    SAME(-1, taken->size, chain.size);
    check_chain(&chain, it, writes);
    held_count++;
}

static void step(struct input *in, struct ring *ring, struct machine *it, bool writes)
{
    struct change now;
    uint32_t count;
    switch (take_below(in, 9)) {
    case 0:
    case 1:
        offer(in, it, !writes);
        return;
    case 2:
        now = take_change(in);
        guest_stores(now.at, &now.value, now.size);
        return;
    case 3:
        plan(in, take_change(in));
        return;
    case 4: /* the first of those that are held */
        if (held_count == 0)
            return;
        split_push(ring, held[0].head, writes ? held[0].size : 0);
        memmove(held, held + 1, --held_count * sizeof held[0]);
        return;
    case 5:
        count = take_below(in, held_count + 1);
        split_rewind(ring, count);
        held_count -= count;
        return;
    case 6:
        watching = true;
        if (split_publish(ring, false))
            split_wants_call(ring);
        split_want_kicks(ring, take(in, 1) & 1);
        watching = false;
        return;
    default:
        pop(ring, it, writes);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    scene_start(&in);
    bool writes = take(&in, 1) & 1;
    struct machine *it = &machine[0];
    struct ring *ring = writes ? &it->rx : &it->tx;
    held_count = 0;
    for (uint32_t i = 0; i < STEP_COUNT_MAX && in.at < in.end && ring->fault == FAULT_NONE; i++)
        step(&in, ring, it, writes);
    split_publish(ring, false);
    SAME(-1, (uint16_t)(ring->last_avail - ring->used_next), held_count);
    memset(may, 0, ARENA_SIZE); /* the verbs store to used rings only */
    allow_used(&it->rx);
    allow_used(&it->tx);
    check_stores(it, may, true);
    return 0;
}
