/* The loop that turns senders and receivers, and lets go of the CPU when nothing moves.
 *
 * A lane is a queue pair of one guest. One thread turns any number of lanes; it is told to end by
 * two words, and its counters can be read meanwhile. Once all is sent, or the deadline is there,
 * the loop goes on until all that is expected is there, or nothing has moved for `linger_ns`.
 */
#ifndef VHOSTFAST_TRAFFIC_H
#define VHOSTFAST_TRAFFIC_H

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <time.h>

#include "driver/lean.h"

enum traffic_loop_limit {
    TRAFFIC_LANES_MAX = 1024,
    TRAFFIC_SPIN = 200,       /* empty turns before the CPU is offered to others */
    TRAFFIC_CLOCK_TURNS = 64, /* between two looks at the clock */
    TRAFFIC_WAIT_MS = 5,      /* sleep at most, to see the words */
};

enum idle { IDLE_SPIN, IDLE_YIELD, IDLE_WAIT };

struct lane {
    struct sender *sender; /* NULL: does not send */
    struct receiver *receiver;
};

struct traffic {
    struct lane lane[TRAFFIC_LANES_MAX];
    uint32_t lane_count;
    enum load load;
    enum idle idle;
    uint32_t stop;  /* leave at once */
    uint32_t quiet; /* send no more */
    bool sending;   /* senders may offer */
    uint64_t deadline_ns;
    uint64_t linger_ns;
    uint64_t expected; /* packets that will come in all; UINT64_MAX: nobody knows */
    uint64_t moved_ns; /* when something was last seen to move */
    bool moved;        /* since then */
    uint32_t empty_turns;
    uint64_t turns;
    uint64_t busy_cycles; /* of turns in which something moved */
    uint64_t idle_cycles;
};

/* --- Preparing --- */

/* Each slot holds a whole frame, for the loads that do not write them anew. */
static inline void sender_prepare(struct sender *sender, enum load load)
{
    struct pool *pool = &sender->pool;
    pool_reset(pool, pool_room(pool));
    for (uint32_t slot = 0; load != LOAD_FULL && slot < pool->slot_count; slot++) {
        uint32_t size = sender_size(sender, slot);
        frame_fill(pool_frame(pool, slot), sender->station, slot, size);
        pool_describe(pool, slot, pool->header_size + size);
    }
    if (load == LOAD_LEAN)
        lean_prepare(pool);
    driver_want_calls(pool->ring, false);
}

/* Every buffer is on offer. */
static inline void receiver_prepare(struct receiver *receiver, enum load load)
{
    struct pool *pool = &receiver->pool;
    pool_reset(pool, pool_room(pool));
    receiver->sample_at = 0;
    receiver->sample_blank = true;
    if (load == LOAD_LEAN) {
        lean_prepare(pool);
        pool->ring->avail_next += (uint16_t)pool->slot_count;
    } else {
        while (pool->free_count)
            pool_offer(pool, pool_get(pool));
    }
    driver_want_calls(pool->ring, false);
    traffic_tell(pool->ring);
}

/* The ring has stopped: takes what came last and, if it was not looked at yet, checks it. */
static inline int receiver_finish(struct receiver *receiver, enum load load)
{
    int taken;
    do {
        taken = load == LOAD_FULL    ? receiver_burst(receiver, LOAD_FULL)
                : load == LOAD_TOUCH ? receiver_burst(receiver, LOAD_TOUCH)
                                     : receiver_lean(receiver);
    } while (taken > 0);
    if (taken == 0 && load == LOAD_LEAN)
        lean_check_all(receiver);
    return taken;
}

/* --- Turning --- */

/* Whether anything moved, or DRIVER_BROKEN. `load` is a constant to it. */
ALWAYS_INLINE int traffic_turn(struct traffic *traffic, enum load load)
{
    bool sending = traffic->sending;
    int moved = 0;
    for (uint32_t i = 0; i < traffic->lane_count; i++) {
        struct sender *sender = traffic->lane[i].sender;
        struct receiver *receiver = traffic->lane[i].receiver;
        int received = 0, sent = 0;
        if (receiver)
            received = load == LOAD_LEAN ? receiver_lean(receiver) : receiver_burst(receiver, load);
        if (sender && load == LOAD_LEAN) {
            sent = sender_lean(sender, sending);
        } else if (sender) {
            sent = sender_reclaim(sender);
            if (sending && sent >= 0)
                sent += (int)sender_offer(sender, load);
        }
        if (unlikely(received < 0 || sent < 0))
            return DRIVER_BROKEN;
        moved |= received | sent;
    }
    return moved != 0;
}

