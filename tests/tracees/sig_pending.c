/* Pending signals: order, values, senders; of the process and of single threads. */
#include "threads.h"

static volatile bool go;

static void queue_to_thread(pid_t tid, int sig, int value)
{
    siginfo_t info = {.si_signo = sig, .si_code = SI_QUEUE};
    info.si_pid = getpid();
    info.si_uid = getuid();
    info.si_value.sival_int = value;
    MUST(syscall(SYS_rt_tgsigqueueinfo, getpid(), tid, sig, &info));
}

/* Takes the next pending signal of a set without waiting. */
static void take(const char *what, int sig, int want_code, int want_value)
{
    sigset_t set;
    siginfo_t info = {0};
    struct timespec now = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, sig);
    /* Raw, because libc turns SI_TKILL into SI_USER. */
    int got = (int)syscall(SYS_rt_sigtimedwait, &set, &info, &now, 8);
    CHECK(got == sig, "%s: signal %d expected pending, got %d (%s)", what, sig, got,
          strerror(errno));
    CHECK_EQ(what, want_code, info.si_code);
    CHECK_EQ("sender", getpid(), info.si_pid);
    if (want_code == SI_QUEUE)
        CHECK_EQ("value", want_value, info.si_value.sival_int);
}

static void check_drained(const char *who)
{
    sigset_t all;
    struct timespec now = {0, 0};
    sigfillset(&all);
    int got = sigtimedwait(&all, NULL, &now);
    CHECK(got == -1 && errno == EAGAIN, "%s: unexpected pending signal %d", who, got);
}

static void body(struct tr_thread *t)
{
    while (!go)
        tr_sleep_ms(2);
    /* Its own signals first; those of the process are taken by the main thread. */
    for (int i = 0; i < 3; i++)
        take("thread, realtime", SIGRTMIN + 5, SI_QUEUE, 100 * t->index + i);
    take("thread, SIGUSR2", SIGUSR2, SI_TKILL, 0);
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[2];
    sigset_t all, pending;
    tr_init(argc, argv);
    sigfillset(&all);
    MUST(pthread_sigmask(SIG_BLOCK, &all, NULL));
    for (int i = 0; i < 2; i++) {
        threads[i].index = i;
        tr_thread_start(&threads[i], body, NULL);
        for (int k = 0; k < 3; k++)
            queue_to_thread(threads[i].tid, SIGRTMIN + 5, 100 * i + k);
        CHECK_EQ("pthread_kill", 0, pthread_kill(threads[i].handle, SIGUSR2));
    }
    for (int k = 0; k < 40; k++)
        MUST(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 1000 + k}));
    MUST(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 7}));
    MUST(sigqueue(getpid(), SIGTERM, (union sigval){.sival_int = 8}));
    MUST(kill(getpid(), SIGINT));
    queue_to_thread(tr_gettid(), SIGUSR1, 9);

    tr_hold();

    MUST(sigpending(&pending));
    CHECK(sigismember(&pending, SIGTERM) && sigismember(&pending, SIGRTMIN + 2),
          "sigpending does not show the pending signals");
    for (int k = 0; k < 40; k++)
        take("process, realtime", SIGRTMIN + 1, SI_QUEUE, 1000 + k);
    take("process, another realtime", SIGRTMIN + 2, SI_QUEUE, 7);
    take("process, SIGTERM with a value", SIGTERM, SI_QUEUE, 8);
    take("process, SIGINT", SIGINT, SI_USER, 0);
    take("main thread, SIGUSR1", SIGUSR1, SI_QUEUE, 9);
    check_drained("main thread");
    go = true;
    for (int i = 0; i < 2; i++)
        tr_thread_join(&threads[i]);
    check_drained("at the end");
    return tr_pass(NULL);
}
