/* A private file mapping: some pages copied on write, the rest the file's. */
#include "vma.h"

#define PAGES 16UL

int main(int argc, char **argv)
{
    static uint64_t data[PAGES * TR_PAGE / 8];
    tr_init(argc, argv);
    int fd = MUST(open(tr_path("data"), O_RDWR | O_CREAT, 0600));
    for (size_t i = 0; i < PAGES; i++)
        tr_fill((char *)data + i * TR_PAGE, TR_PAGE, i);
    CHECK_EQ("write", sizeof data, write(fd, data, sizeof data));
    /* The mapping starts inside the file, to see that the offset is kept. */
    char *m = MUST(mmap(NULL, (PAGES - 2) * TR_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd,
                        2 * TR_PAGE));
    close(fd);
    for (size_t i = 2; i < PAGES; i += 3)
        tr_fill(m + (i - 2) * TR_PAGE, TR_PAGE, 100 + i);
    /* A modified page behind a read-only protection. */
    MUST(mprotect(m, TR_PAGE, PROT_READ));

    tr_hold();

    struct tr_vma v;
    CHECK(tr_vma_find(m + TR_PAGE, &v), "file mapping is gone");
    tr_check_str("mapped file", tr_path("data"), v.name);
    CHECK_EQ("offset of the mapping", 3 * TR_PAGE, v.offset);
    tr_check_prot("first page", m, "r--p");
    for (size_t i = 2; i < PAGES; i++)
        tr_verify(i % 3 == 2 ? "modified page" : "page of the file", m + (i - 2) * TR_PAGE,
                  TR_PAGE, i % 3 == 2 ? 100 + i : i);
    fd = MUST(open(tr_path("data"), O_RDWR));
    CHECK_EQ("read", sizeof data, read(fd, data, sizeof data));
    for (size_t i = 0; i < PAGES; i++)
        tr_verify("file under a private mapping", (char *)data + i * TR_PAGE, TR_PAGE, i);
    /* An unmodified page is still the page cache's: a write to the file shows. */
    tr_fill(data, TR_PAGE, 777);
    CHECK_EQ("pwrite", TR_PAGE, pwrite(fd, data, TR_PAGE, 4 * TR_PAGE));
    tr_verify("unmodified page after a write to the file", m + 2 * TR_PAGE, TR_PAGE, 777);
    return tr_pass(NULL);
}
