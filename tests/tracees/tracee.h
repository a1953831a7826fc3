/* Shared helpers of the self-checking tracees: reporting, waiting and patterns. */
#ifndef TRACEE_H
#define TRACEE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TR_PAGE 4096UL

static char tr_dir[PATH_MAX];

/* Path of a file in the scratch directory; the buffer is reused after 8 calls. */
static inline char *tr_path(const char *name)
{
    static _Thread_local char ring[8][PATH_MAX + 64];
    static _Thread_local unsigned next;
    char *slot = ring[next++ % 8];
    snprintf(slot, sizeof ring[0], "%s/%s", tr_dir, name);
    return slot;
}

/* The first report wins: a child's failure is not hidden by its parent's. */
static inline void tr_publish(const char *name, const char *text)
{
    char tmp[64];
    snprintf(tmp, sizeof tmp, ".%s.%d", name, (int)syscall(SYS_gettid));
    int fd = open(tr_path(tmp), O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) {
        fprintf(stderr, "cannot publish %s: %s (%s)\n", name, text, strerror(errno));
        _exit(2);
    }
    close(fd);
    if (link(tr_path(tmp), tr_path(name)) != 0 && errno != EEXIST)
        fprintf(stderr, "cannot link %s: %s (%s)\n", name, text, strerror(errno));
    unlink(tr_path(tmp));
}

__attribute__((noreturn, format(printf, 1, 2)))
static inline void tr_fail(const char *fmt, ...)
{
    char text[1024] = "FAIL: ";
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + 6, sizeof text - 6, fmt, ap);
    va_end(ap);
    fprintf(stderr, "[%d] %s\n", (int)getpid(), text);
    tr_publish("result", text);
    _exit(1);
}

#define CHECK(cond, ...)          \
    do {                          \
        if (!(cond))              \
            tr_fail(__VA_ARGS__); \
    } while (0)

/* Fails with strerror when the call gives -1 (or MAP_FAILED). */
#define MUST(expr)                                              \
    ({                                                          \
        __typeof__(expr) must_ = (expr);                        \
        if ((long)must_ == -1L)                                 \
            tr_fail("%s:%d: %s: %s", __FILE__, __LINE__, #expr, \
                    strerror(errno));                           \
        must_;                                                  \
    })

#define CHECK_EQ(what, want, got) \
    tr_check_eq(what, (long long)(want), (long long)(got))

static inline void tr_check_eq(const char *what, long long want, long long got)
{
    CHECK(want == got, "%s: expected %lld (0x%llx), got %lld (0x%llx)", what, want,
          (unsigned long long)want, got, (unsigned long long)got);
}

static inline void tr_check_str(const char *what, const char *want, const char *got)
{
    CHECK(strcmp(want, got) == 0, "%s: expected \"%s\", got \"%s\"", what, want, got);
}

/* Takes the scratch directory from the arguments. */
static inline void tr_init(int argc, char **argv)
{
    if (argc < 2 || realpath(argv[1], tr_dir) == NULL) {
        fprintf(stderr, "usage: %s SCRATCH_DIR\n", argv[0]);
        exit(2);
    }
    /* Whatever the starting shell left open is no part of the test. */
    MUST(syscall(SYS_close_range, 3, ~0U, 0));
    /* Tracees that change their identity still have to report here. */
    MUST(chmod(tr_dir, 0777));
}

static inline void tr_sleep_ms(long ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&ts, &ts) != 0 && errno == EINTR)
        ;
}

