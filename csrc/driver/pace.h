/* Packets on a schedule, and how long each was on its way.
 *
 * Packet n is due at start + n periods, whatever became of those before it (an open loop). Its
 * sequence is n, so whoever receives it knows when it was due, and that is what its time is counted
 * from: if the ring is full, or the back-end stands still, the clocks of all packets that are due
 * meanwhile run (no coordinated omission). One thread plays all guests, so there is one clock.
 *
 *   there and back   the second guest answers each frame at once, by one of its own with the same
 *                    sequence and, if frames keep their order, of the same size
 *   there            the second guest receives
 *   loop             the first guest gets back what it sends
 *
 * Frames are prepared as for LOAD_TOUCH. A packet is `held` if it was due and found the ring full.
 */
#ifndef VHOSTFAST_PACE_H
#define VHOSTFAST_PACE_H

#include "driver/clock.h"
#include "driver/histogram.h"
#include "driver/traffic.h"

struct pace {
    struct sender *sender;     /* the first guest's */
    struct receiver *receiver; /* where frames arrive in the end */
    struct receiver *asked;    /* the second guest's, which answers; NULL: nobody does */
    struct sender *answering;
    double period;       /* cycles from one packet to the next; 0: all are due at once */
    uint64_t count;      /* packets to send */
    uint64_t first;      /* the first whose time is noted: those before it warm up */
    uint64_t patience;   /* cycles without a move, after which what is not there is lost */
    uint64_t deadline;   /* cycles after the start, when the loop is left in any case */
    uint64_t start;      /* cycle_count at the first packet */
    uint64_t held;       /* of those from `first` on */
    uint64_t held_most;  /* with more, the loop is left */
    uint64_t held_below; /* all below are counted in it, if they were held */
    uint64_t noted;      /* packets whose time is in the histogram */
    uint64_t gap;        /* the longest from one turn to the next, in cycles, from `first` on */
    uint64_t last;       /* when the last of them came, from the start on */
    uint64_t busy_cycles, idle_cycles;
    uint32_t stop; /* leave at once */
    struct histogram histogram;
};

ALWAYS_INLINE uint64_t pace_due_at(const struct pace *pace, uint64_t sequence)
{
    return pace->start + (uint64_t)((double)sequence * pace->period);
}

/* How many packets are due. */
ALWAYS_INLINE uint64_t pace_due(const struct pace *pace, uint64_t now)
{
    double spent = (double)(now - pace->start);
    if (spent >= (double)pace->count * pace->period)
        return pace->count;
    return (uint64_t)(spent / pace->period) + 1;
}

/* Packets from `room` on, up to `due`, are due and there is no place for them. */
ALWAYS_INLINE void pace_hold(struct pace *pace, uint64_t room, uint64_t due)
{
    uint64_t from = room > pace->held_below ? room : pace->held_below;
    if (likely(due <= from))
        return;
    count_up(&pace->held, due - from);
    pace->held_below = due;
}

/* Offers what is due, as far as there is room. */
ALWAYS_INLINE int pace_send(struct pace *pace, uint64_t now)
{
    struct sender *sender = pace->sender;
    int back = sender_reclaim(sender);
    if (unlikely(back < 0))
        return back;
    sender->limit = pace_due(pace, now);
    pace_hold(pace, sender->sent + sender->pool.free_count, sender->limit);
    uint32_t sent = 0, count;
    do {
        count = sender_offer(sender, LOAD_TOUCH);
        sent += count;
    } while (count == TRAFFIC_BURST);
    return back | (int)sent;
}

/* The packet has arrived that the sequence says. */
ALWAYS_INLINE void pace_note(struct pace *pace, uint64_t sequence, uint64_t now)
{
    if (unlikely(sequence >= pace->sender->sent)) {
        count_up(&pace->receiver->corrupt, 1);
        return;
    }
    if (sequence < pace->first)
        return;
    uint64_t due = pace_due_at(pace, sequence);
    histogram_note(&pace->histogram, now > due ? now - due : 0);
    count_up(&pace->noted, 1);
    pace->last = now - pace->start;
}

/* Takes up to `most` packets; of each that is good, either notes its time or answers it. */
ALWAYS_INLINE int pace_take(struct pace *pace, struct receiver *receiver, struct sender *answer,
                            uint32_t most)
{
    struct tally tally = {0};
    int waiting = driver_used_count(receiver->pool.ring), taken = 0;
    if (waiting <= 0)
        return waiting;
    uint64_t now = cycle_count();
    for (uint32_t i = 0; i < most && taken < waiting; i++) {
        uint64_t good = tally.packets;
        int count = receiver_take(receiver, &tally, (uint32_t)(waiting - taken), false);
        if (unlikely(count < 0))
            return count;
        taken += count;
        if (unlikely(tally.packets == good))
            continue;
        if (answer)
            sender_answer(answer, tally.sequence);
        else
            pace_note(pace, tally.sequence, now);
    }
    receiver_count(receiver, &tally, (uint64_t)taken);
    receiver_post(receiver, LOAD_TOUCH);
    if (answer)
        traffic_tell(answer->pool.ring);
    return taken;
}

/* The second guest's turn: it takes no more than it can answer. */
ALWAYS_INLINE int pace_answer(struct pace *pace)
{
    struct sender *answering = pace->answering;
    int back = sender_reclaim(answering);
    if (unlikely(back < 0))
        return back;
    uint32_t room = answering->pool.free_count;
    uint32_t most = room < TRAFFIC_BURST ? room : TRAFFIC_BURST;
    int taken = pace_take(pace, pace->asked, answering, most);
    return taken < 0 ? taken : back | taken;
}

ALWAYS_INLINE int pace_turn(struct pace *pace, uint64_t now)
{
    int sent = pace_send(pace, now);
    int answered = pace->answering ? pace_answer(pace) : 0;
    int taken = pace_take(pace, pace->receiver, NULL, TRAFFIC_BURST);
    return sent < 0 || answered < 0 || taken < 0 ? DRIVER_BROKEN : (sent | answered | taken) != 0;
}

static inline bool pace_all_arrived(const struct pace *pace)
{
    return pace->noted >= pace->count - pace->first && pace->sender->done == pace->count;
}

/* Until all that is due has arrived or is lost, or too much was held; DRIVER_BROKEN if the back-end
 * broke the rules of a ring. */
static inline int pace_run(struct pace *pace)
{
    uint64_t before = pace->start = cycle_count(), moved_at = before;
    int moved = 0;
    pace->held_below = pace->first;
    while (!load_once_u32(&pace->stop) && !pace_all_arrived(pace)) {
        uint64_t now = cycle_count(), spent = now - before;
        before = now;
        count_up(moved ? &pace->busy_cycles : &pace->idle_cycles, spent);
        if (pace->sender->limit > pace->first && spent > pace->gap)
            pace->gap = spent;
        moved = pace_turn(pace, now);
        if (unlikely(moved < 0))
            return moved;
        if (moved || pace->sender->limit < pace->count)
            moved_at = now;
        else if (now - moved_at > pace->patience)
            break;
        if (now - pace->start > pace->deadline || pace->held > pace->held_most)
            break;
        if (!moved)
            relax();
    }
    return 0;
}

#endif
