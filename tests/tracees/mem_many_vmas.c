/* Thousands of small mappings that the kernel cannot merge. */
#include "vma.h"

#define COUNT 6000UL

/* Mappings inside the area; elsewhere a restore may merge what the kernel could have. */
static size_t count_vmas(const char *area)
{
    unsigned long low = (unsigned long)area, start;
    size_t count = 0;
    char line[1024];
    FILE *f = fopen("/proc/self/maps", "re");
    CHECK(f != NULL, "cannot open maps");
    while (fgets(line, sizeof line, f) != NULL)
        if (sscanf(line, "%lx", &start) == 1)
            count += start >= low && start < low + COUNT * TR_PAGE;
    fclose(f);
    return count;
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
    CHECK_EQ("number of mappings before", COUNT, count_vmas(m));

    tr_hold();

    CHECK_EQ("number of mappings after", COUNT, count_vmas(m));
    for (size_t i = 0; i < COUNT; i += 2)
        CHECK(*(uint64_t *)(m + i * TR_PAGE) == tr_mix(i), "page %zu changed", i);
    for (size_t i = 1; i < COUNT; i += 2)
        m[i * TR_PAGE] = 1;
    return tr_pass(NULL);
}
