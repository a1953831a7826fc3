/* Thousands of small mappings that the kernel cannot merge. */
#include "vma.h"

#define COUNT 6000UL

static size_t count_vmas(void)
{
    size_t lines = 0;
    int c;
    FILE *f = fopen("/proc/self/maps", "re");
    CHECK(f != NULL, "cannot open maps");
    while ((c = getc(f)) != EOF)
        lines += c == '\n';
    fclose(f);
    return lines;
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    char *m = tr_anon(COUNT * TR_PAGE, PROT_READ | PROT_WRITE);
    MUST(madvise(m, COUNT * TR_PAGE, MADV_NOHUGEPAGE));
    for (size_t i = 0; i < COUNT; i += 2) {
        *(uint64_t *)(m + i * TR_PAGE) = tr_mix(i);
        MUST(mprotect(m + i * TR_PAGE, TR_PAGE, PROT_READ));
    }
    /* Opened once before counting: stdio's buffer must not add a mapping later. */
    count_vmas();
    size_t before = count_vmas();
    CHECK(before > COUNT, "expected more than %lu mappings, got %zu", COUNT, before);

    tr_hold();

    CHECK_EQ("number of mappings", before, count_vmas());
    for (size_t i = 0; i < COUNT; i += 2)
        CHECK(*(uint64_t *)(m + i * TR_PAGE) == tr_mix(i), "page %zu changed", i);
    for (size_t i = 1; i < COUNT; i += 2)
        m[i * TR_PAGE] = 1;
    return tr_pass(NULL);
}
