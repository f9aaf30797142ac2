/* A device in Python's hands on a hostile guest's rings, whose memory changes and vanishes. */
#include "device.h"

#include "loss.h"

static struct hands hands;
static uint8_t frame[FRAME_SIZE_MAX];

static void act(struct input *in, struct ring *rx, struct ring *tx)
{
    uint32_t what = take_below(in, 8), size = take_size(in) % (FRAME_SIZE_MAX + 1);
    uint16_t before = tx->used_next;
    watching = true;
    switch (what) {
    case 0:
        ring_ask(take(in, 1) & 1 ? rx : tx, take(in, 1) & 1);
        break;
    case 1:
        ring_finish(rx);
        ring_finish(tx);
        break;
    case 2:
    case 3:
    case 4:
        hands.ring = rx;
        memset(frame, (int)what, 64);
        if (rx->fault == FAULT_NONE && hands_send(&hands, frame, size) && change_done == 0)
            SAME(what, rx->used_next, rx->last_avail);
        break;
    default:
        hands.ring = tx;
        hands.size = 0;
        if (tx->fault == FAULT_NONE && hands_receive(&hands)) {
            CHECK(hands.size <= FRAME_SIZE_MAX && (hands.size == 0 || hands.size >= 14));
            SAME(what, (uint16_t)(tx->used_next - before), 1);
        }
    }
    watching = false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    loss_start();
    scene_start(&in);
    burst_init(&hands.burst, fabric);
    struct machine *it = &machine[LOSER];
    it->rx.shared = it->tx.shared = false;
    for (uint32_t i = 0; i < STEP_COUNT_MAX && in.at < in.end; i++) {
        switch (take_below(&in, 5)) {
        case 0:
            offer(&in, it, take(&in, 1) & 1);
            break;
        case 1:
            plan(&in, take_change(&in));
            break;
        case 2:
            plan_loss(&in);
            break;
        default:
            act(&in, &it->rx, &it->tx);
            loss_mend();
        }
    }
    watching = true;
    bool all = ring_finish(&it->rx) && ring_finish(&it->tx);
    watching = false;
    if (lost)
        return 0;
    CHECK(all);
    SAME(-1, it->tx.used_next, it->tx.used_published);
    check_stores(it, NULL, true);
    return 0;
}
