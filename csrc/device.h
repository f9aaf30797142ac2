/* A ring in the hands of a device in Python: each step under the guard, none with a Python object.
 *
 * Where memory has vanished a step returns false, ring->fault says what, and no later step does
 * more than tell what was done before. A packet is copied to and from private memory only.
 */
#ifndef VHOSTFAST_DEVICE_H
#define VHOSTFAST_DEVICE_H

#include "forward.h"
#include "guard.h"

static bool ring_holds(const void *ring, const uint8_t *address)
{
    return ring_lost(ring, address) != FAULT_NONE;
}

static inline bool ring_guarded(struct ring *ring, void (*body)(void *), void *argument)
{
    struct guard guard = {.holds = ring_holds, .owner = ring};
    if (ring->fault == FAULT_MEMORY || ring->fault == FAULT_LOG)
        return false;
    if (guard_run(&guard, body, argument))
        return true;
    ring->fault = ring_lost(ring, guard.vanished);
    return false;
}

static void start_body(void *ring) { split_start(ring); }

static inline bool ring_start(struct ring *ring)
{
    ring->fault = FAULT_NONE;
    return ring_guarded(ring, start_body, ring);
}

struct asking {
    struct ring *ring;
    bool wanted, more;
};

static void ask_body(void *argument)
{
    struct asking *asking = argument;
    asking->more = split_want_kicks(asking->ring, asking->wanted);
}

/* True also where the ring has a fault now: the caller has to look. */
static inline bool ring_ask(struct ring *ring, bool wanted)
{
    struct asking asking = {.ring = ring, .wanted = wanted};
    return !ring_guarded(ring, ask_body, &asking) || asking.more;
}

static void complete_body(void *ring) { ring_complete(ring, false); }

static inline bool ring_finish(struct ring *ring)
{
    return ring_guarded(ring, complete_body, ring);
}

struct hands {
    struct ring *ring;
    uint32_t size; /* of the frame in burst.copy, 0: none that is lawful */
    int got;       /* enum pop */
    struct burst burst;
};

static void receive_body(void *argument)
{
    struct hands *hands = argument;
    struct chain *sent = &hands->burst.sent;
    struct taken taken;
    struct packet frame;
    hands->size = 0;
    chain_clear(sent);
    hands->got = split_pop(hands->ring, sent, &taken, DEVICE_READS);
    if (hands->got != POP_GOT)
        return;
    if (nethdr_read(&frame, sent, hands->ring->header_size, 0, NULL)) {
        cursor_read(&frame.at, hands->burst.copy, frame.size);
        hands->size = frame.size;
    }
    split_push(hands->ring, taken.head, 0);
}

/* The next packet that the guest sends, into burst.copy. False: none, or a broken ring. Where
 * memory has vanished the packets before are told to the guest, if the ring is still there: else
 * whoever takes it up would receive them again. */
static inline bool hands_receive(struct hands *hands)
{
    struct guard guard = {.holds = ring_holds, .owner = hands->ring};
    if (ring_guarded(hands->ring, receive_body, hands))
        return hands->got == POP_GOT;
    ring_settle(hands->ring);
    (void)guard_run(&guard, complete_body, hands->ring);
    return false;
}

struct sending {
    struct hands *hands;
    const uint8_t *frame;
    uint32_t size;
    enum delivery why;
};

static void send_body(void *argument)
{
    struct sending *sending = argument;
    struct ring *ring = sending->hands->ring;
    const struct segment packet = {.payload = sending->frame, .payload_size = sending->size};
    sending->why = sending->size > ring->frame_size_max
                       ? TOO_BIG
                       : store_packet(&sending->hands->burst, ring, &packet);
}

/* A packet for the guest. FULL: it has no buffers for it; NO_RECEIVER: a broken ring. */
static inline enum delivery hands_send(struct hands *hands, const uint8_t *frame, uint32_t size)
{
    struct sending sending = {.hands = hands, .frame = frame, .size = size};
    return ring_guarded(hands->ring, send_body, &sending) ? sending.why : NO_RECEIVER;
}

#endif
