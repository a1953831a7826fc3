/* Blocked in waitpid, waitid and wait4 for children that end after the checkpoint. */
#include "threads.h"

static pid_t children[3];

static void by_waitpid(struct tr_thread *t)
{
    int status;
    (void)t;
    pid_t got = waitpid(children[0], &status, 0);
    CHECK_EQ("waitpid", children[0], got);
    CHECK_EQ("status by waitpid", 11 << 8, status);
}

static void by_waitid(struct tr_thread *t)
{
    siginfo_t info = {0};
    (void)t;
    CHECK_EQ("waitid", 0, waitid(P_PID, children[1], &info, WEXITED));
    CHECK_EQ("waitid si_pid", children[1], info.si_pid);
    CHECK_EQ("waitid si_status", 12, info.si_status);
    CHECK_EQ("waitid si_code", CLD_EXITED, info.si_code);
}

static void by_group(struct tr_thread *t)
{
    int status;
    (void)t;
    CHECK_EQ("waitpid of a group", children[2], waitpid(-children[2], &status, 0));
    CHECK_EQ("status by group", SIGKILL, status);
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[3];
    static void (*const bodies[])(struct tr_thread *) = {by_waitpid, by_waitid, by_group};
    static const long calls[] = {SYS_wait4, SYS_waitid, SYS_wait4};
    tr_init(argc, argv);
    for (int i = 0; i < 3; i++) {
        children[i] = tr_fork();
        if (children[i] == 0) {
            tr_await("children.go");
            if (i == 2)
                raise(SIGKILL);
            _exit(11 + i);
        }
        if (i == 2)
            MUST(setpgid(children[i], children[i]));
    }
    for (int i = 0; i < 3; i++) {
        tr_thread_start(&threads[i], bodies[i], NULL);
        tr_await_syscall(threads[i].tid, calls[i]);
    }

    tr_hold();

    for (int i = 0; i < 3; i++)
        tr_await_syscall(threads[i].tid, calls[i]);
    tr_touch("children.go");
    for (int i = 0; i < 3; i++)
        tr_thread_join(&threads[i]);
    return tr_pass(NULL);
}
