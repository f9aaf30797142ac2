/* Workers against the control plane, for ThreadSanitizer (test_headers.py builds it with it too):
 * two workers forward between three guests while memory and logs are swapped, ports break and come
 * back, counters are read, addresses age, and workers rest and stop.
 *
 * A guest is another machine: that it stores to its memory while a worker loads from it is no race
 * of ours, so what plays the lying guest is not watched (NOT_OURS), nor is who reads counters. The
 * honest guests are, and so is all else: nothing is suppressed. */
#include <sys/eventfd.h>

#include "worker.h"

#include "guest.h"

#if defined(__SANITIZE_THREAD__)
#define NOT_OURS __attribute__((no_sanitize_thread, noinline))
#else
#define NOT_OURS __attribute__((noinline))
#endif

enum { SIZE = 64, MEMORY = 0x20000, MACHINES = 3, LIAR = 2, WORKERS = 2, ROUNDS = 300, FRAME = 76 };
enum { STRIDE = 0x400, BUFFERS = 0x10000, LOG_PAGES = MEMORY / PAGE };

static struct machine {
    struct guest rx, tx;
    struct region_table table[2]; /* the same memory, told in two ways: the one or the other */
    struct log log;
    uint32_t told;
    uint64_t sent;
} machine[MACHINES];
static struct fabric fabric;
static struct port port[MACHINES];
static struct source source[WORKERS][MACHINES];
static struct worker worker[WORKERS];
static uint32_t done; /* the guests' threads end */

/* --- Guests ---------------------------------------------------------------------------------- */

static uint16_t used_of(struct guest *guest) { return load_acquire_u16(&guest->ring.used->idx); }

/* Offer a buffer for each that has come back. */
static void guest_turn(struct machine *it, uint32_t index)
{
    uint16_t rx_used = used_of(&it->rx), tx_used = used_of(&it->tx);
    uint8_t *host = it->table[0].region[0].host;
    while ((uint16_t)(it->rx.avail_idx - rx_used) < SIZE) {
        uint16_t head = it->rx.avail_idx % SIZE;
        guest_desc(&it->rx, head, BUFFERS + head * STRIDE, STRIDE, VRING_DESC_WRITE, 0);
        guest_offer(&it->rx, head);
    }
    while ((uint16_t)(it->tx.avail_idx - tx_used) < SIZE) {
        uint16_t head = it->tx.avail_idx % SIZE;
        uint8_t *frame = host + head * STRIDE + NET_HEADER_SIZE;
        memset(frame, 0, FRAME - NET_HEADER_SIZE);
        frame[0] = frame[6] = 0x02;
        frame[1] = (uint8_t)(it->sent++ % 4); /* 3: nobody is known there */
        frame[7] = (uint8_t)index;
        guest_desc(&it->tx, head, head * STRIDE, FRAME, 0, 0);
        guest_offer(&it->tx, head);
    }
    guest_publish(&it->rx);
    guest_publish(&it->tx);
}

static void *honest(void *argument)
{
    struct machine *it = argument;
    while (!load_acquire_u32(&done)) {
        guest_turn(it, (uint32_t)(it - machine));
        sched_yield();
    }
    return NULL;
}

/* Any word of its rings, at any time; mostly what an honest one would have there. */
NOT_OURS static void lie(struct machine *it, uint64_t random)
{
    struct guest *guest = random & 1 ? &it->rx : &it->tx;
    uint16_t head = (random >> 8) % SIZE;
    uint64_t gpa = (random & 1 ? BUFFERS : 0) + head * STRIDE;
    volatile struct vring_desc *desc = &guest->ring.desc[head];
    volatile struct vring_avail *avail = guest->ring.avail;
    desc->addr = gpa;
    desc->len = (random >> 16) % STRIDE;
    desc->flags = random & 1 ? VRING_DESC_WRITE : 0;
    avail->ring[head] = head;
    avail->idx = (uint16_t)(*(volatile uint16_t *)&guest->ring.used->idx + (random >> 32) % SIZE);
    if ((random >> 40) % 512 == 0)
        desc->flags = VRING_DESC_INDIRECT;
    for (uint32_t i = 0; i < 64; i++)
        ((volatile uint8_t *)it->table[0].region[0].host)[gpa + i] = (uint8_t)(i == 0) * 2;
}

static void *liar(void *argument)
{
    uint64_t state = 88172645463325252u;
    while (!load_acquire_u32(&done)) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        lie(argument, state);
        sched_yield();
    }
    return NULL;
}

/* --- The control plane ----------------------------------------------------------------------- */

static void machine_start(struct machine *it)
{
    uint8_t *host = guarded_pages(MEMORY);
    it->table[0] = (struct region_table){.count = 1, .region = {{.size = MEMORY, .host = host}}};
    it->table[1] = (struct region_table){
        .count = 2,
        .region = {{.size = BUFFERS, .host = host},
                   {.gpa = BUFFERS, .size = MEMORY - BUFFERS, .host = host + BUFFERS}}};
    it->log = guest_log(LOG_PAGES);
    it->log.event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    guest_ring(&it->rx, SIZE, 0, true);
    guest_ring(&it->tx, SIZE, 0, true);
    it->rx.ring.regions = it->tx.ring.regions = &it->table[0];
    it->rx.ring.shared = true;
    it->rx.ring.mergeable = it == &machine[1];
}

