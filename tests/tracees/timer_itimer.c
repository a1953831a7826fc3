/* setitimer: real, virtual and profiling, values left and intervals. */
#include "tracee.h"

#include <sys/time.h>

static volatile int real_fired, virtual_fired, prof_fired;

static void on_timer(int sig)
{
    if (sig == SIGALRM)
        real_fired++;
    else if (sig == SIGVTALRM)
        virtual_fired++;
    else
        prof_fired++;
}

static long long left_us(const struct itimerval *v)
{
    return v->it_value.tv_sec * 1000000LL + v->it_value.tv_usec;
}

static void arm(int which, long first_ms, long every_ms)
{
    struct itimerval v = {{every_ms / 1000, every_ms % 1000 * 1000},
                          {first_ms / 1000, first_ms % 1000 * 1000}};
    MUST(setitimer(which, &v, NULL));
}

static void check_armed(const char *what, int which, long first_ms, long every_ms)
{
    struct itimerval v;
    MUST(getitimer(which, &v));
    CHECK_EQ(what, every_ms * 1000,
             v.it_interval.tv_sec * 1000000LL + v.it_interval.tv_usec);
    CHECK(left_us(&v) > 0 && left_us(&v) <= (first_ms + 20) * 1000, "%s: %lld us left", what,
          left_us(&v));
}

static void burn_until(volatile int *counter, int target)
{
    long long end = tr_now_ns(CLOCK_MONOTONIC) + 30000000000LL;
    while (*counter < target && tr_now_ns(CLOCK_MONOTONIC) < end)
        ;
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    struct sigaction sa = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
    MUST(sigaction(SIGALRM, &sa, NULL));
    MUST(sigaction(SIGVTALRM, &sa, NULL));
    MUST(sigaction(SIGPROF, &sa, NULL));
    long long start = tr_now_ns(CLOCK_MONOTONIC);
    arm(ITIMER_REAL, 3000, 250);
    arm(ITIMER_VIRTUAL, 300, 100);
    arm(ITIMER_PROF, 700000, 5000);

    tr_hold();

    check_armed("ITIMER_VIRTUAL", ITIMER_VIRTUAL, 300, 100);
    check_armed("ITIMER_PROF", ITIMER_PROF, 700000, 5000);
    while (real_fired == 0)
        tr_sleep_ms(5);
    CHECK(tr_now_ns(CLOCK_MONOTONIC) - start >= 2900000000LL, "ITIMER_REAL fired early");
    check_armed("ITIMER_REAL", ITIMER_REAL, 250, 250);
    while (real_fired < 3)
        tr_sleep_ms(5);
    burn_until(&virtual_fired, 2);
    CHECK(virtual_fired >= 2, "ITIMER_VIRTUAL fired %d times", virtual_fired);
    CHECK_EQ("ITIMER_PROF, far away", 0, prof_fired);
    return tr_pass(NULL);
}
