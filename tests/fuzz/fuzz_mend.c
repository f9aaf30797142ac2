/* A worker's turns while memory of one guest vanishes, at any load: its port closes, with a reason;
 * nothing of the other two is half done. */
#include "worker.h"

#include "loss.h"

static struct worker worker;

static void worker_start(struct input *in)
{
    loss_start();
    scene_start(in);
    if (worker.forward == NULL) {
        worker_init(&worker);
        worker.word = WORKER_GO;
        worker.forward = burst_baseline;
        worker.source_count = MACHINE_COUNT;
        worker.source = source;
    }
    worker_look_anew(&worker);
    burst_init(&worker.burst, fabric);
    worker.burst.held = worker.burst.touched = NULL;
    memset(worker.burst.counters, 0, MACHINE_COUNT * sizeof worker.burst.counters[0]);
}

static void check_whole(const struct machine *it)
{
    const uint64_t index = (uint64_t)(it - machine);
    const struct ring *const both[] = {&it->rx, &it->tx};
    for (uint32_t i = 0; i < COUNT(both); i++) {
        if (both[i]->fault == FAULT_NONE)
            SAME(index, both[i]->used_next, both[i]->last_avail);
        SAME(index, both[i]->used_next, both[i]->used_published);
        SAME(index, both[i]->lock, 0);
    }
    CHECK(port[index].fault != FAULT_MEMORY && port[index].fault != FAULT_LOG);
}

static void turn(struct input *in)
{
    uint32_t what = take_below(in, 4);
    watching = true;
    accounts_forgive(&worker.burst.accounts); /* by the clock, which is not in the input */
    if (what < 2)
        worker_turn(&worker);
    else
        worker_want_kicks(&worker, what & 1);
    watching = false;
    loss_mend();
    CHECK(worker.burst.touched == NULL && worker.burst.held == NULL);
    check_whole(&machine[0]);
    check_whole(&machine[2]);
}

static void step(struct input *in)
{
    switch (take_below(in, 8)) {
    case 0:
    case 1:
        offer(in, &machine[take_below(in, MACHINE_COUNT)], true);
        return;
    case 2:
    case 3:
        offer(in, &machine[take_below(in, MACHINE_COUNT)], false);
        return;
    case 4:
        plan(in, take_change(in));
        return;
    case 5:
    case 6:
        plan_loss(in);
        return;
    default:
        turn(in);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    worker_start(&in);
    for (uint32_t i = 0; i < STEP_COUNT_MAX && in.at < in.end; i++)
        step(&in);
    turn(&in);
    for (uint32_t i = 0; i < MACHINE_COUNT; i++) {
        const uint64_t *counted = worker.burst.counters[i].value;
        if (i == LOSER && lost)
            continue;
        SAME(i, counted[RX_PACKETS] + counted[RX_DROPPED_MALFORMED],
             (uint16_t)(machine[i].tx.used_next - INDEX));
        /* What a turn that broke off had stored lies in buffers that are still offered: it is
         * marked when they are used. */
        check_stores(&machine[i], NULL, !lost);
    }
    return 0;
}
