/* Checkpointed while a handler runs on the alternate stack. */
#include "tracee.h"

static char area[128 * 1024] __attribute__((aligned(16)));
static volatile int rounds;

static bool on_area(void)
{
    char *sp = __builtin_frame_address(0);
    return sp >= area && sp < area + sizeof area;
}

static void on_signal(int sig)
{
    uint64_t local[64];
    stack_t ss;
    (void)sig;
    CHECK(on_area(), "handler does not run on the alternate stack");
    rounds++;
    if (rounds > 1)
        return;
    tr_fill(local, sizeof local, 5);
    tr_hold();
    tr_verify("local of the handler", local, sizeof local, 5);
    CHECK(on_area(), "handler was moved off the alternate stack");
    MUST(sigaltstack(NULL, &ss));
    CHECK_EQ("sigaltstack inside the handler", SS_ONSTACK, ss.ss_flags);
    CHECK(sigaltstack(&ss, NULL) == -1 && errno == EPERM,
          "the alternate stack could be changed while in use");
}

int main(int argc, char **argv)
{
    stack_t ss = {.ss_sp = area, .ss_size = sizeof area};
    struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
    tr_init(argc, argv);
    MUST(sigaltstack(&ss, NULL));
    MUST(sigaction(SIGUSR1, &sa, NULL));
    volatile uint64_t before = tr_mix(42);

    MUST(raise(SIGUSR1));

    CHECK(before == tr_mix(42), "local of main changed");
    CHECK(!on_area(), "main ended up on the alternate stack");
    MUST(sigaltstack(NULL, &ss));
    CHECK(ss.ss_sp == area && ss.ss_size == sizeof area, "alternate stack: got %p, %zu", ss.ss_sp,
          ss.ss_size);
    CHECK_EQ("sigaltstack outside the handler", 0, ss.ss_flags);
    MUST(raise(SIGUSR1));
    CHECK_EQ("handler runs", 2, rounds);
    return tr_pass(NULL);
}
