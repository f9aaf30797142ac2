/* A worker's loop: it rests when told, sleeps when idle, wakes by a kick, and loses nothing. */
#include <sys/eventfd.h>

#include "worker.h"

#include "guest.h"

enum { SIZE = 16, MEMORY = 0x10000, HEADER_AND_FRAME = NET_HEADER_SIZE + 60, FRAME_COUNT = 3000 };

static struct guest a, b;
static struct fabric fabric;
static struct port ports[2] = {{.index = 0, .event_fd = -1}, {.index = 1, .event_fd = -1}};
static struct source source = {.ring = &a.ring, .port = &ports[0]};
static struct worker worker;
static int kick_fd;

static void *run(void *argument)
{
    worker_run(argument);
    return NULL;
}

static void watch(int fd)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    CHECK(epoll_ctl(worker.epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0);
}

static void start(enum worker_mode mode)
{
    struct guest *const both[] = {&a, &b};
    for (size_t i = 0; i < COUNT(both); i++) {
        *both[i] = (struct guest){0};
        guest_memory(both[i], 0, MEMORY);
        guest_ring(both[i], SIZE, 65530, true);
    }
    fabric = (struct fabric){.policy = POLICY_PATCH};
    ports[0].peer = &ports[1];
    ports[1].receiver[0] = &b.ring;
    ports[1].receiver_count = 1;
    worker = (struct worker){.mode = mode, .source = &source, .source_count = 1};
    worker_init(&worker);
    burst_init(&worker.burst, &fabric);
    worker.forward = burst_at(LEVEL_BASELINE);
    worker.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker.wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    watch(worker.wake_fd);
    watch(kick_fd);
}

/* The driver's half of suppression: kick where avail_event was passed (virtio 2.7.7.2). */
static void tell(struct guest *guest)
{
    uint16_t old = guest->ring.avail->idx;
    guest_publish(guest);
    fence_full();
    uint16_t event = load_once_u16(split_avail_event(&guest->ring));
    const uint64_t one = 1;
    if ((uint16_t)(guest->avail_idx - event - 1) < (uint16_t)(guest->avail_idx - old))
        CHECK(write(kick_fd, &one, sizeof one) == sizeof one);
}

static uint16_t used(struct guest *guest) { return load_acquire_u16(&guest->ring.used->idx); }

/* One frame at a time, so that an idle worker falls asleep between them if it may. A kick or a wake
 * that is lost hangs here, and the time limit of the test says so. */
static void exchange(uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        guest_desc(&b, i % SIZE, 0x1000 * (i % SIZE), 2048, VRING_DESC_WRITE, 0);
        guest_offer(&b, (uint16_t)(i % SIZE));
        tell(&b);
        guest_desc(&a, i % SIZE, 0x1000 * (i % SIZE), HEADER_AND_FRAME, 0, 0);
        a.table.region[0].host[0x1000 * (i % SIZE) + NET_HEADER_SIZE] = (uint8_t)i;
        guest_offer(&a, (uint16_t)(i % SIZE));
        tell(&a);
        while (used(&a) != a.avail_idx || used(&b) != b.avail_idx)
            relax();
        SAME(i, b.table.region[0].host[0x1000 * (i % SIZE) + NET_HEADER_SIZE], (uint8_t)i);
    }
}

static void test_mode(enum worker_mode mode, uint32_t count)
{
    pthread_t thread;
    start(mode);
    CHECK(pthread_create(&thread, NULL, run, &worker) == 0);
    worker_tell(&worker, WORKER_GO);
    exchange(count);
    worker_tell(&worker, WORKER_REST);
    SAME(mode, worker.packets, count);
    CHECK(worker.resting && (mode == MODE_POLL ? worker.sleeps == 0 : worker.sleeps > 0));

    guest_desc(&a, 0, 0, HEADER_AND_FRAME, 0, 0); /* while it rests nothing moves */
    guest_desc(&b, 0, 0, 2048, VRING_DESC_WRITE, 0);
    guest_offer(&a, 0);
    guest_offer(&b, 0);
    tell(&a);
    tell(&b);
    SAME(mode, worker.packets, count);
    worker_tell(&worker, WORKER_GO); /* and then it is seen, kick or no kick */
    while (used(&a) != a.avail_idx)
        relax();
    for (uint32_t i = 0; i < 200; i++) { /* told again before it got up */
        worker_tell(&worker, WORKER_GO);
        worker_tell(&worker, WORKER_REST);
        CHECK(worker.resting);
    }
    worker_tell(&worker, WORKER_STOP);
    CHECK(pthread_join(thread, NULL) == 0);
    close(worker.epoll_fd);
    close(worker.wake_fd);
    close(kick_fd);
}

/* Another source, or another worker, has looked at the full ring since: what came meanwhile must
 * not be slept over, and the other's kicks stay on. */
