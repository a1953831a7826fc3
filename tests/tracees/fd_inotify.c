/* inotify: watch descriptors (with a gap) and masks stay, new events arrive. */
#include "tracee.h"

#include <sys/inotify.h>

/* Skips to the event wanted; others (such as from the harness) may come between. */
static void expect(int fd, int wd, uint32_t mask, const char *name)
{
    static char buf[4096] __attribute__((aligned(8)));
    static size_t have, at;
    long long end = tr_now_ns(CLOCK_MONOTONIC) + 10000000000LL;
    for (;;) {
        if (at >= have) {
            ssize_t n = read(fd, buf, sizeof buf);
            have = n > 0 ? (size_t)n : 0, at = 0;
            CHECK(tr_now_ns(CLOCK_MONOTONIC) < end, "no event 0x%x on wd %d", mask, wd);
            if (have == 0)
                tr_sleep_ms(5);
            continue;
        }
        struct inotify_event *e = (void *)(buf + at);
        at += sizeof *e + e->len;
        if (e->wd == wd && (e->mask & mask) && (name == NULL || strcmp(e->name, name) == 0))
            return;
    }
}

static void make(const char *name) { close(MUST(open(tr_path(name), O_CREAT | O_RDWR, 0600))); }

int main(int argc, char **argv)
{
    int wd[4];
    tr_init(argc, argv);
    static const char *const dirs[] = {"a", "b", "c", "d"};
    int fd = MUST(inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
    for (int i = 0; i < 4; i++) {
        MUST(mkdir(tr_path(dirs[i]), 0700));
        wd[i] = MUST(inotify_add_watch(fd, tr_path(dirs[i]),
                                       IN_CREATE | IN_DELETE | (i == 3 ? IN_ONESHOT : 0)));
    }
    MUST(inotify_rm_watch(fd, wd[1]));
    expect(fd, wd[1], IN_IGNORED, NULL);

    tr_hold();

    make("a/new");
    expect(fd, wd[0], IN_CREATE, "new");
    make("c/other");
    MUST(unlink(tr_path("c/other")));
    expect(fd, wd[2], IN_DELETE, "other");
    make("d/only");
    expect(fd, wd[3], IN_CREATE, "only");
    expect(fd, wd[3], IN_IGNORED, NULL);
    CHECK_EQ("the same watch by the same path", wd[2],
             inotify_add_watch(fd, tr_path("c"), IN_CREATE));
    CHECK(inotify_rm_watch(fd, wd[1]) == -1 && errno == EINVAL, "the removed watch is back");
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    return tr_pass(NULL);
}
