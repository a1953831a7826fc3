/* The root, single-threaded, is blocked in waitpid when it is checkpointed. */
#include "tracee.h"

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    pid_t root = getpid(), child = tr_fork();
    if (child == 0) {
        tr_await_syscall(root, SYS_wait4);
        tr_ready();
        tr_wait_go();
        tr_await_syscall(root, SYS_wait4);
        CHECK_EQ("parent", root, getppid());
        _exit(66);
    }
    tr_check_exit("child", child, 66 << 8);
    return tr_pass(NULL);
}
