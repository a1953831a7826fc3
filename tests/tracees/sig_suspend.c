/* The only thread waits in sigsuspend and is checkpointed there. */
#include "tracee.h"

static volatile int got;

static void on_usr1(int sig) { got = sig; }

int main(int argc, char **argv)
{
    sigset_t blocked, during, after;
    tr_init(argc, argv);
    struct sigaction sa = {.sa_handler = on_usr1};
    MUST(sigaction(SIGUSR1, &sa, NULL));
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGTERM);
    MUST(sigprocmask(SIG_SETMASK, &blocked, NULL));
    pid_t child = tr_fork();
    if (child == 0) {
        tr_await_syscall(getppid(), SYS_rt_sigsuspend);
        tr_ready();
        tr_wait_go();
        tr_await_syscall(getppid(), SYS_rt_sigsuspend);
        _exit(kill(getppid(), SIGUSR1) == 0 ? 0 : 1);
    }
    sigfillset(&during);
    sigdelset(&during, SIGUSR1);

    int r = sigsuspend(&during);

    CHECK(r == -1 && errno == EINTR, "sigsuspend: got %d (%s)", r, strerror(errno));
    CHECK_EQ("signal", SIGUSR1, got);
    CHECK(access(tr_path("go"), F_OK) == 0, "sigsuspend ended before the signal was sent");
    MUST(sigprocmask(SIG_SETMASK, NULL, &after));
    for (int sig = 1; sig < 64; sig++)
        CHECK_EQ("mask after sigsuspend", sigismember(&blocked, sig), sigismember(&after, sig));
    tr_check_exit("child", child, 0);
    return tr_pass(NULL);
}
