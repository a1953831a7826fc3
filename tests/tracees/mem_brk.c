/* The brk heap: content, its end, and that it goes on growing and shrinking. */
#include "vma.h"

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    /* Keep malloc away from the break, so that sbrk is ours alone. */
    char *base = MUST((char *)sbrk(0));
    base = (char *)(((uintptr_t)base + TR_PAGE - 1) & ~(TR_PAGE - 1));
    MUST(brk(base + 64 * TR_PAGE + 100));
    tr_fill(base, 64 * TR_PAGE, 1);
    memset(base + 64 * TR_PAGE, 'x', 100);

    tr_hold();

    char *end = base + 64 * TR_PAGE + 100;
    CHECK(sbrk(0) == end, "libc break expected %p, got %p", end, sbrk(0));
    CHECK((char *)syscall(SYS_brk, 0) == end, "kernel break expected %p, got %p", end,
          (void *)syscall(SYS_brk, 0));
    tr_verify("heap", base, 64 * TR_PAGE, 1);
    CHECK(MUST((char *)sbrk(8 * TR_PAGE)) == end, "sbrk did not continue at the old end");
    for (int i = 0; i < 100; i++)
        CHECK_EQ("byte after the last full page", 'x', base[64 * TR_PAGE + i]);
    tr_verify_zero("new heap", end, 8 * TR_PAGE);
    tr_fill(base + 65 * TR_PAGE, 4 * TR_PAGE, 2);
    tr_verify("new heap", base + 65 * TR_PAGE, 4 * TR_PAGE, 2);
    MUST(brk(base + TR_PAGE));
    CHECK((char *)syscall(SYS_brk, 0) == base + TR_PAGE, "break does not shrink");
    unsigned char vec;
    CHECK(mincore(base + 2 * TR_PAGE, TR_PAGE, &vec) == -1 && errno == ENOMEM,
          "shrunk heap is still mapped");
    /* Last, because it may make malloc move the break. */
    struct tr_vma v;
    CHECK(tr_vma_find(base, &v), "heap is not mapped");
    tr_check_str("name of the heap mapping", "[heap]", v.name);
    return tr_pass(NULL);
}
