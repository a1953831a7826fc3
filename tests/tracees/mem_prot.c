/* All protections, data behind PROT_NONE, guards that still fault. */
#include "vma.h"

#include <setjmp.h>

static sigjmp_buf fault_env;
static volatile int fault_code;

static void on_segv(int sig, siginfo_t *info, void *ctx)
{
    (void)sig, (void)ctx;
    fault_code = info->si_code;
    siglongjmp(fault_env, 1);
}

static void check_fault(const char *what, volatile char *at, bool write, int want_code)
{
    fault_code = 0;
    if (sigsetjmp(fault_env, 1) == 0) {
        if (write)
            *at = 1;
        else
            (void)*at;
    }
    CHECK_EQ(what, want_code, fault_code);
}

int main(int argc, char **argv)
{
    static const struct {
        int prot;
        const char *text;
    } kinds[] = {
        {PROT_NONE, "---p"},
        {PROT_READ, "r--p"},
        {PROT_WRITE, "-w-p"},
        {PROT_READ | PROT_WRITE, "rw-p"},
        {PROT_EXEC, "--xp"},
        {PROT_READ | PROT_EXEC, "r-xp"},
        {PROT_READ | PROT_WRITE | PROT_EXEC, "rwxp"},
    };
    enum { KINDS = sizeof kinds / sizeof kinds[0] };
    static const unsigned char ret42[] = {0xb8, 42, 0, 0, 0, 0xc3};

    tr_init(argc, argv);
    struct sigaction sa = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSEGV, &sa, NULL));
    char *m = tr_anon(KINDS * 2 * TR_PAGE, PROT_READ | PROT_WRITE);
    for (size_t i = 0; i < KINDS; i++) {
        char *page = m + 2 * i * TR_PAGE;
        memcpy(page, ret42, sizeof ret42);
        tr_fill(page + 64, TR_PAGE - 64, i);
        MUST(mprotect(page, TR_PAGE, kinds[i].prot));
        /* The page after each is a guard that was never accessible. */
        MUST(munmap(page + TR_PAGE, TR_PAGE));
        MUST(mmap(page + TR_PAGE, TR_PAGE, PROT_NONE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0));
    }

    tr_hold();

    for (size_t i = 0; i < KINDS; i++) {
        char *page = m + 2 * i * TR_PAGE;
        tr_check_prot(kinds[i].text, page, kinds[i].text);
        check_fault("guard page", page + TR_PAGE, true, SEGV_ACCERR);
        if (!(kinds[i].prot & PROT_WRITE))
            check_fault("write to a page that is not writable", page, true, SEGV_ACCERR);
        if (kinds[i].prot == PROT_NONE)
            check_fault("read of PROT_NONE", page, false, SEGV_ACCERR);
        if (kinds[i].prot & PROT_EXEC)
            CHECK_EQ("code in an executable page", 42, ((int (*)(void))(void *)page)());
        MUST(mprotect(page, TR_PAGE, PROT_READ | PROT_WRITE));
        tr_verify(kinds[i].text, page + 64, TR_PAGE - 64, i);
    }
    return tr_pass(NULL);
}
