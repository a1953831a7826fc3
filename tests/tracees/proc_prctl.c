/* Odds and ends of a process: pdeathsig, subreaper, THP, personality, oom, coredump. */
#include "tracee.h"

#include <sys/personality.h>
#include <sys/prctl.h>

static long number_in(const char *path, int base)
{
    char text[64];
    tr_slurp(path, text, sizeof text);
    return strtol(text, NULL, base);
}

static void put(const char *path, const char *text)
{
    int fd = MUST(open(path, O_WRONLY));
    MUST(write(fd, text, strlen(text)));
    close(fd);
}

/* Waits to be killed by the death of its parent. */
static void mourner(void)
{
    int sig = 0;
    MUST(prctl(PR_SET_PDEATHSIG, SIGUSR1));
    tr_touch("mourner.up");
    tr_wait_go();
    MUST(prctl(PR_GET_PDEATHSIG, &sig));
    CHECK_EQ("pdeathsig", SIGUSR1, sig);
    tr_touch("mourner.ok");
    for (;;)
        tr_sleep_ms(1000);
}

static pid_t start_family(void)
{
    pid_t parent = tr_fork();
    if (parent != 0)
        return parent;
    pid_t child = tr_fork();
    if (child == 0)
        mourner();
    tr_await("mourner.ok");
    _exit(0);
}

int main(int argc, char **argv)
{
    int status, v = 0;
    tr_init(argc, argv);
    MUST(personality(ADDR_NO_RANDOMIZE));
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    MUST(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
    MUST(prctl(PR_SET_TIMERSLACK, 77777));
    put("/proc/self/oom_score_adj", "345");
    put("/proc/self/coredump_filter", "0x15");
    pid_t parent = start_family();
    tr_await("mourner.up");

    tr_hold();

    CHECK_EQ("personality", ADDR_NO_RANDOMIZE, personality(0xffffffff));
    MUST(prctl(PR_GET_CHILD_SUBREAPER, &v));
    CHECK_EQ("subreaper flag", 1, v);
    CHECK_EQ("THP disabled", 1, prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    CHECK_EQ("timer slack", 77777, prctl(PR_GET_TIMERSLACK));
    CHECK_EQ("oom_score_adj", 345, number_in("/proc/self/oom_score_adj", 10));
    CHECK_EQ("coredump_filter", 0x15, number_in("/proc/self/coredump_filter", 16));
    tr_check_exit("parent of the mourner", parent, 0);
    MUST(waitpid(-1, &status, 0));
    CHECK_EQ("the mourner died by its parent's death signal", SIGUSR1, status);
    return tr_pass(NULL);
}
