/* Guard pages in a mapping that a fork copies, and in one that it leaves out. */
#include "vma.h"

#include <setjmp.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static sigjmp_buf fault_env;

static void on_fault(int sig)
{
    (void)sig;
    siglongjmp(fault_env, 1);
}

static bool faults(volatile char *at)
{
    if (sigsetjmp(fault_env, 1) == 0) {
        (void)*at;
        return false;
    }
    return true;
}

int main(int argc, char **argv)
{
    char *area[2];
    tr_init(argc, argv);
    struct sigaction action = {.sa_handler = on_fault};
    MUST(sigaction(SIGSEGV, &action, NULL));
    for (int i = 0; i < 2; i++) {
        area[i] = tr_anon(6 * TR_PAGE, PROT_READ | PROT_WRITE);
        tr_fill(area[i], 2 * TR_PAGE, i);
        if (madvise(area[i] + 2 * TR_PAGE, TR_PAGE, MADV_GUARD_INSTALL) != 0 && errno == EINVAL) {
            tr_hold();
            return tr_pass("no MADV_GUARD_INSTALL before Linux 6.13");
        }
    }
    MUST(madvise(area[1], 6 * TR_PAGE, MADV_DONTFORK));

    tr_hold();

    for (int i = 0; i < 2; i++) {
        tr_verify("before the guard", area[i], 2 * TR_PAGE, i);
        CHECK(faults(area[i] + 2 * TR_PAGE), "the guard of area %d lets through", i);
        tr_verify_zero("behind the guard", area[i] + 3 * TR_PAGE, 3 * TR_PAGE);
    }
    return tr_pass(NULL);
}
