/* POSIX timers: ids with gaps, all notifications, clocks, time left and overrun. */
#include "threads.h"

enum { TIMERS = 8 };

/* Raw calls: libc's timer_t hides the kernel's id. */
static int make(clockid_t clock, int notify, int sig, int value, pid_t tid)
{
    int id = -1;
    struct sigevent ev = {.sigev_notify = notify, .sigev_signo = sig};
    ev.sigev_value.sival_int = value;
    ev._sigev_un._tid = tid;
    MUST(syscall(SYS_timer_create, clock, &ev, &id));
    return id;
}

static void set(int id, int flags, long long first_ns, long long every_ns)
{
    struct itimerspec v = {{every_ns / 1000000000, every_ns % 1000000000},
                           {first_ns / 1000000000, first_ns % 1000000000}};
    MUST(syscall(SYS_timer_settime, id, flags, &v, NULL));
}

static struct itimerspec get(int id)
{
    struct itimerspec v;
    MUST(syscall(SYS_timer_gettime, id, &v));
    return v;
}

static long long left_ns(int id)
{
    struct itimerspec v = get(id);
    return v.it_value.tv_sec * 1000000000LL + v.it_value.tv_nsec;
}

/* Waits for a signal of a timer in the calling thread. */
static void take(const char *what, int sig, int want_value, int want_timer)
{
    sigset_t one;
    siginfo_t info;
    sigemptyset(&one);
    sigaddset(&one, sig);
    int got = sigtimedwait(&one, &info, &(struct timespec){20, 0});
    CHECK(got == sig, "%s: no signal %d (%s)", what, sig, strerror(errno));
    CHECK_EQ(what, SI_TIMER, info.si_code);
    CHECK_EQ("value of a timer signal", want_value, info.si_value.sival_int);
    CHECK_EQ("timer id in the signal", want_timer, info.si_timerid);
}

static _Atomic int thread_timer = -1;

static void body(struct tr_thread *t)
{
    (void)t;
    while (thread_timer < 0)
        tr_sleep_ms(1);
    take("SIGEV_THREAD_ID", SIGRTMIN + 3, 33, thread_timer);
}

int main(int argc, char **argv)
{
    static struct tr_thread thread;
    int spare[TIMERS];
    sigset_t all;
    tr_init(argc, argv);
    sigfillset(&all);
    MUST(pthread_sigmask(SIG_BLOCK, &all, NULL));
    tr_thread_start(&thread, body, NULL);
    for (int i = 0; i < TIMERS; i++)
        spare[i] = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
    int mono = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 1, 11, 0);
    int real = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 2, 22, 0);
    int mine = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 3, 33, thread.tid);
    int none = make(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0, 0);
    int idle = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 4, 44, 0);
    for (int i = 0; i < TIMERS; i++)
        if (i % 3 != 0)
            MUST(syscall(SYS_timer_delete, spare[i]));
    long long due = tr_now_ns(CLOCK_REALTIME) + 2000000000LL;
    long long start = tr_now_ns(CLOCK_MONOTONIC);
    set(mono, 0, 2000000000LL, 300000000LL);
    set(real, TIMER_ABSTIME, due, 0);
    set(mine, 0, 2000000000LL, 0);
    set(none, 0, 500000000000LL, 7000000000LL);

    tr_hold();

    for (int i = 0; i < TIMERS; i++) {
        struct itimerspec v;
        long r = syscall(SYS_timer_gettime, spare[i], &v);
        CHECK(i % 3 == 0 ? r == 0 : r == -1 && errno == EINVAL,
              "timer id %d: timer_gettime gave %ld", spare[i], r);
    }
    CHECK(left_ns(none) > 300000000000LL && left_ns(none) <= 500000000000LL,
          "SIGEV_NONE timer: %lld ns left", left_ns(none));
    CHECK_EQ("interval", 7, get(none).it_interval.tv_sec);
    CHECK_EQ("disarmed timer", 0, left_ns(idle));
    thread_timer = mine;
    take("CLOCK_MONOTONIC", SIGRTMIN + 1, 11, mono);
    CHECK(tr_now_ns(CLOCK_MONOTONIC) - start >= 2000000000LL, "relative timer fired early");
    take("CLOCK_REALTIME, absolute", SIGRTMIN + 2, 22, real);
    CHECK(tr_now_ns(CLOCK_REALTIME) >= due, "absolute timer fired early");
    take("second expiration", SIGRTMIN + 1, 11, mono);
    set(idle, 0, 1000000, 0);
    take("timer armed after", SIGRTMIN + 4, 44, idle);
    tr_thread_join(&thread);
    int fresh = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0, 0);
    bool taken = fresh == mono || fresh == real || fresh == mine || fresh == none || fresh == idle;
    CHECK(!taken, "timer id %d was given twice", fresh);
    return tr_pass(NULL);
}
