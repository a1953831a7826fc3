/* Zombies: exit codes and signals wait for the parent, also for a grandparent's child. */
#include "tracee.h"

static pid_t dies_by(int sig)
{
    pid_t pid = tr_fork();
    if (pid == 0) {
        raise(sig);
        _exit(99);
    }
    return pid;
}

static pid_t exits_with(int code)
{
    pid_t pid = tr_fork();
    if (pid == 0)
        _exit(code);
    return pid;
}

static void await_zombie(pid_t pid)
{
    siginfo_t info;
    MUST(waitid(P_PID, pid, &info, WEXITED | WNOWAIT));
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    pid_t zero = exits_with(0), code = exits_with(77);
    pid_t killed = dies_by(SIGKILL), termed = dies_by(SIGTERM);
    pid_t grouped = tr_fork();
    if (grouped == 0) {
        setpgid(0, 0);
        _exit(5);
    }
    pid_t child = tr_fork();
    if (child == 0) {
        pid_t inner = exits_with(33);
        await_zombie(inner);
        tr_touch("up");
        tr_wait_go();
        tr_check_exit("zombie of the child", inner, 33 << 8);
        _exit(0);
    }
    for (int i = 0; i < 5; i++)
        await_zombie((pid_t[]){zero, code, killed, termed, grouped}[i]);
    tr_await("up");

    tr_hold();

    CHECK_EQ("group of a zombie", grouped, getpgid(grouped));
    siginfo_t info = {0};
    MUST(waitid(P_PID, code, &info, WEXITED | WNOWAIT));
    CHECK_EQ("si_code", CLD_EXITED, info.si_code);
    CHECK_EQ("si_status", 77, info.si_status);
    tr_check_exit("killed", killed, SIGKILL);
    tr_check_exit("exit 0", zero, 0);
    tr_check_exit("exit 77", code, 77 << 8);
    tr_check_exit("terminated", termed, SIGTERM);
    tr_check_exit("exit 5 in its own group", grouped, 5 << 8);
    tr_check_exit("child", child, 0);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "there are more children");
    return tr_pass(NULL);
}
