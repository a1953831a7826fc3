/* Dispositions: flags, masks, ignored signals, and how handlers behave. */
#include "tracee.h"

static volatile int ran_signal, ran_code, depth, max_depth, raised;

static void on_info(int sig, siginfo_t *info, void *ctx)
{
    (void)ctx;
    ran_signal = sig;
    ran_code = info->si_code;
}

static void on_plain(int sig) { ran_signal = sig; }

/* Raises itself once: nests only under SA_NODEFER. */
static void on_nested(int sig)
{
    depth++;
    if (depth > max_depth)
        max_depth = depth;
    if (raised++ == 0)
        raise(sig);
    depth--;
}

static void install(int sig, void (*plain)(int), int flags, int masked)
{
    struct sigaction sa = {.sa_flags = flags};
    if (flags & SA_SIGINFO)
        sa.sa_sigaction = on_info;
    else
        sa.sa_handler = plain;
    sigemptyset(&sa.sa_mask);
    if (masked)
        sigaddset(&sa.sa_mask, masked);
    MUST(sigaction(sig, &sa, NULL));
}

static void check_restart(int sig, bool restarts)
{
    int p[2];
    char c;
    MUST(pipe(p));
    pid_t child = tr_fork();
    if (child == 0) {
        tr_await_syscall(getppid(), SYS_read);
        kill(getppid(), sig);
        tr_sleep_ms(50);
        _exit(write(p[1], "x", 1) == 1 ? 0 : 1);
    }
    ssize_t n = read(p[0], &c, 1);
    CHECK(restarts ? n == 1 : n == -1 && errno == EINTR,
          "read interrupted by signal %d: got %zd (%s)", sig, n, strerror(errno));
    tr_check_exit("interrupter", child, 0);
    close(p[0]);
    close(p[1]);
}

static void check_installed(int sig, int flags, int masked)
{
    struct sigaction sa;
    MUST(sigaction(sig, NULL, &sa));
    CHECK_EQ("flags of a handler", flags, sa.sa_flags & ~0x04000000 /* SA_RESTORER */);
    for (int s = 1; s < 64; s++)
        CHECK_EQ("mask of a handler", s == masked, sigismember(&sa.sa_mask, s));
}

int main(int argc, char **argv)
{
    struct sigaction sa;
    tr_init(argc, argv);
    install(SIGUSR1, NULL, SA_SIGINFO | SA_RESTART, SIGTERM);
    install(SIGUSR2, on_plain, 0, SIGINT);
    install(SIGALRM, on_nested, SA_NODEFER, 0);
    install(SIGVTALRM, on_nested, 0, 0);
    install(SIGURG, on_plain, SA_RESETHAND, 0);
    install(SIGRTMAX, on_plain, SA_ONSTACK | SA_RESTART, 0);
    MUST((long)signal(SIGPIPE, SIG_IGN));
    MUST((long)signal(SIGHUP, SIG_IGN));
    install(SIGCHLD, SIG_DFL, SA_NOCLDSTOP, 0);

    tr_hold();

    check_installed(SIGUSR1, SA_SIGINFO | SA_RESTART, SIGTERM);
    check_installed(SIGUSR2, 0, SIGINT);
    check_installed(SIGALRM, SA_NODEFER, 0);
    check_installed(SIGURG, SA_RESETHAND, 0);
    check_installed(SIGRTMAX, SA_ONSTACK | SA_RESTART, 0);
    check_installed(SIGCHLD, SA_NOCLDSTOP, 0);
    MUST(sigaction(SIGPIPE, NULL, &sa));
    CHECK(sa.sa_handler == SIG_IGN, "SIGPIPE is not ignored");
    MUST(raise(SIGHUP));
    MUST(raise(SIGUSR1));
    CHECK_EQ("handler of SIGUSR1", SIGUSR1, ran_signal);
    CHECK_EQ("si_code", SI_TKILL, ran_code);
    check_restart(SIGUSR1, true);
    check_restart(SIGUSR2, false);
    MUST(raise(SIGALRM));
    CHECK_EQ("nesting under SA_NODEFER", 2, max_depth);
    max_depth = raised = 0;
    MUST(raise(SIGVTALRM));
    CHECK_EQ("nesting without SA_NODEFER", 1, max_depth);
    MUST(raise(SIGURG));
    MUST(sigaction(SIGURG, NULL, &sa));
    CHECK(sa.sa_handler == SIG_DFL, "SA_RESETHAND did not reset");
    return tr_pass(NULL);
}
