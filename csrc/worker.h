/* A worker's loop: bursts from its sources in turn, until it is told to rest or to stop.
 *
 * The control plane asks by one atomic word, which the loop reads before each burst, and sleeps
 * until the worker has answered; nobody needs the GIL for it. While a worker rests, everything that
 * it reads may be laid out anew.
 */
#ifndef VHOSTFAST_WORKER_H
#define VHOSTFAST_WORKER_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "mend.h"

enum worker_limit {
    AWAKE_LOOKS = 1000,    /* at a source in vain, then it is asleep */
    ASLEEP_CYCLES = 16384, /* between looks at those, while others move packets; and a slice */
};
enum worker_word { WORKER_GO, WORKER_REST, WORKER_STOP };
enum worker_mode { MODE_POLL, MODE_INTERRUPT, MODE_ADAPTIVE };

struct worker {
    uint32_t word; /* enum worker_word, written by the control plane */
    enum worker_mode mode;
    uint32_t source_count;
    struct source *source;
    burst_function forward;
    uint64_t spin_cycles; /* adaptive: how long it looks again before it sleeps */
    int epoll_fd;         /* kicks and wake_fd, edge-triggered: nothing has to be read */
    int wake_fd;

    pthread_mutex_t mutex; /* guards `resting`; taken at a change of word only */
    pthread_cond_t changed;
    bool resting;

    uint64_t busy_cycles __attribute__((aligned(CACHE_LINE))); /* of turns that moved packets */
    uint64_t packets;
    uint64_t sleeps;
    struct guard guard; /* of a slice: all sources once */
    uint32_t at;            /* the source that has its turn */
    uint32_t moved;         /* packets of this turn */
    bool held;              /* somebody sat this slice out */
    bool looks_at_all;      /* in this slice, at those too that are asleep */
    uint64_t looked_at_all; /* the clock, when it did last */
    bool kicks_wanted;
    bool more_came;
    struct burst burst;
};

static inline void worker_init(struct worker *worker)
{
    pthread_mutex_init(&worker->mutex, NULL);
    pthread_cond_init(&worker->changed, NULL);
    worker->resting = true;
    worker->word = WORKER_REST;
    worker->guard.holds = fabric_holds;
}

/* The next source that has something to send; the source_count if none has. To look at one that is
 * asleep costs a line, and often a page's address, that nobody else needs. */
ALWAYS_INLINE uint32_t worker_next(const struct worker *worker, uint32_t from)
{
    struct source *source = worker->source;
    const uint32_t count = worker->source_count;
    const bool all = worker->looks_at_all;
    uint32_t at = from;
    for (; at < count; at++) {
        if (!all && source[at].awake == 0)
            continue;
        if (load_once_u16(source[at].avail_idx) != source[at].taken)
            break;
        source[at].awake -= source[at].awake > 0;
    }
    return at;
}

/* Where to look from now on, and first at all of them. A closed port may have no memory any more:
 * nobody looks there. */
static inline void worker_look_anew(struct worker *worker)
{
    static const uint16_t nothing;
    worker->looked_at_all = 0;
    for (uint32_t i = 0; i < worker->source_count; i++) {
        struct source *source = &worker->source[i];
        bool closed = port_fault(source->port) != FAULT_NONE;
        source->avail_idx = closed ? &nothing : &source->ring->avail->idx;
        source->taken = closed ? nothing : source->ring->last_avail;
    }
}

/* The control plane's side. Returns when a worker that was told to rest or to stop does. */
static inline void worker_tell(struct worker *worker, enum worker_word word)
{
    const uint64_t one = 1;
    pthread_mutex_lock(&worker->mutex);
    if (word == WORKER_GO && worker->word != WORKER_GO)
        worker_look_anew(worker);
    store_release_u32(&worker->word, word);
    pthread_cond_broadcast(&worker->changed);
    if (word != WORKER_GO) {
        ssize_t told = write(worker->wake_fd, &one, sizeof one);
        (void)told; /* our own eventfd: full only where it is readable anyway */
        while (!worker->resting)
            pthread_cond_wait(&worker->changed, &worker->mutex);
    }
    pthread_mutex_unlock(&worker->mutex);
}

/* The worker's side: rest while told to. False: stop. */
static inline bool worker_rest(struct worker *worker)
{
    pthread_mutex_lock(&worker->mutex);
    worker->resting = true; /* step: answer */
    pthread_cond_broadcast(&worker->changed);
    while (worker->word == WORKER_REST)
        pthread_cond_wait(&worker->changed, &worker->mutex);
    bool go = worker->word == WORKER_GO;
    worker->resting = !go;
    pthread_mutex_unlock(&worker->mutex);
    return go;
}

/* What a source had sent before it lost memory is told to it, if the ring is still there: else its
 * successor would send it again. */
static void worker_finish(void *argument)
{
    struct worker *worker = argument;
    ring_complete(worker->source[worker->at].ring, false);
}

/* Do it for all sources. Where a port's memory vanishes the body is entered again, at the same
 * source; a closed port is looked at once more, for each of its rings that has yet to be published.
 */
