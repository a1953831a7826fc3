/*
 * Threads that sense every disturbance: checksums in registers, sleeps and waits that must not end
 * early, signals that must arrive exactly once. Counts its rounds in `beat`, says in `failed` what went wrong.
 *
 * "stops" as argument tells it that its tracer may die at any instant. A thread that was stopped for a tracer that
 * is no more goes on as after SIGSTOP and SIGCONT; of the waits here, epoll_wait may then fail with EINTR (signal(7)).
 * These are counted in `interrupted`; nothing else is let pass.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CHECKSUM, DOUBLES, SLEEP, EPOLL, POLL, SIGNALS, PIPES, KINDS };
static _Atomic unsigned long rounds[KINDS], interrupted;
static int stops;

static void put(const char *name, const char *text)
{
    char fresh[64];
    snprintf(fresh, sizeof fresh, ".%s.%d", name, (int)syscall(SYS_gettid));
    int fd = open(fresh, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd) != 0 || rename(fresh, name) != 0)
        _exit(2);
}

__attribute__((noreturn, format(printf, 1, 2)))
static void fail(const char *fmt, ...)
{
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    put("failed", text);
    _exit(1);
}

static long long now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static uint64_t digest(uint64_t seed)
{
    uint64_t a = seed, b = ~seed, c = seed * 3, d = seed ^ 0x55, e = 1, f = 2, g = 3, h = 4;
    for (int i = 0; i < 20000; i++) {
        a = a * 6364136223846793005ULL + b; b ^= a >> 7; c += b * 3; d ^= c << 5;
        e = e * 31 + d; f ^= e >> 11; g += f; h = (h << 1 | h >> 63) ^ g;
    }
    return a ^ b ^ c ^ d ^ e ^ f ^ g ^ h;
}

static void *checksum(void *arg)
{
    const uint64_t want = digest(42);
    for (;; rounds[CHECKSUM]++)
        if (digest(42) != want)
            fail("a checksum in registers came out wrong");
    return arg;
}

static double series(double x)
{
    double a = x, b = 1, c = 0.5, d = 0.25;
    for (int i = 0; i < 20000; i++) {
        a = a * 0.999 + b; b = b * 0.5 + c / (a * a + 1); c = c * 0.25 + d; d = d * 0.125 + a * 1e-6;
    }
    return a + b + c + d;
}

static void *doubles(void *arg)
{
    const double want = series(3);
    for (;; rounds[DOUBLES]++)
        if (series(3) != want)
            fail("a sum in vector registers came out wrong");
    return arg;
}

/* A wait of `us` that said `status`: it must have said "time is up", and not before. */
static void check_wait(const char *what, int status, int error, long long begun, long long us)
{
    long long took = now_us() - begun;
    if (status != 0)
        fail("%s: %d, %s", what, status, strerror(error));
    if (took < us)
        fail("%s ended after %lld us instead of %lld", what, took, us);
}

static void *sleeper(void *arg)
{
    for (;; rounds[SLEEP]++) {
        struct timespec ts = {0, 7000000};
        long long begun = now_us();
        int status = nanosleep(&ts, NULL);
        check_wait("nanosleep", status, errno, begun, 7000);
    }
    return arg;
}

static void *epoller(void *arg)
{
    int fd = epoll_create1(EPOLL_CLOEXEC);
    for (;; rounds[EPOLL]++) {
        struct epoll_event event;
        long long begun = now_us();
        int status = epoll_wait(fd, &event, 1, 6);
        if (stops && status == -1 && errno == EINTR) {
            interrupted++;
            continue;
        }
        check_wait("epoll_wait", status, errno, begun, 6000);
    }
    return arg;
}

static void *poller(void *arg)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        fail("pipe");
    for (;; rounds[POLL]++) {
        struct pollfd one = {ends[0], POLLIN, 0};
        long long begun = now_us();
        int status = poll(&one, 1, 5);
        check_wait("poll", status, errno, begun, 5000);
    }
    return arg;
}

static _Atomic unsigned long handled, queued;

static void on_signal(int sig, siginfo_t *info, void *context)
{
    (void)sig, (void)context;
    if (info->si_code != SI_TKILL && info->si_code != SI_QUEUE)
        handled += 1000000;
    handled++;
    if (info->si_code == SI_QUEUE && (unsigned long)info->si_value.sival_int != queued)
        handled += 1000000;
}

/* One signal of each sort a round, to this very thread, which handles it before the call returns. */
static void *signaller(void *arg)
{
    for (unsigned long n = 1;; n++, rounds[SIGNALS]++) {
        queued = n & 0xffffff;
        siginfo_t info = {.si_signo = SIGRTMIN, .si_code = SI_QUEUE, .si_value.sival_int = n & 0xffffff};
        if (syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGUSR1) != 0)
            fail("tgkill: %s", strerror(errno));
        if (syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), SIGRTMIN, &info) != 0)
            fail("rt_tgsigqueueinfo: %s", strerror(errno));
        if (handled != 2 * n)
            fail("%lu signals handled instead of %lu", (unsigned long)handled, 2 * n);
        usleep(500);
    }
    return arg;
}

static void *piper(void *arg)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        fail("pipe");
    for (unsigned long n = 0;; n++, rounds[PIPES]++) {
        unsigned long got = 0;
        if (write(ends[1], &n, sizeof n) != sizeof n || read(ends[0], &got, sizeof got) != sizeof got)
            fail("pipe: %s", strerror(errno));
        if (got != n)
            fail("%lu came out of the pipe instead of %lu", got, n);
        usleep(200);
    }
    return arg;
}

int main(int argc, char **argv)
{
    stops = argc > 1 && strcmp(argv[1], "stops") == 0;
    void *(*bodies[])(void *) = {checksum, doubles, sleeper, epoller, poller, signaller, piper};
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGRTMIN, &action, NULL);
    for (int kind = 0; kind < KINDS; kind++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, bodies[kind], NULL) != 0)
            fail("pthread_create");
    }
    unsigned long least;
    for (unsigned long beat = 1;; beat++) {
        char text[32];
        usleep(5000);
        /* All of them have to get on, not just this thread. */
        least = ~0UL;
        for (int kind = 0; kind < KINDS; kind++) {
            if (rounds[kind] < least)
                least = rounds[kind];
        }
        snprintf(text, sizeof text, "%lu", least < beat ? least : beat);
        put("beat", text);
        snprintf(text, sizeof text, "%lu", interrupted);
        put("interrupted", text);
    }
}
