/* Clocks through the vDSO and through system calls do not go back. */
#include "tracee.h"

#include <sys/time.h>

static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME,
                                   CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE,
                                   CLOCK_PROCESS_CPUTIME_ID};
enum { CLOCKS = sizeof clocks / sizeof clocks[0] };

static long long raw_ns(clockid_t clock)
{
    struct timespec ts;
    MUST(syscall(SYS_clock_gettime, clock, &ts));
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

int main(int argc, char **argv)
{
    long long before[CLOCKS];
    struct timeval tv;
    tr_init(argc, argv);
    for (int i = 0; i < CLOCKS; i++)
        before[i] = tr_now_ns(clocks[i]);

    tr_hold();

    /* CPU time starts anew in a restored process; it must only be readable. */
    for (int i = 0; i < CLOCKS - 1; i++) {
        long long vdso = tr_now_ns(clocks[i]), raw = raw_ns(clocks[i]);
        CHECK(vdso >= before[i], "clock %d went back from %lld to %lld", clocks[i], before[i],
              vdso);
        CHECK(llabs(raw - vdso) < 5000000000LL, "clock %d: vDSO says %lld, kernel %lld",
              clocks[i], vdso, raw);
        CHECK(vdso - before[i] < 600000000000LL, "clock %d jumped by %lld ns", clocks[i],
              vdso - before[i]);
    }
    CHECK(tr_now_ns(CLOCK_PROCESS_CPUTIME_ID) >= 0, "CPU clock");
    MUST(gettimeofday(&tv, NULL));
    CHECK(llabs(tv.tv_sec - (long long)time(NULL)) <= 1, "gettimeofday and time disagree");
    return tr_pass(NULL);
}
