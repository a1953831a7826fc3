/* Shared file mappings: writes reach the file; a read-only one cannot be upgraded. */
#include "vma.h"

#define PAGES 8UL

int main(int argc, char **argv)
{
    static uint64_t data[TR_PAGE / 8];
    tr_init(argc, argv);
    int fd = MUST(open(tr_path("data"), O_RDWR | O_CREAT, 0600));
    MUST(ftruncate(fd, PAGES * TR_PAGE));
    char *rw = MUST(mmap(NULL, PAGES * TR_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    close(fd);
    fd = MUST(open(tr_path("data"), O_RDONLY));
    char *ro = MUST(mmap(NULL, PAGES * TR_PAGE, PROT_READ, MAP_SHARED, fd, 0));
    close(fd);
    for (size_t i = 0; i < PAGES; i++)
        tr_fill(rw + i * TR_PAGE, TR_PAGE, i);

    tr_hold();

    for (size_t i = 0; i < PAGES; i++)
        tr_verify("shared page", rw + i * TR_PAGE, TR_PAGE, i);
    tr_fill(rw + 3 * TR_PAGE, TR_PAGE, 33);
    tr_verify("read-only view", ro + 3 * TR_PAGE, TR_PAGE, 33);
    fd = MUST(open(tr_path("data"), O_RDWR));
    CHECK_EQ("pread", TR_PAGE, pread(fd, data, TR_PAGE, 3 * TR_PAGE));
    tr_verify("file after a write to the mapping", data, TR_PAGE, 33);
    tr_fill(data, TR_PAGE, 55);
    CHECK_EQ("pwrite", TR_PAGE, pwrite(fd, data, TR_PAGE, 5 * TR_PAGE));
    tr_verify("mapping after a write to the file", rw + 5 * TR_PAGE, TR_PAGE, 55);
    tr_check_prot("writable view", rw, "rw-s");
    tr_check_prot("read-only view", ro, "r--s");
    tr_check_flag("view of a descriptor opened for writing", rw, "mw", true);
    tr_check_flag("view of a read-only descriptor", ro, "mw", false);
    CHECK(mprotect(ro, TR_PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES,
          "a mapping of a read-only descriptor became writable");
    return tr_pass(NULL);
}
