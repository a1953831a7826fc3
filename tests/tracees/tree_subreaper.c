/* An orphan adopted by a subreaper inside the tree, which is not the root. */
#include "tracee.h"

#include <sys/prctl.h>

/* The middle process ends at once; the orphan writes down its pid. */
__attribute__((noreturn)) static void middle(void)
{
    if (tr_fork() == 0) {
        pid_t reaper = (pid_t)strtol(getenv("REAPER"), NULL, 10);
        while (getppid() != reaper)
            tr_sleep_ms(1);
        tr_touch("adopted");
        tr_wait_go();
        CHECK_EQ("parent of the orphan", reaper, getppid());
        _exit(44);
    }
    _exit(0);
}

__attribute__((noreturn)) static void reaper(void)
{
    char text[16];
    int status, is_reaper = 0;
    snprintf(text, sizeof text, "%d", getpid());
    setenv("REAPER", text, 1);
    MUST(prctl(PR_SET_CHILD_SUBREAPER, 1));
    pid_t mid = tr_fork();
    if (mid == 0)
        middle();
    tr_check_exit("middle", mid, 0);
    tr_await("adopted");
    tr_touch("up");
    tr_wait_go();
    MUST(prctl(PR_GET_CHILD_SUBREAPER, &is_reaper));
    CHECK_EQ("subreaper flag", 1, is_reaper);
    MUST(waitpid(-1, &status, 0));
    CHECK_EQ("status of the orphan", 44 << 8, status);
    /* It still adopts. */
    mid = tr_fork();
    if (mid == 0)
        middle();
    tr_check_exit("second middle", mid, 0);
    MUST(waitpid(-1, &status, 0));
    CHECK_EQ("status of the second orphan", 44 << 8, status);
    _exit(0);
}

int main(int argc, char **argv)
{
    int is_reaper = 7;
    tr_init(argc, argv);
    pid_t child = tr_fork();
    if (child == 0)
        reaper();
    tr_await("up");

    tr_hold();

    MUST(prctl(PR_GET_CHILD_SUBREAPER, &is_reaper));
    CHECK_EQ("subreaper flag of the root", 0, is_reaper);
    tr_check_exit("reaper", child, 0);
    return tr_pass(NULL);
}
