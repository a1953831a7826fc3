/* Private anonymous memory: patterns, untouched holes, discarded pages. */
#include "vma.h"

#define PAGES 512UL

static void check_resident(const char *what, char *at, bool want)
{
    unsigned char vec = 0;
    MUST(mincore(at, TR_PAGE, &vec));
    CHECK((vec & 1) == want, "%s: resident expected %d, got %d", what, want, vec & 1);
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    char *m = tr_anon(PAGES * TR_PAGE, PROT_READ | PROT_WRITE);
    MUST(madvise(m, PAGES * TR_PAGE, MADV_NOHUGEPAGE));
    /* Every third page is never touched. */
    for (size_t i = 0; i < PAGES; i++)
        if (i % 3 != 2)
            tr_fill(m + i * TR_PAGE, TR_PAGE, i);
    for (size_t i = 30; i < 60; i++)
        MUST(madvise(m + i * TR_PAGE, TR_PAGE, MADV_DONTNEED));
    /* Written, but with zeros: indistinguishable by content from a hole. */
    memset(m + 90 * TR_PAGE, 0, TR_PAGE);
    /* A hole unmapped out of the middle, and a page moved elsewhere. */
    MUST(munmap(m + 120 * TR_PAGE, 3 * TR_PAGE));
    char *far = tr_anon(64 * TR_PAGE, PROT_NONE);
    MUST(mremap(m + 150 * TR_PAGE, TR_PAGE, TR_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                far + 32 * TR_PAGE));

    tr_hold();

    for (size_t i = 0; i < PAGES; i++) {
        char *page = m + i * TR_PAGE;
        struct tr_vma v;
        if ((i >= 120 && i < 123) || i == 150) {
            CHECK(!tr_vma_find(page, &v), "page %zu is mapped again", i);
        } else if (i == 90 || (i >= 30 && i < 60)) {
            tr_verify_zero("discarded page", page, TR_PAGE);
        } else if (i % 3 != 2) {
            tr_verify("patterned page", page, TR_PAGE, i);
        } else if (i > 200) {
            check_resident("hole before its first read", page, false);
            tr_verify_zero("hole", page, TR_PAGE);
        }
    }
    tr_verify("moved page", far + 32 * TR_PAGE, TR_PAGE, 150);
    tr_fill(m, TR_PAGE, 999);
    tr_verify("rewritten page", m, TR_PAGE, 999);
    return tr_pass(NULL);
}