static inline int traffic_turn_as(struct traffic *traffic)
{
    switch (traffic->load) {
    case LOAD_FULL:
        return traffic_turn(traffic, LOAD_FULL);
    case LOAD_TOUCH:
        return traffic_turn(traffic, LOAD_TOUCH);
    default:
        return traffic_turn(traffic, LOAD_LEAN);
    }
}

static inline bool traffic_all_sent(const struct traffic *traffic)
{
    for (uint32_t i = 0; i < traffic->lane_count; i++) {
        const struct sender *sender = traffic->lane[i].sender;
        if (sender && sender->sent < sender->limit)
            return false;
    }
    return true;
}

/* Nothing is under way any more, as far as we can know. */
static inline bool traffic_all_arrived(const struct traffic *traffic)
{
    uint64_t arrived = 0;
    for (uint32_t i = 0; i < traffic->lane_count; i++) {
        const struct sender *sender = traffic->lane[i].sender;
        const struct receiver *receiver = traffic->lane[i].receiver;
        if (sender && sender->done < sender->sent)
            return false;
        if (receiver)
            arrived += receiver->packets + receiver->corrupt;
    }
    return arrived >= traffic->expected;
}

static inline uint64_t traffic_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Ends the sending when it is time; whether all is over. */
static inline bool traffic_over(struct traffic *traffic)
{
    uint64_t now = traffic_now_ns();
    if (traffic->moved)
        traffic->moved_ns = now;
    traffic->moved = false;
    if (now >= traffic->deadline_ns || load_once_u32(&traffic->quiet) || traffic_all_sent(traffic))
        traffic->sending = false;
    if (traffic->sending)
        return false;
    return traffic_all_arrived(traffic) || now - traffic->moved_ns >= traffic->linger_ns;
}

/* Asks for calls on all rings and sleeps until one comes; or does not, if something is there. */
static inline void traffic_wait(struct traffic *traffic)
{
    struct pollfd fd[2 * TRAFFIC_LANES_MAX];
    struct driver_ring *ring[2 * TRAFFIC_LANES_MAX];
    uint32_t count = 0;
    bool more = false;
    for (uint32_t i = 0; i < traffic->lane_count; i++) {
        if (traffic->lane[i].sender)
            ring[count++] = traffic->lane[i].sender->pool.ring;
        if (traffic->lane[i].receiver)
            ring[count++] = traffic->lane[i].receiver->pool.ring;
    }
    for (uint32_t i = 0; i < count; i++) {
        more |= driver_want_calls(ring[i], true);
        fd[i] = (struct pollfd){.fd = ring[i]->call_fd, .events = POLLIN};
    }
    if (!more)
        poll(fd, count, TRAFFIC_WAIT_MS);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t calls;
        if (!more && fd[i].revents & POLLIN && read(fd[i].fd, &calls, sizeof calls) > 0)
            ring[i]->calls++;
        driver_want_calls(ring[i], false);
    }
}

static inline void traffic_idle(struct traffic *traffic)
{
    if (traffic->idle == IDLE_SPIN || traffic->empty_turns < TRAFFIC_SPIN)
        relax();
    else if (traffic->idle == IDLE_YIELD)
        sched_yield();
    else
        traffic_wait(traffic);
}

/* Runs until it is over or stopped; DRIVER_BROKEN if the back-end broke the rules of a ring. */
static inline int traffic_run(struct traffic *traffic)
{
    uint64_t before = cycle_count();
    traffic->moved = true;
    traffic->empty_turns = 0;
    traffic->sending = !load_once_u32(&traffic->quiet);
    while (!load_once_u32(&traffic->stop)) {
        int moved = traffic_turn_as(traffic);
        if (unlikely(moved < 0))
            return moved;
        uint64_t now = cycle_count();
        count_up(moved ? &traffic->busy_cycles : &traffic->idle_cycles, now - before);
        before = now;
        traffic->empty_turns = moved ? 0 : traffic->empty_turns + 1;
        traffic->moved |= moved != 0;
        bool look = ++traffic->turns % TRAFFIC_CLOCK_TURNS == 0;
        if ((look || traffic->empty_turns > TRAFFIC_SPIN) && traffic_over(traffic))
            break;
        if (!moved)
            traffic_idle(traffic);
    }
    return 0;
}

#endif
