/* The bell is heard as often as it is rung, by whoever waits, and waits for nobody: not for a full
 * counter that blocks, nor for what is no eventfd. Both with the kernel's help and without. */
#include "bell.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "check.h"

enum { THREAD_COUNT = 4, TIMES = 5000 };

static uint64_t heard(int fd)
{
    uint64_t count = 0;
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    return read(fd, &count, sizeof count) == sizeof count ? count : 0;
}

static void *ring_often(void *argument)
{
    for (uint32_t i = 0; i < TIMES; i++)
        bell_ring(*(int *)argument);
    return NULL;
}

static void test_each_is_counted(void)
{
    pthread_t thread[THREAD_COUNT];
    int fd = eventfd(0, EFD_CLOEXEC);
    for (size_t i = 0; i < THREAD_COUNT; i++)
        CHECK(pthread_create(&thread[i], NULL, ring_often, &fd) == 0);
    for (size_t i = 0; i < THREAD_COUNT; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    SAME(-1, heard(fd), THREAD_COUNT * TIMES);
    close(fd);
}

/* Edge-triggered: also one that was never read is told each time. */
static void test_whoever_waits_is_woken(void)
{
    int fd = eventfd(0, EFD_CLOEXEC), epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    CHECK(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0);
    for (long i = 0; i < 3; i++) {
        SAME(i, epoll_wait(epoll_fd, &event, 1, 0), 0);
        bell_ring(fd);
        SAME(i, epoll_wait(epoll_fd, &event, 1, 0), 1);
    }
    close(fd);
    close(epoll_fd);
}

/* A wait would be for ever: the alarm ends the test then. */
static void test_a_full_one_that_blocks(void)
{
    const uint64_t most = UINT64_MAX - 1;
    int fd = eventfd(0, EFD_CLOEXEC);
    CHECK(write(fd, &most, sizeof most) == sizeof most);
    alarm(20);
    for (uint32_t i = 0; i < TIMES; i++)
        bell_ring(fd);
    alarm(0);
    CHECK(heard(fd) >= most);
    bell_ring(fd);
    SAME(-1, heard(fd), 1);
    close(fd);
}

/* As Python's multiprocessing does. */
static void test_a_child_rings_too(void)
{
    int fd = eventfd(0, EFD_CLOEXEC), status;
    pid_t child = fork();
    if (child == 0) {
        for (uint32_t i = 0; i < TIMES; i++)
            bell_ring(fd);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    SAME(-1, heard(fd), TIMES);
    close(fd);
}

static void test_what_is_no_eventfd(void)
{
    int end[2];
    CHECK(pipe(end) == 0);
    bell_ring(end[0]);
    close(end[0]);
    bell_ring(end[0]);
    close(end[1]);
}

static void test_all(void)
{
    test_each_is_counted();
    test_whoever_waits_is_woken();
    test_a_full_one_that_blocks();
    test_a_child_rings_too();
    test_what_is_no_eventfd();
}

int main(void)
{
    SAME(0, bell.context, 0);
    test_all();
    CHECK(bell_install() && bell_install());
    test_all();
    return 0;
}
