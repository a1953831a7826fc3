/* The dumpable flag, set and cleared, and no_new_privs without seccomp. */
#include "tracee.h"

#include <sys/prctl.h>

static void set_and_hold(int dumpable, const char *up)
{
    MUST(prctl(PR_SET_DUMPABLE, dumpable));
    MUST(dumpable ? 0 : prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    tr_touch(up);
    tr_wait_go();
    CHECK_EQ("dumpable", dumpable, prctl(PR_GET_DUMPABLE));
    CHECK_EQ("no_new_privs", !dumpable, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    pid_t child = tr_fork();
    if (child == 0) {
        set_and_hold(0, "up");
        _exit(0);
    }
    tr_await("up");
    set_and_hold(1, "ready");
    tr_check_exit("child", child, 0);
    return tr_pass(NULL);
}
