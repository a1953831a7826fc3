/* Resource limits, soft and hard, different in a child. Only lowered ones. */
#include "tracee.h"

#include <sys/resource.h>

static const struct {
    const char *name;
    int which;
    rlim_t soft, hard;
} limits[] = {
    {"RLIMIT_NOFILE", RLIMIT_NOFILE, 700, 900},
    {"RLIMIT_CORE", RLIMIT_CORE, 0, 0},
    {"RLIMIT_STACK", RLIMIT_STACK, 4 << 20, RLIM_INFINITY},
    {"RLIMIT_DATA", RLIMIT_DATA, 1UL << 33, 1UL << 34},
    {"RLIMIT_FSIZE", RLIMIT_FSIZE, 1UL << 32, 1UL << 33},
    {"RLIMIT_CPU", RLIMIT_CPU, 7000, 8000},
    {"RLIMIT_SIGPENDING", RLIMIT_SIGPENDING, 111, 222},
    {"RLIMIT_NICE", RLIMIT_NICE, 0, 0},
};
enum { LIMITS = sizeof limits / sizeof limits[0] };

static void check_all(const char *who)
{
    struct rlimit got;
    for (int i = 0; i < LIMITS; i++) {
        MUST(getrlimit(limits[i].which, &got));
        CHECK(got.rlim_cur == limits[i].soft, "%s: soft %s expected %lu, got %lu", who,
              limits[i].name, limits[i].soft, got.rlim_cur);
        CHECK(limits[i].hard == RLIM_INFINITY || got.rlim_max == limits[i].hard,
              "%s: hard %s expected %lu, got %lu", who, limits[i].name, limits[i].hard,
              got.rlim_max);
    }
}

int main(int argc, char **argv)
{
    struct rlimit before, got;
    tr_init(argc, argv);
    MUST(getrlimit(RLIMIT_NOFILE, &before));
    pid_t plain = tr_fork();
    if (plain == 0) {
        tr_touch("up");
        tr_wait_go();
        MUST(getrlimit(RLIMIT_NOFILE, &got));
        CHECK_EQ("limit of the child", before.rlim_max, got.rlim_max);
        _exit(0);
    }
    tr_await("up");
    for (int i = 0; i < LIMITS; i++) {
        MUST(getrlimit(limits[i].which, &got));
        got.rlim_cur = limits[i].soft;
        if (limits[i].hard < got.rlim_max)
            got.rlim_max = limits[i].hard;
        MUST(setrlimit(limits[i].which, &got));
    }

    tr_hold();

    check_all("root");
    tr_check_exit("child", plain, 0);
    return tr_pass(NULL);
}
