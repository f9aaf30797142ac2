/* Whole forwards between three guests, any of which may lie and change its mind amid a load. */
#include "scene.h"

static burst_function forward;

static uint32_t turn(struct source *from) { return forward(&burst, from); }

static void kicks(struct input *in)
{
    uint32_t index = take_below(in, MACHINE_COUNT);
    allow_all();
    watching = true;
    split_want_kicks(&machine[index].rx, take(in, 1) & 1);
    split_want_kicks(&machine[index].tx, take(in, 1) & 1);
    watching = false;
}

static void step(struct input *in)
{
    struct change now;
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
        now = take_change(in);
        guest_stores(now.at, &now.value, now.size);
        return;
    case 5:
        plan(in, take_change(in));
        return;
    case 6:
        kicks(in);
        return;
    default:
        scene_turn(take_below(in, MACHINE_COUNT), turn);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    enum level level = take_below(&in, LEVEL_COUNT);
    forward = burst_at(level);
    if (forward == NULL)
        forward = burst_baseline;
    scene_start(&in);
    for (uint32_t i = 0; i < STEP_COUNT_MAX && in.at < in.end; i++)
        step(&in);
    for (uint32_t i = 0; i < MACHINE_COUNT; i++)
        scene_turn(i, turn);
    scene_check();
    return 0;
}
