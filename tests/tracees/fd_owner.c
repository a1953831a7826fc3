/* Asynchronous I/O: F_SETOWN, F_SETOWN_EX, F_SETSIG, and the signals they send. */
#include "tracee.h"

#include <sys/socket.h>

static volatile int got_sig, got_fd;

static void on_io(int sig, siginfo_t *info, void *ctx)
{
    (void)ctx;
    got_sig = sig;
    got_fd = info->si_fd;
}

int main(int argc, char **argv)
{
    int p[2], s[2];
    tr_init(argc, argv);
    struct sigaction sa = {.sa_sigaction = on_io, .sa_flags = SA_SIGINFO | SA_RESTART};
    MUST(sigaction(SIGRTMIN + 3, &sa, NULL));
    MUST(sigaction(SIGIO, &sa, NULL));
    MUST(pipe(p));
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, s));
    struct f_owner_ex owner = {F_OWNER_TID, tr_gettid()};
    MUST(fcntl(p[0], F_SETOWN_EX, &owner));
    MUST(fcntl(p[0], F_SETSIG, SIGRTMIN + 3));
    MUST(fcntl(p[0], F_SETFL, O_ASYNC | O_NONBLOCK));
    MUST(fcntl(s[0], F_SETOWN, -getpgrp()));

    tr_hold();

    struct f_owner_ex got = {0};
    MUST(fcntl(p[0], F_GETOWN_EX, &got));
    CHECK_EQ("type of owner", F_OWNER_TID, got.type);
    CHECK_EQ("owner", tr_gettid(), got.pid);
    CHECK_EQ("signal", SIGRTMIN + 3, fcntl(p[0], F_GETSIG));
    CHECK_EQ("status flags", O_ASYNC | O_NONBLOCK, fcntl(p[0], F_GETFL));
    MUST(fcntl(s[0], F_GETOWN_EX, &got));
    CHECK_EQ("type of owner of the socket", F_OWNER_PGRP, got.type);
    CHECK_EQ("owner of the socket", getpgrp(), got.pid);
    CHECK_EQ("default signal", 0, fcntl(s[0], F_GETSIG));
    CHECK_EQ("signals so far", 0, got_sig);
    CHECK_EQ("write", 1, write(p[1], "x", 1));
    CHECK_EQ("signal sent on readable", SIGRTMIN + 3, got_sig);
    CHECK_EQ("descriptor in the signal", p[0], got_fd);
    return tr_pass(NULL);
}