/* As the control plane lays out each port: while the workers rest. */
static void port_start(uint32_t index)
{
    struct machine *it = &machine[index];
    int event_fd = port[index].event_fd;
    port[index] = (struct port){.index = index, .event_fd = event_fd, .receiver_count = 1};
    port[index].receiver[0] = &it->rx.ring;
    port[index].regions = it->rx.ring.regions;
    port[index].log = it->rx.ring.marker.log;
    split_start(&it->rx.ring);
    split_start(&it->tx.ring);
    fabric.port[index] = fabric.by_index[index] = &port[index];
}

/* Another table of the same memory; a log, or none. */
static void swap(struct machine *it)
{
    it->told++;
    struct log *log = it->told & 2 ? &it->log : NULL;
    struct ring *const both[] = {&it->rx.ring, &it->tx.ring};
    for (uint32_t i = 0; i < COUNT(both); i++) {
        both[i]->regions = &it->table[it->told & 1];
        both[i]->last_region = 0;
        both[i]->marker = (struct marker){.log = log};
    }
    port[it - machine].regions = both[0]->regions;
    port[it - machine].log = log;
    fabric.tells_logs = true;
}

static void workers_tell(enum worker_word word)
{
    for (uint32_t i = 0; i < WORKERS; i++)
        worker_tell(&worker[i], word);
}

/* Counters are added to as plain words, which an atomic store would cost two instructions each, a
 * packet four of them. Who looks may see an old one, never a half: they are aligned words. */
NOT_OURS static uint64_t look_at_counters(void)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < WORKERS; i++) {
        sum += *(volatile uint64_t *)&worker[i].packets;
        for (uint32_t k = 0; k < MACHINES; k++)
            sum += *(volatile uint64_t *)&worker[i].burst.counters[k].value[TX_PACKETS];
    }
    return sum;
}

/* What it looks at while they run: counters, and the log of a guest that moves. */
static uint64_t look(void)
{
    uint64_t sum = look_at_counters();
    for (struct machine *it = machine; it < machine + MACHINES; it++)
        sum += exchange_acquire_u64(it->log.word, 0);
    return sum;
}

/* The liar's port, closed for what it did, can be used again. */
static uint32_t reopen(void)
{
    uint64_t told;
    uint32_t broken = 0;
    for (uint32_t i = 0; i < MACHINES; i++) {
        if (read(port[i].event_fd, &told, sizeof told) != sizeof told)
            continue;
        CHECK(i == LIAR && load_once_u32(&port[i].fault) != FAULT_NONE);
        workers_tell(WORKER_REST);
        port_start(i);
        workers_tell(WORKER_GO);
        broken++;
    }
    return broken;
}

static void *run(void *argument)
{
    worker_run(argument);
    return NULL;
}

static void worker_start(uint32_t index)
{
    static const enum worker_mode mode[WORKERS] = {MODE_POLL, MODE_ADAPTIVE};
    struct worker *it = &worker[index];
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    it->mode = mode[index];
    worker_init(it);
    burst_init(&it->burst, &fabric);
    it->forward = burst_baseline;
    it->source = source[index];
    it->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    it->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(epoll_ctl(it->epoll_fd, EPOLL_CTL_ADD, it->wake_fd, &event) == 0);
    for (uint32_t i = index; i < MACHINES; i += WORKERS)
        it->source[it->source_count++] =
            (struct source){.ring = &machine[i].tx.ring, .port = &port[i]};
}

int main(void)
{
    pthread_t thread[WORKERS], guest[MACHINES];
    uint64_t seen = 0;
    uint32_t broken = 0;
    fabric.policy = POLICY_LEARN;
    fabric.port_count = MACHINES;
    for (uint32_t i = 0; i < MACHINES; i++) {
        machine_start(&machine[i]);
        port[i].event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        port_start(i);
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        worker_start(i);
        CHECK(pthread_create(&thread[i], NULL, run, &worker[i]) == 0);
    }
    for (uint32_t i = 0; i < MACHINES; i++)
        CHECK(pthread_create(&guest[i], NULL, i == LIAR ? liar : honest, &machine[i]) == 0);
    workers_tell(WORKER_GO);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        sched_yield();
        seen += look();
        broken += reopen();
        if (round % 16 == 0)
            fdb_age(&fabric.fdb, 5);
        workers_tell(WORKER_REST);
        swap(&machine[round % MACHINES]);
        workers_tell(WORKER_GO);
    }
    while (broken == 0) /* on a slow machine it takes longer */
        broken += reopen();
    workers_tell(WORKER_STOP);
    store_release_u32(&done, 1);
    for (uint32_t i = 0; i < WORKERS; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    for (uint32_t i = 0; i < MACHINES; i++)
        CHECK(pthread_join(guest[i], NULL) == 0);
    CHECK(seen > 0 && worker[0].packets > 0 && worker[1].packets > 0);
    for (uint32_t i = 0; i < LIAR; i++)
        CHECK(port[i].fault == FAULT_NONE);
    return 0;
}