static inline long long tr_now_ns(clockid_t clock)
{
    struct timespec ts;
    MUST(clock_gettime(clock, &ts));
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static inline void tr_touch(const char *name) { tr_publish(name, "1"); }

/* Waits for a file without keeping any descriptor or timer. */
static inline void tr_await(const char *name)
{
    const struct timespec step = {0, 5000000};
    while (access(tr_path(name), F_OK) != 0)
        nanosleep(&step, NULL);
}

static inline void tr_ready(void) { tr_touch("ready"); }
static inline void tr_wait_go(void) { tr_await("go"); }

/* The usual middle of a tracee: state is set up, now be checkpointed. */
static inline void tr_hold(void)
{
    tr_ready();
    tr_wait_go();
}

/* Success; note is NULL or a remark such as why a part was skipped. */
static inline int tr_pass(const char *note)
{
    char text[512] = "ok";
    if (note != NULL)
        snprintf(text, sizeof text, "ok (%s)", note);
    tr_publish("result", text);
    return 0;
}

static inline pid_t tr_fork(void)
{
    fflush(NULL);
    return MUST(fork());
}

static inline void tr_check_exit(const char *what, pid_t pid, int want_status)
{
    int status = 0;
    pid_t got;
    do
        got = waitpid(pid, &status, 0);
    while (got < 0 && errno == EINTR);
    CHECK(got == pid, "%s: waitpid(%d) gave %d: %s", what, (int)pid, (int)got,
          strerror(errno));
    CHECK(status == want_status, "%s: wait status expected 0x%x, got 0x%x", what,
          (unsigned)want_status, (unsigned)status);
}

static inline uint64_t tr_mix(uint64_t x)
{
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15ULL;
    return x ^ (x >> 29);
}

/* Fills len bytes (a multiple of 8) with a sequence that depends on the seed. */
static inline void tr_fill(void *p, size_t len, uint64_t seed)
{
    uint64_t *w = p;
    for (size_t i = 0; i < len / 8; i++)
        w[i] = tr_mix(seed * 1000003 + i + 1);
}

static inline void tr_verify(const char *what, const void *p, size_t len, uint64_t seed)
{
    const uint64_t *w = p;
    for (size_t i = 0; i < len / 8; i++)
        CHECK(w[i] == tr_mix(seed * 1000003 + i + 1),
              "%s: word %zu of %zu: expected %llx, got %llx", what, i, len / 8,
              (unsigned long long)tr_mix(seed * 1000003 + i + 1),
              (unsigned long long)w[i]);
}

static inline void tr_verify_zero(const char *what, const void *p, size_t len)
{
    const unsigned char *b = p;
    for (size_t i = 0; i < len; i++)
        CHECK(b[i] == 0, "%s: byte %zu expected 0, got 0x%x", what, i, b[i]);
}

/* Reads a small (proc) file; the descriptor does not outlive the call. */
static inline size_t tr_slurp(const char *path, char *buf, size_t size)
{
    size_t used = 0;
    int fd = MUST(open(path, O_RDONLY | O_CLOEXEC));
    for (;;) {
        ssize_t n = MUST(read(fd, buf + used, size - 1 - used));
        if (n == 0 || (used += (size_t)n) == size - 1)
            break;
    }
    buf[used] = 0;
    close(fd);
    return used;
}

/* Value of a "Name:   value" line in a proc file, without the leading blanks. */
static inline void tr_proc_field(const char *path, const char *name, char *out, size_t size)
{
    static _Thread_local char text[16384];
    char key[64];
    tr_slurp(path, text, sizeof text);
    snprintf(key, sizeof key, "\n%s:", name);
    char *at = strstr(text, key);
    CHECK(at != NULL, "%s has no field %s", path, name);
    at += strlen(key);
    at += strspn(at, " \t");
    snprintf(out, size, "%.*s", (int)strcspn(at, "\n"), at);
}

/* Waits until a thread is blocked inside the given system call. */
static inline void tr_await_syscall(pid_t tid, long nr)
{
    char path[64], text[256];
    snprintf(path, sizeof path, "/proc/%d/syscall", (int)tid);
    for (;;) {
        tr_slurp(path, text, sizeof text);
        if (text[0] >= '0' && text[0] <= '9' && strtol(text, NULL, 10) == nr)
            return;
        tr_sleep_ms(2);
    }
}

/* Start time in ticks: changes when the process comes out of a restore. */
static inline long long tr_start_time(void)
{
    char text[1024];
    long long ticks = 0;
    tr_slurp("/proc/self/stat", text, sizeof text);
    char *at = strrchr(text, ')');
    for (int field = 2; field < 22; field++)
        at = strchr(at + 1, ' ');
    sscanf(at, "%lld", &ticks);
    return ticks;
}

static inline pid_t tr_gettid(void) { return (pid_t)syscall(SYS_gettid); }

#endif