static inline void worker_guarded(struct worker *worker, void (*body)(void *))
{
    struct burst *burst = &worker->burst;
    worker->at = 0;
    worker->guard.owner = burst->fabric;
    for (uint32_t rings = 0; !guard_run(&worker->guard, body, worker); rings++) {
        const struct source *source = &worker->source[worker->at];
        burst_mend(burst, source->ring, worker->guard.vanished);
        if (port_fault(source->port) != FAULT_NONE &&
            !guard_run(&worker->guard, worker_finish, worker))
            burst_mend(burst, source->ring, worker->guard.vanished);
        worker_look_anew(worker);
        if (rings > 2 * PORT_COUNT_MAX * PAIR_COUNT_MAX)
            abort(); /* we touch a closed port again and again, a bug of ours */
    }
}

/* Ask for kicks of the ring that a source waits for, or for none. Other sources may have looked at
 * it since, and other workers may want its kicks still: those are never turned off for them. */
static inline bool worker_want_room(struct burst *burst, struct source *source, bool wanted)
{
    struct ring *full = source->waits_for;
    if (full == NULL || (full->shared && !wanted))
        return false;
    if (port_fault(fixed_target(burst->fabric, source->port)) != FAULT_NONE)
        return true; /* it waits no longer */
    ring_lock(burst, full);
    bool more = split_want_kicks(full, wanted);
    more |= wanted && full->avail_seen != source->full_at;
    ring_unlock(burst, full);
    return more;
}

static void worker_ask(void *argument)
{
    struct worker *worker = argument;
    for (; worker->at < worker->source_count; worker->at++) {
        struct source *source = &worker->source[worker->at];
        if (port_fault(source->port) != FAULT_NONE)
            continue;
        worker->more_came |= split_want_kicks(source->ring, worker->kicks_wanted);
        worker->more_came |= worker_want_room(&worker->burst, source, worker->kicks_wanted);
    }
}

/* Ask each ring that may wake us for kicks, or not to kick. Returns whether more has come
 * meanwhile. */
static inline bool worker_want_kicks(struct worker *worker, bool wanted)
{
    worker->kicks_wanted = wanted;
    worker->more_came = false;
    worker_guarded(worker, worker_ask);
    return worker->more_came;
}

/* At the end of a slice: who wants to know that there are bits in a log. */
static inline void worker_tell_logs(struct worker *worker)
{
    const struct fabric *fabric = worker->burst.fabric;
    for (uint32_t i = 0; fabric->tells_logs && i < fabric->port_count; i++)
        log_tell(fabric->port[i]->log);
}

static inline void worker_sleep(struct worker *worker)
{
    struct epoll_event event[16];
    bool more = worker_want_kicks(worker, true);
    worker_tell_logs(worker);
    if (!more && load_acquire_u32(&worker->word) == WORKER_GO) {
        worker->sleeps++;
        epoll_wait(worker->epoll_fd, event, 16, -1);
    }
    worker_want_kicks(worker, false);
}

/* A burst that broke off is finished first: the word is not looked at before. */
static void worker_forward(void *argument)
{
    struct worker *worker = argument;
    struct accounts *accounts = &worker->burst.accounts;
    uint64_t now = cycle_count();
    accounts->charged_receivers = 0; /* of a turn that broke off */
    publish_touched(&worker->burst);
    while ((worker->at = worker_next(worker, worker->at)) < worker->source_count) {
        struct source *source = &worker->source[worker->at];
        if (unlikely(port_fault(source->port) != FAULT_NONE)) {
            worker_look_anew(worker);
        } else if (likely(account_admits(accounts, source->port->index))) {
            worker->moved += worker->forward(&worker->burst, source);
            source->taken = source->ring->last_avail;
            source->awake = AWAKE_LOOKS;
            uint64_t then = now;
            now = cycle_count();
            account_turn(accounts, source->port->index, now - then);
        } else {
            worker->held = true;
        }
        worker->at++;
        if (load_acquire_u32(&worker->word) != WORKER_GO)
            break;
    }
}

/* One burst from each source; the number of packets. Cut short when the word changes. */
static inline uint32_t worker_turn(struct worker *worker)
{
    uint64_t begin = cycle_count();
    bool all = worker->moved == 0 || begin - worker->looked_at_all > ASLEEP_CYCLES;
    worker->moved = 0;
    do { /* nobody sits out, or sleeps on, for nobody */
        worker->held = false;
        worker->looks_at_all = all;
        worker->burst.accounts.slice++;
        worker_guarded(worker, worker_forward);
        all = true;
    } while (worker->moved == 0 && (worker->held || !worker->looks_at_all) &&
             load_acquire_u32(&worker->word) == WORKER_GO);
    if (worker->looks_at_all)
        worker->looked_at_all = begin;
    if (worker->moved > 0) {
        worker->busy_cycles += cycle_count() - begin;
        worker->packets += worker->moved;
    }
    worker_tell_logs(worker);
    return worker->moved;
}

static inline void worker_run(struct worker *worker)
{
    while (worker_rest(worker)) {
        uint64_t last_moved = cycle_count();
        while (load_acquire_u32(&worker->word) == WORKER_GO) {
            if (worker_turn(worker) > 0) {
                last_moved = cycle_count();
                continue;
            }
            relax();
            bool idle =
                worker->mode == MODE_INTERRUPT || worker->source_count == 0 ||
                (worker->mode == MODE_ADAPTIVE && cycle_count() - last_moved > worker->spin_cycles);
            if (idle) {
                worker_sleep(worker);
                last_moved = cycle_count();
            }
        }
    }
}

#endif
