/* signalfd: its mask, signals pending for it, and new ones. */
#include "tracee.h"

#include <sys/signalfd.h>

static void check_next(int fd, int sig, int value)
{
    struct signalfd_siginfo info;
    CHECK_EQ("size of a signalfd read", sizeof info, read(fd, &info, sizeof info));
    CHECK_EQ("signal", sig, info.ssi_signo);
    CHECK_EQ("value", value, info.ssi_int);
    CHECK_EQ("sender", getpid(), info.ssi_pid);
}

int main(int argc, char **argv)
{
    sigset_t set, all;
    struct signalfd_siginfo info;
    tr_init(argc, argv);
    sigfillset(&all);
    MUST(sigprocmask(SIG_BLOCK, &all, NULL));
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 4);
    int fd = MUST(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
    for (int i = 0; i < 3; i++)
        MUST(sigqueue(getpid(), SIGRTMIN + 4, (union sigval){.sival_int = 50 + i}));
    MUST(sigqueue(getpid(), SIGUSR2, (union sigval){.sival_int = 1}));

    tr_hold();

    for (int i = 0; i < 3; i++)
        check_next(fd, SIGRTMIN + 4, 50 + i);
    CHECK(read(fd, &info, sizeof info) == -1 && errno == EAGAIN,
          "a signal outside the mask was read");
    MUST(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 99}));
    check_next(fd, SIGUSR1, 99);
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    CHECK_EQ("flags", O_RDWR | O_NONBLOCK, fcntl(fd, F_GETFL));
    return tr_pass(NULL);
}
