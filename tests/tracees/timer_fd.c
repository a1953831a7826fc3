/* timerfd: time left, interval, expirations that nobody has read yet. */
#include "tracee.h"

#include <sys/timerfd.h>

static int make(clockid_t clock, int fd_flags, int flags, long long first_ms, long long every_ms)
{
    int fd = MUST(timerfd_create(clock, fd_flags));
    struct itimerspec v = {{every_ms / 1000, every_ms % 1000 * 1000000},
                           {first_ms / 1000, first_ms % 1000 * 1000000}};
    MUST(timerfd_settime(fd, flags, &v, NULL));
    return fd;
}

static uint64_t expirations(int fd)
{
    uint64_t n = 0;
    CHECK_EQ("size of a timerfd read", 8, read(fd, &n, 8));
    return n;
}

static long long left_ms(int fd, long long *interval_ms)
{
    struct itimerspec v;
    MUST(timerfd_gettime(fd, &v));
    *interval_ms = v.it_interval.tv_sec * 1000 + v.it_interval.tv_nsec / 1000000;
    return v.it_value.tv_sec * 1000 + v.it_value.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
    long long every, left, start;
    tr_init(argc, argv);
    int far = make(CLOCK_MONOTONIC, TFD_CLOEXEC, 0, 600000, 3000);
    int ticking = make(CLOCK_MONOTONIC, TFD_NONBLOCK, 0, 10, 1000000);
    int rapid = make(CLOCK_BOOTTIME, 0, 0, 20, 20);
    /* Relative, so it runs on the monotonic clock: somebody may set the clock of the wall meanwhile. */
    start = tr_now_ns(CLOCK_MONOTONIC);
    int soon = make(CLOCK_REALTIME, 0, 0, 2000, 0);
    int idle = MUST(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    /* Both have expired, unread, before the checkpoint. */
    tr_sleep_ms(130);

    tr_hold();

    CHECK_EQ("expirations nobody read", 1, expirations(ticking));
    uint64_t n = 0;
    CHECK(read(ticking, &n, 8) == -1 && errno == EAGAIN, "the expiration was delivered twice");
    n = expirations(rapid);
    CHECK(n >= 5, "rapid timer: expected at least 5 expirations, got %llu",
          (unsigned long long)n);
    CHECK(expirations(rapid) >= 1, "rapid timer stands still");
    left = left_ms(far, &every);
    CHECK(left > 400000 && left < 600000, "far timer: %lld ms left", left);
    CHECK_EQ("interval in ms", 3000, every);
    left = left_ms(ticking, &every);
    CHECK(left > 800000 && left < 1000000, "ticking timer: %lld ms left", left);
    CHECK_EQ("expirations of a single shot", 1, expirations(soon));
    CHECK(tr_now_ns(CLOCK_MONOTONIC) - start >= 1990000000LL, "single shot came early");
    CHECK_EQ("disarmed timer", 0, left_ms(idle, &every));
    CHECK(read(idle, &n, 8) == -1 && errno == EAGAIN, "a disarmed timer expired");
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(far, F_GETFD));
    CHECK_EQ("nonblock", O_RDWR | O_NONBLOCK, fcntl(idle, F_GETFL));
    return tr_pass(NULL);
}
