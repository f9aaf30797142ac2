/* Memory that vanishes ends the body and nothing else; what is a bug ends the process; and the way
 * in costs no system call. */
#include "guard.h"

#include <linux/seccomp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "vanish.h"

enum { PAGES = 3, ROUNDS = 1000, THREAD_COUNT = 4 };

struct reading {
    struct vanishing memory;
    size_t offset;
    uint32_t begun, ended;
};

static bool holds(const void *owner, const uint8_t *address)
{
    const struct vanishing *memory = owner;
    return (size_t)(address - memory->host) < memory->page_count * PAGE;
}

static void read_body(void *argument)
{
    struct reading *it = argument;
    it->begun++;
    (void)*(volatile uint8_t *)(it->memory.host + it->offset);
    it->ended++;
}

static void *vanish_and_read(void *argument)
{
    (void)argument;
    struct reading it = {0};
    struct guard guard = {.holds = holds, .owner = &it.memory};
    vanishing_take(&it.memory, PAGES);
    vanish(&it.memory, 1);
    for (uint32_t i = 0; i < ROUNDS; i++) {
        it.offset = random_below(PAGES * PAGE);
        bool there = it.offset / PAGE != 1;
        uint32_t ended = it.ended;
        SAME(i, guard_run(&guard, read_body, &it), there);
        SAME(i, it.ended - ended, there);
        CHECK(there || guard.vanished == it.memory.host + it.offset);
    }
    SAME(-1, it.begun, ROUNDS);
    vanishing_give(&it.memory);
    return NULL;
}

/* How a child ends that does this: by which signal, or 0 and the code of its exit. */
static int ended_by(void (*crime)(void), int *code)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        crime();
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child);
    *code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static struct reading stray;

static void no_core(void)
{
    prctl(PR_SET_DUMPABLE, 0);
    (void)signal(SIGBUS, SIG_DFL); /* not the sanitizer's */
    guard_install();
    vanishing_take(&stray.memory, PAGES);
    vanish(&stray.memory, 0);
}

static void touch_outside_of_a_guard(void)
{
    no_core();
    read_body(&stray);
}

static void touch_after_a_guard(void)
{
    struct guard guard = {.holds = holds, .owner = &stray.memory};
    no_core();
    CHECK(!guard_run(&guard, read_body, &stray));
    read_body(&stray);
}

static void touch_what_is_not_the_owners(void)
{
    struct vanishing other = {.host = (uint8_t *)&other, .page_count = 0};
    struct guard guard = {.holds = holds, .owner = &other};
    no_core();
    guard_run(&guard, read_body, &stray);
}

static void send_body(void *argument)
{
    (void)argument;
    CHECK(kill(getpid(), SIGBUS) == 0);
}

static void be_sent_a_signal(void)
{
    struct guard guard = {.holds = holds, .owner = &stray.memory};
    no_core();
    guard_run(&guard, send_body, NULL);
}

static void leave(int number)
{
    (void)number;
    _exit(7);
}

static void have_a_handler_before(void)
{
    (void)signal(SIGBUS, leave);
    guard_install();
    vanishing_take(&stray.memory, PAGES);
    vanish(&stray.memory, 0);
    read_body(&stray);
}

static struct sigaction below;

/* As Python's faulthandler does. */
static void speak_and_raise(int number)
{
    sigaction(SIGBUS, &below, NULL);
    (void)raise(number);
}

static void have_a_handler_above(void)
{
    struct guard guard = {.holds = holds, .owner = &stray.memory};
    struct sigaction above = {.sa_handler = speak_and_raise, .sa_flags = SA_NODEFER};
    no_core();
    sigaction(SIGBUS, &above, &below);
    _exit(guard_run(&guard, read_body, &stray) ? 1 : 9);
}

static void count_body(void *argument) { ++*(uint64_t *)argument; }

/* In strict mode a system call other than read, write, exit and sigreturn is the end. */
static void run_where_no_call_is_allowed(void)
{
    uint64_t count = 0;
    struct guard guard = {.holds = holds, .owner = &stray.memory};
    no_core();
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
    for (uint32_t i = 0; i < ROUNDS; i++)
        guard_run(&guard, count_body, &count);
    syscall(SYS_exit, count == ROUNDS ? 5 : 6);
}

static const struct {
    void (*crime)(void);
    int signal, code;
} ENDS[] = {
    {touch_outside_of_a_guard, SIGBUS, -1},
    {touch_after_a_guard, SIGBUS, -1},
    {touch_what_is_not_the_owners, SIGBUS, -1},
    {be_sent_a_signal, SIGBUS, -1},
    {have_a_handler_before, 0, 7},
    {have_a_handler_above, 0, 9},
    {run_where_no_call_is_allowed, 0, 5},
};

int main(void)
{
    pthread_t thread[THREAD_COUNT];
    for (size_t i = 0; i < COUNT(ENDS); i++) { /* before a thread, and before ours is installed */
        int code;
        SAME(i, ended_by(ENDS[i].crime, &code), ENDS[i].signal);
        SAME(i, code, ENDS[i].code);
    }
    guard_install();
    vanish_and_read(NULL);
    for (size_t i = 0; i < THREAD_COUNT; i++)
        CHECK(pthread_create(&thread[i], NULL, vanish_and_read, NULL) == 0);
    for (size_t i = 0; i < THREAD_COUNT; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    return 0;
}
