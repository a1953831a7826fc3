/* Advice that sticks to a mapping, seen through VmFlags. */
#include "vma.h"

static const struct advice {
    int advice;
    const char *name, *flag;
} advices[] = {
    {MADV_HUGEPAGE, "MADV_HUGEPAGE", "hg"},     {MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE", "nh"},
    {MADV_DONTFORK, "MADV_DONTFORK", "dc"},     {MADV_WIPEONFORK, "MADV_WIPEONFORK", "wf"},
    {MADV_DONTDUMP, "MADV_DONTDUMP", "dd"},     {MADV_MERGEABLE, "MADV_MERGEABLE", "mg"},
    {MADV_SEQUENTIAL, "MADV_SEQUENTIAL", "sr"}, {MADV_RANDOM, "MADV_RANDOM", "rr"},
};
enum { ADVICES = sizeof advices / sizeof advices[0] };

static void check_child(char **area)
{
    struct tr_vma v;
    for (size_t i = 0; i < ADVICES; i++) {
        if (advices[i].advice == MADV_DONTFORK)
            CHECK(!tr_vma_find(area[i], &v), "a MADV_DONTFORK area was inherited");
        else if (advices[i].advice == MADV_WIPEONFORK)
            tr_verify_zero("MADV_WIPEONFORK area in a child", area[i], TR_PAGE);
        else
            tr_verify(advices[i].name, area[i], TR_PAGE, i);
    }
    _exit(0);
}

int main(int argc, char **argv)
{
    char *area[ADVICES], *plain;
    tr_init(argc, argv);
    plain = tr_anon(4 * TR_PAGE, PROT_READ | PROT_WRITE);
    for (size_t i = 0; i < ADVICES; i++) {
        /* A guard on each side keeps areas from being merged. */
        char *m = tr_anon(6 * TR_PAGE, PROT_NONE);
        area[i] = m + TR_PAGE;
        MUST(mprotect(area[i], 4 * TR_PAGE, PROT_READ | PROT_WRITE));
        MUST(madvise(area[i], 4 * TR_PAGE, advices[i].advice));
        tr_fill(area[i], TR_PAGE, i);
    }

    tr_hold();

    for (size_t i = 0; i < ADVICES; i++) {
        tr_verify(advices[i].name, area[i], TR_PAGE, i);
        tr_check_flag(advices[i].name, area[i], advices[i].flag, true);
        tr_check_flag("no advice", plain, advices[i].flag, false);
    }
    pid_t child = tr_fork();
    if (child == 0)
        check_child(area);
    tr_check_exit("child forked after", child, 0);
    return tr_pass(NULL);
}
