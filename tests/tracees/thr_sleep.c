/* Sleeps: relative and absolute, short of nothing and never interrupted. */
#include "threads.h"

#define SECOND 1000000000LL

struct nap {
    const char *name;
    clockid_t clock;
    int flags;
    long long length;
};

static struct nap naps[] = {
    {"relative, monotonic", CLOCK_MONOTONIC, 0, 2 * SECOND},
    {"relative, realtime", CLOCK_REALTIME, 0, 2 * SECOND},
    {"absolute, monotonic", CLOCK_MONOTONIC, TIMER_ABSTIME, 2 * SECOND},
    {"absolute, realtime", CLOCK_REALTIME, TIMER_ABSTIME, 2 * SECOND},
    {"relative, boottime", CLOCK_BOOTTIME, 0, 2 * SECOND},
    {"long ago, absolute", CLOCK_MONOTONIC, TIMER_ABSTIME, 50000000},
};
enum { NAPS = sizeof naps / sizeof naps[0] };

static void sleeper(struct tr_thread *t)
{
    const struct nap *n = t->arg;
    /* A relative sleep runs on the monotonic clock even for the realtime one, which may be set meanwhile. */
    bool wall = n->clock == CLOCK_REALTIME && n->flags == 0;
    clockid_t meter = wall ? CLOCK_MONOTONIC : n->clock;
    long long start = tr_now_ns(meter);
    long long ask = n->flags & TIMER_ABSTIME ? start + n->length : n->length;
    struct timespec ts = {ask / SECOND, ask % SECOND};
    struct timespec rest = {77, 77};
    int err = clock_nanosleep(n->clock, n->flags, &ts, &rest);
    long long slept = tr_now_ns(meter) - start;
    CHECK(err == 0, "%s: expected success, got %s", n->name, strerror(err));
    CHECK(slept >= n->length, "%s: expected %lld ns, slept %lld", n->name, n->length, slept);
}

static void plain_nanosleep(struct tr_thread *t)
{
    struct timespec ts = {2, 0};
    long long start = tr_now_ns(CLOCK_MONOTONIC);
    (void)t;
    CHECK(syscall(SYS_nanosleep, &ts, &ts) == 0, "nanosleep: %s", strerror(errno));
    CHECK(tr_now_ns(CLOCK_MONOTONIC) - start >= 2 * SECOND, "nanosleep returned early");
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[NAPS], plain;
    tr_init(argc, argv);
    for (int i = 0; i < NAPS; i++)
        tr_thread_start(&threads[i], sleeper, &naps[i]);
    tr_thread_start(&plain, plain_nanosleep, NULL);
    tr_sleep_ms(20);

    tr_hold();

    for (int i = 0; i < NAPS; i++)
        tr_thread_join(&threads[i]);
    tr_thread_join(&plain);
    return tr_pass(NULL);
}
