/* Whose time it is. Ports share a worker by time, not by packets: a packet may cost as much as a
 * thousand others.
 *
 * A port has a quantum of cycles a slice, and keeps none for later. Its turn is never cut for it,
 * but what it took beyond, its port sits out in the next slices. A receiver is charged too, for
 * buffers of far more pieces than a frame needs, and not its sender: that is paid first, and where
 * it is much, frames for the port are dropped unseen.
 */
#ifndef VHOSTFAST_ACCOUNT_H
#define VHOSTFAST_ACCOUNT_H

#include "spec.h"

enum account_limit {
    QUANTUM_CYCLES = 4096,
    DEBT_CYCLES_MAX = 16384 * QUANTUM_CYCLES, /* of a turn in which the worker lost its CPU */
    OWED_CYCLES_MAX = 64 * QUANTUM_CYCLES,    /* of a receiver to which frames still go */
    PIECE_CYCLES = 16,                        /* to look at a piece of a buffer, about */
    PIECES_COMMON = 32,                       /* of a frame's buffers; one a CACHE_LINE more */
};

struct account {
    int64_t credit; /* cycles; without any it sits out */
    int64_t owed;   /* cycles, for its buffers */
    uint32_t slice; /* in which it had its last quantum */
    bool admitted;  /* in that slice, with all its queues */
};

/* A worker's, by the index of the port. */
struct accounts {
    uint32_t slice;            /* counts them */
    int64_t charged_receivers; /* cycles, of this turn */
    struct account port[PORT_COUNT_MAX];
};

/* A port's account, with the quanta of the slices since it was looked at last. */
static inline struct account *account_now(struct accounts *accounts, uint32_t index)
{
    struct account *account = &accounts->port[index];
    uint32_t slices = accounts->slice - account->slice;
    if (slices > 0) {
        int64_t more = (int64_t)slices * QUANTUM_CYCLES;
        int64_t paid = more < account->owed ? more : account->owed;
        account->slice = accounts->slice;
        account->owed -= paid;
        account->credit += more - paid;
        if (account->credit > QUANTUM_CYCLES)
            account->credit = QUANTUM_CYCLES;
        account->admitted = account->credit > 0 && account->owed == 0;
    }
    return account;
}

/* Whether the port has its turn. */
static inline bool account_admits(struct accounts *accounts, uint32_t index)
{
    return account_now(accounts, index)->admitted;
}

/* Apart, for who has it inlined has fewer registers for its packets. */
static __attribute__((noinline)) bool account_owes(struct accounts *accounts, uint32_t index)
{
    return account_now(accounts, index)->owed > OWED_CYCLES_MAX;
}

/* Whether a frame for the port is not worth a look at its buffers. */
ALWAYS_INLINE bool account_refuses(struct accounts *accounts, uint32_t index)
{
    return unlikely(accounts->port[index].owed > OWED_CYCLES_MAX) && account_owes(accounts, index);
}

/* The port had its turn, which took so many cycles. */
static inline void account_turn(struct accounts *accounts, uint32_t index, uint64_t cycles)
{
    int64_t own = (cycles < DEBT_CYCLES_MAX ? (int64_t)cycles : DEBT_CYCLES_MAX) -
                  accounts->charged_receivers;
    accounts->port[index].credit -= own > 0 ? own : 0;
    accounts->charged_receivers = 0;
}

/* Whether so many pieces are more than a frame of `size` bytes needs. */
ALWAYS_INLINE bool account_minds(uint32_t pieces, uint64_t size)
{
    return unlikely(pieces > PIECES_COMMON + size / CACHE_LINE);
}

/* So many pieces were looked at for a receiver. */
static __attribute__((noinline)) void account_room(struct accounts *accounts, uint32_t index,
                                                   uint32_t pieces)
{
    const int64_t cycles = (int64_t)pieces * PIECE_CYCLES;
    accounts->port[index].owed += cycles;
    accounts->charged_receivers += cycles;
}

/* For who turns a worker by hand: nobody has to sit out. */
static inline void accounts_forgive(struct accounts *accounts)
{
    *accounts = (struct accounts){0};
}

#endif
