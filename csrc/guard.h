/* The guard: memory that vanishes under a map costs the port whose memory it was, not the process.
 *
 * A front-end may truncate a file that we have mapped, or leave no huge page for it: the next
 * access is a SIGBUS. Whoever touches guest memory or a log does it in a body that guard_run calls;
 * the handler takes the thread back there if the address is memory that the body's owner holds. Any
 * other SIGBUS is a bug, and goes to whoever had the signal before, in the end to the core dump.
 *
 * The way in is a setjmp without signal mask: no system call. What the body had half done is its
 * caller's to put right. It may rely on the order of the body's stores through pointers against
 * its accesses to guest memory: the compiler can't tell the two apart, so it keeps it.
 */
#ifndef VHOSTFAST_GUARD_H
#define VHOSTFAST_GUARD_H

#include <setjmp.h>
#include <signal.h>
#include <unistd.h>

#include "sync.h"

struct guard {
    bool (*holds)(const void *owner, const uint8_t *address); /* called in the signal handler */
    const void *owner;
    const uint8_t *vanished; /* where there is no memory any more */
    jmp_buf landing;
};

/* Each extension has these for itself, and its handler hands on what is not its own. */
static __thread struct guard *volatile guard_now;
static struct sigaction guard_before;

static void guard_caught(int number, siginfo_t *info, void *context)
{
    struct guard *guard = guard_now;
    bool gone = info->si_code == BUS_ADRERR || info->si_code == BUS_MCEERR_AR;
    if (guard != NULL && gone && guard->holds(guard->owner, info->si_addr)) {
        guard->vanished = info->si_addr;
        guard_now = NULL;
        _longjmp(guard->landing, 1);
    }
    /* A handler that was installed over ours has had its say, gave way to us and raised the signal
     * anew, as faulthandler does: back to the access, which faults again if it was one. */
    if (guard != NULL && info->si_code == SI_TKILL && info->si_pid == getpid())
        return;
    if (guard_before.sa_flags & SA_SIGINFO) {
        guard_before.sa_sigaction(number, info, context);
    } else if (guard_before.sa_handler != SIG_DFL && guard_before.sa_handler != SIG_IGN) {
        guard_before.sa_handler(number);
    } else {
        (void)signal(number, SIG_DFL); /* the access comes again, and ends the process there */
        if (info->si_code <= 0)
            (void)raise(number); /* nothing was accessed: somebody sent it */
    }
}

/* Once, before the first guard_run; again is harmless. Not by two threads at a time. */
static inline void guard_install(void)
{
    static bool installed;
    struct sigaction action = {.sa_sigaction = guard_caught, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (!installed)
        sigaction(SIGBUS, &action, &guard_before);
    installed = true;
}

/* Call the body. False: memory has vanished at guard->vanished, and the body ended there. */
static __attribute__((noinline)) bool guard_run(struct guard *guard, void (*body)(void *),
                                                void *argument)
{
    struct guard *volatile *now = &guard_now; /* looked up once */
    if (_setjmp(guard->landing) != 0)
        return false;
    *now = guard;
    fence_signal();
    body(argument);
    fence_signal();
    *now = NULL;
    return true;
}

#endif
