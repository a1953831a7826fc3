/* Checkpointed inside nested handlers: both frames return, masks unwind. */
#include "tracee.h"

static volatile int trail;
static volatile double inner_result;

static void check_blocked(const char *where, bool usr1, bool usr2, bool term)
{
    sigset_t set;
    MUST(sigprocmask(SIG_SETMASK, NULL, &set));
    CHECK_EQ(where, usr1, sigismember(&set, SIGUSR1));
    CHECK_EQ(where, usr2, sigismember(&set, SIGUSR2));
    CHECK_EQ(where, term, sigismember(&set, SIGTERM));
}

static void on_inner(int sig)
{
    (void)sig;
    trail = trail * 10 + 2;
    tr_hold();
    inner_result = (double)trail / 4;
    check_blocked("mask in the inner handler", true, true, true);
    trail = trail * 10 + 3;
}

static void on_outer(int sig)
{
    (void)sig;
    trail = 1;
    MUST(raise(SIGUSR2));
    check_blocked("mask in the outer handler", true, false, false);
    trail = trail * 10 + 4;
}

/* Floating point values that are live across the signal. */
__attribute__((noinline)) static double interrupted(double a, double b)
{
    double x = a * b, y = a / b;
    MUST(raise(SIGUSR1));
    return x + y;
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    struct sigaction outer = {.sa_handler = on_outer};
    struct sigaction inner = {.sa_handler = on_inner};
    sigaddset(&inner.sa_mask, SIGTERM);
    MUST(sigaction(SIGUSR1, &outer, NULL));
    MUST(sigaction(SIGUSR2, &inner, NULL));

    double got = interrupted(3.5, 0.25);

    CHECK(got == 3.5 * 0.25 + 3.5 / 0.25, "floating point across handlers: %f", got);
    CHECK_EQ("order of the handlers", 1234, trail);
    check_blocked("mask in main", false, false, false);
    return tr_pass(NULL);
}
