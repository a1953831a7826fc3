/* Threads blocked in sigtimedwait (with and without timeout), pause and sigsuspend. */
#include "threads.h"

static _Atomic int handled;

static void on_usr1(int sig)
{
    (void)sig;
    handled++;
}

static void wait_for_value(struct tr_thread *t)
{
    sigset_t set;
    siginfo_t info;
    (void)t;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN);
    int sig = sigwaitinfo(&set, &info);
    CHECK(sig == SIGRTMIN, "sigwaitinfo: expected %d, got %d (%s)", SIGRTMIN, sig,
          strerror(errno));
    CHECK_EQ("value of the awaited signal", 4711, info.si_value.sival_int);
}

static void wait_timeout(struct tr_thread *t)
{
    sigset_t set;
    struct timespec ts = {2, 0};
    long long start = tr_now_ns(CLOCK_MONOTONIC);
    (void)t;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    int r = sigtimedwait(&set, NULL, &ts);
    CHECK(r == -1 && errno == EAGAIN, "sigtimedwait: expected EAGAIN, got %d (%s)", r,
          strerror(errno));
    CHECK(tr_now_ns(CLOCK_MONOTONIC) - start >= 2000000000LL, "sigtimedwait ended early");
}

static void suspend(struct tr_thread *t)
{
    sigset_t during, blocked, after;
    (void)t;
    sigfillset(&during);
    sigdelset(&during, SIGUSR1);
    /* What another thread waits for must stay blocked here. */
    sigfillset(&blocked);
    sigdelset(&blocked, SIGWINCH);
    MUST(pthread_sigmask(SIG_SETMASK, &blocked, NULL));
    int r = sigsuspend(&during);
    CHECK(r == -1 && errno == EINTR, "sigsuspend gave %d", r);
    MUST(pthread_sigmask(SIG_SETMASK, NULL, &after));
    sigdelset(&blocked, SIGKILL);
    sigdelset(&blocked, SIGSTOP);
    for (int sig = 1; sig < 64; sig++)
        CHECK(sigismember(&after, sig) == sigismember(&blocked, sig),
              "mask after sigsuspend: signal %d", sig);
}

static void wait_pause(struct tr_thread *t)
{
    sigset_t most;
    (void)t;
    sigfillset(&most);
    sigdelset(&most, SIGUSR1);
    MUST(pthread_sigmask(SIG_SETMASK, &most, NULL));
    CHECK(pause() == -1 && errno == EINTR, "pause: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[4];
    static void (*const bodies[])(struct tr_thread *) = {wait_for_value, wait_timeout, suspend,
                                                         wait_pause};
    static const long calls[] = {SYS_rt_sigtimedwait, SYS_rt_sigtimedwait, SYS_rt_sigsuspend,
                                 SYS_pause};
    sigset_t all;
    tr_init(argc, argv);
    struct sigaction sa = {.sa_handler = on_usr1};
    MUST(sigaction(SIGUSR1, &sa, NULL));
    sigfillset(&all);
    MUST(pthread_sigmask(SIG_BLOCK, &all, NULL));
    for (int i = 0; i < 4; i++) {
        tr_thread_start(&threads[i], bodies[i], NULL);
        tr_await_syscall(threads[i].tid, calls[i]);
    }

    tr_hold();

    CHECK_EQ("handler runs before any signal", 0, handled);
    union sigval value = {.sival_int = 4711};
    MUST(sigqueue(getpid(), SIGRTMIN, value));
    tr_await_syscall(threads[2].tid, SYS_rt_sigsuspend);
    tr_await_syscall(threads[3].tid, SYS_pause);
    CHECK_EQ("kill of one thread", 0, pthread_kill(threads[2].handle, SIGUSR1));
    CHECK_EQ("kill of one thread", 0, pthread_kill(threads[3].handle, SIGUSR1));
    for (int i = 0; i < 4; i++)
        tr_thread_join(&threads[i]);
    CHECK_EQ("handler runs", 2, handled);
    return tr_pass(NULL);
}
