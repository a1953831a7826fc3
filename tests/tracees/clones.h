/* Children that share parts of their parent. */
#ifndef TRACEE_CLONES_H
#define TRACEE_CLONES_H

#include "tracee.h"

#include <linux/kcmp.h>
#include <sched.h>

/* A child by clone(2) on a stack of its own, sharing what flags say. */
static inline pid_t tr_clone(int (*body)(void *), void *arg, int flags)
{
    const size_t size = 256 * 1024;
    char *stack = MUST((char *)mmap(NULL, size, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0));
    return MUST(clone(body, stack + size, flags | SIGCHLD, arg));
}

static inline void tr_check_shared(pid_t child, int kind, const char *what, bool want)
{
    long r = MUST(syscall(SYS_kcmp, getpid(), child, kind, 0, 0));
    CHECK((r == 0) == want, "%s: expected %s", what, want ? "shared" : "separate");
}

#endif