static void test_several_wait_for_one_receiver(void)
{
    start(MODE_INTERRUPT);
    b.ring.event_idx = false;
    b.ring.shared = true;
    guest_desc(&a, 0, 0, HEADER_AND_FRAME, 0, 0);
    guest_offer(&a, 0);
    guest_publish(&a);
    worker_tell(&worker, WORKER_GO);
    CHECK(worker_turn(&worker) == 0);
    CHECK(source.waits_for == &b.ring);
    CHECK(!worker_want_kicks(&worker, true));
    SAME(0, b.ring.used->flags, 0);
    worker_want_kicks(&worker, false);
    SAME(1, b.ring.used->flags, 0);
    guest_desc(&b, 0, 0, 2048, VRING_DESC_WRITE, 0);
    guest_offer(&b, 0);
    guest_publish(&b);
    b.ring.avail_seen = b.avail_idx;
    CHECK(worker_want_kicks(&worker, true));
    CHECK(worker_turn(&worker) == 1);
}

/* A turn that takes 64 quanta of the second port's, and none of the first's. */
static uint32_t turns[2];

static uint32_t take_long(struct burst *burst, struct source *which)
{
    uint64_t begin = cycle_count();
    (void)burst;
    turns[which->port->index]++;
    while (which->port->index == 1 && cycle_count() - begin < 64 * QUANTUM_CYCLES)
        relax();
    return 1;
}

static void test_who_takes_more_sits_out(void)
{
    start(MODE_POLL);
    struct source both[] = {source, {.ring = &b.ring, .port = &ports[1]}};
    worker.source = both;
    worker.source_count = 2;
    worker.forward = take_long;
    a.ring.last_avail = b.ring.last_avail = 1; /* there is something to do, all the time */
    worker_tell(&worker, WORKER_GO);
    uint32_t first = 0, second = 0;
    for (uint32_t tries = 0; first < 3 * 60 && tries < 100; tries++) {
        first = turns[0], second = turns[1]; /* a busy machine has taken time from others' turns */
        while (turns[1] < second + 3)
            CHECK(worker_turn(&worker) > 0);
        first = turns[0] - first;
    }
    CHECK(first >= 3 * 60);
    uint32_t before = turns[1];
    a.ring.last_avail = a.ring.avail->idx; /* now nobody else has */
    worker_look_anew(&worker);
    for (uint32_t i = 0; i < 10; i++)
        CHECK(worker_turn(&worker) == 1);
    SAME(-1, turns[1], before + 10);
    close(worker.epoll_fd);
    close(worker.wake_fd);
    close(kick_fd);
}

/* Both queues of a port have their turns, however long those of the first are. */
static uint32_t of_queue[2];

static uint32_t take_long_by_queue(struct burst *burst, struct source *which)
{
    of_queue[which->queue]++;
    return take_long(burst, which);
}

static void test_queues_of_a_port_share_its_turns(void)
{
    start(MODE_POLL);
    struct source both[] = {{.ring = &a.ring, .port = &ports[1]},
                            {.ring = &b.ring, .port = &ports[1], .queue = 1}};
    worker.source = both;
    worker.source_count = 2;
    worker.forward = take_long_by_queue;
    a.ring.last_avail = b.ring.last_avail = 1;
    worker_tell(&worker, WORKER_GO);
    for (uint32_t i = 0; i < 20; i++)
        CHECK(worker_turn(&worker) == 2);
    SAME(0, of_queue[0], 20);
    SAME(1, of_queue[1], 20);
    close(worker.epoll_fd);
    close(worker.wake_fd);
    close(kick_fd);
}

/* A port that has been idle for long is looked at less often: but soon, and at once where no other
 * has packets. */
static uint32_t takes[2];

static uint32_t take_one(struct burst *burst, struct source *which)
{
    (void)burst;
    takes[which->port->index]++;
    if (which->port->index == 1)
        b.ring.last_avail++;
    return 1;
}

static void test_who_is_asleep_is_still_served(void)
{
    start(MODE_POLL);
    struct source both[] = {source, {.ring = &b.ring, .port = &ports[1]}};
    worker.source = both;
    worker.source_count = 2;
    worker.forward = take_one;
    a.ring.last_avail = 1; /* it has always something to do */
    worker_tell(&worker, WORKER_GO);
    both[1].awake = AWAKE_LOOKS;
    for (uint32_t i = 0; i < AWAKE_LOOKS; i++)
        CHECK(worker_turn(&worker) == 1);
    SAME(0, both[1].awake + takes[1], 0);
    b.ring.last_avail--;
    both[1].taken--; /* as if its guest had offered one */
    uint32_t before = takes[0];
    while (takes[1] == 0) {
        accounts_forgive(&worker.burst.accounts); /* who sits out ends all sleep */
        CHECK(worker_turn(&worker) > 0 && takes[0] - before < 1000000);
    }
    SAME(1, both[1].awake, AWAKE_LOOKS);
    both[1].awake = 0;
    a.ring.last_avail = a.ring.avail->idx;
    both[0].taken = a.ring.last_avail;
    b.ring.last_avail--;
    both[1].taken--;
    worker.looked_at_all = cycle_count();
    CHECK(worker_turn(&worker) == 1);
    SAME(2, takes[1], 2);
    close(worker.epoll_fd);
    close(worker.wake_fd);
    close(kick_fd);
}

int main(void)
{
    test_who_is_asleep_is_still_served();
    test_who_takes_more_sits_out();
    test_queues_of_a_port_share_its_turns();
    test_several_wait_for_one_receiver();
    test_mode(MODE_INTERRUPT, FRAME_COUNT);
    test_mode(MODE_ADAPTIVE, FRAME_COUNT);
    test_mode(MODE_POLL, FRAME_COUNT / 10);
    return 0;
}
