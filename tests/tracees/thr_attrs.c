/* 100 threads, each with its own name, mask, alternate stack, TLS and tid. */
#include "threads.h"

#include <sched.h>

enum { THREADS = 100 };

static _Thread_local uint64_t tls_data = 7;
static _Thread_local char tls_block[5000];
static pthread_barrier_t set_up;
static volatile bool go;

static void own_mask(int index, sigset_t *set)
{
    sigemptyset(set);
    for (int bit = 0; bit < 7; bit++)
        if (index >> bit & 1)
            sigaddset(set, SIGRTMIN + bit);
}

static void own_name(int index, char *name)
{
    snprintf(name, 16, "actor %d", index);
}

static void set_up_thread(struct tr_thread *t, void *altstack)
{
    sigset_t set;
    char name[16];
    own_name(t->index, name);
    MUST(pthread_setname_np(pthread_self(), name));
    own_mask(t->index, &set);
    MUST(sigprocmask(SIG_SETMASK, &set, NULL));
    MUST(sigaltstack(&(stack_t){.ss_sp = altstack, .ss_size = 16384 + t->index * 16}, NULL));
    tls_data = tr_mix(t->index);
    tr_fill(tls_block, sizeof tls_block, t->index);
    errno = 1000 + t->index;
}

static void check_thread(struct tr_thread *t, void *altstack, pthread_t self)
{
    sigset_t want, got;
    stack_t ss;
    char name[16], want_name[16];
    CHECK_EQ("errno of a thread", 1000 + t->index, errno);
    CHECK_EQ("gettid", t->tid, tr_gettid());
    CHECK(pthread_equal(self, pthread_self()), "pthread_self changed");
    own_name(t->index, want_name);
    MUST(pthread_getname_np(pthread_self(), name, sizeof name));
    tr_check_str("thread name", want_name, name);
    own_mask(t->index, &want);
    MUST(sigprocmask(SIG_SETMASK, NULL, &got));
    for (int sig = 1; sig < 64; sig++)
        CHECK(sigismember(&want, sig) == sigismember(&got, sig),
              "mask of thread %d: signal %d expected %d", t->index, sig,
              sigismember(&want, sig));
    MUST(sigaltstack(NULL, &ss));
    CHECK(ss.ss_sp == altstack, "altstack of thread %d expected %p, got %p", t->index, altstack,
          ss.ss_sp);
    CHECK_EQ("altstack size", 16384 + t->index * 16, ss.ss_size);
    CHECK_EQ("altstack flags", 0, ss.ss_flags);
    CHECK(tls_data == tr_mix(t->index), "TLS word of thread %d changed", t->index);
    tr_verify("TLS block", tls_block, sizeof tls_block, t->index);
}

static void body(struct tr_thread *t)
{
    char *altstack = malloc(32768);
    pthread_t self = pthread_self();
    set_up_thread(t, altstack);
    pthread_barrier_wait(&set_up);
    errno = 1000 + t->index;
    /* Half of the threads burn CPU, the others sleep in the kernel. */
    while (!go) {
        if (t->index % 20 == 0)
            sched_yield();
        else
            syscall(SYS_nanosleep, &(struct timespec){0, 10000000}, NULL);
    }
    check_thread(t, altstack, self);
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[THREADS];
    tr_init(argc, argv);
    pthread_barrier_init(&set_up, NULL, THREADS + 1);
    for (int i = 0; i < THREADS; i++) {
        threads[i].index = i;
        tr_thread_start(&threads[i], body, NULL);
    }
    pthread_barrier_wait(&set_up);

    tr_hold();

    go = true;
    for (int i = 0; i < THREADS; i++)
        tr_thread_join(&threads[i]);
    CHECK_EQ("tid of the main thread", getpid(), tr_gettid());
    return tr_pass(NULL);
}
