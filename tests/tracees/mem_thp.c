/* Transparent huge pages: content kept whole and in part discarded. */
#include "vma.h"

#define HUGE (2UL << 20)

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    char *raw = tr_anon(5 * HUGE, PROT_READ | PROT_WRITE);
    char *m = (char *)(((uintptr_t)raw + HUGE - 1) & ~(HUGE - 1));
    MUST(madvise(m, 4 * HUGE, MADV_HUGEPAGE));
    tr_fill(m, 2 * HUGE, 1);
    struct tr_vma v;
    CHECK(tr_vma_find(m, &v), "not mapped");
    bool huge = v.anon_huge_kb > 0;
    /* A discarded part splits the second huge page's mapping. */
    MUST(madvise(m + HUGE + 16 * TR_PAGE, 16 * TR_PAGE, MADV_DONTNEED));

    tr_hold();

    tr_verify("first huge page", m, HUGE, 1);
    tr_verify_zero("discarded part", m + HUGE + 16 * TR_PAGE, 16 * TR_PAGE);
    uint64_t *w = (uint64_t *)m;
    for (size_t i = HUGE / 8; i < (HUGE + 16 * TR_PAGE) / 8; i++)
        CHECK(w[i] == tr_mix(1 * 1000003 + i + 1), "word %zu of the split page", i);
    for (size_t i = (HUGE + 32 * TR_PAGE) / 8; i < 2 * HUGE / 8; i++)
        CHECK(w[i] == tr_mix(1 * 1000003 + i + 1), "word %zu of the split page", i);
    tr_verify_zero("untouched huge page", m + 2 * HUGE, HUGE);
    tr_check_flag("MADV_HUGEPAGE", m, "hg", true);
    return tr_pass(huge ? NULL : "the kernel gave no transparent huge page");
}
