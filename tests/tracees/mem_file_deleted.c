/* Mappings of deleted files, with the descriptor closed and kept, also shared by a child. */
#include "vma.h"

#define LEN (8 * TR_PAGE)

static char *map_deleted(const char *name, int flags, uint64_t seed, int *keep)
{
    int fd = MUST(open(tr_path(name), O_RDWR | O_CREAT | O_EXCL, 0600));
    MUST(ftruncate(fd, LEN));
    char *m = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    tr_fill(m, LEN, seed);
    if (!(flags & MAP_SHARED)) {
        MUST(munmap(m, LEN));
        m = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, flags, fd, 0));
        tr_fill(m + TR_PAGE, TR_PAGE, seed + 1);
    }
    MUST(unlink(tr_path(name)));
    if (keep != NULL)
        *keep = fd;
    else
        close(fd);
    return m;
}

int main(int argc, char **argv)
{
    static uint64_t page[TR_PAGE / 8];
    int fd = -1;
    tr_init(argc, argv);
    char *kept = map_deleted("kept", MAP_SHARED, 10, &fd);
    char *shared = map_deleted("shared", MAP_SHARED, 20, NULL);
    char *priv = map_deleted("private", MAP_PRIVATE, 30, NULL);
    pid_t child = tr_fork();
    if (child == 0) {
        tr_touch("up");
        tr_wait_go();
        tr_verify("child's view", shared, LEN, 20);
        tr_fill(shared + 2 * TR_PAGE, TR_PAGE, 21);
        _exit(0);
    }
    tr_await("up");

    tr_hold();

    tr_check_exit("child", child, 0);
    tr_verify("shared mapping after the child wrote", shared + 2 * TR_PAGE, TR_PAGE, 21);
    tr_verify("private copy", priv + TR_PAGE, TR_PAGE, 31);
    tr_verify("private mapping", priv, TR_PAGE, 30);
    tr_verify("mapping with its descriptor", kept, LEN, 10);
    tr_fill(kept + TR_PAGE, TR_PAGE, 11);
    CHECK_EQ("pread", TR_PAGE, pread(fd, page, TR_PAGE, TR_PAGE));
    tr_verify("descriptor and mapping are one file", page, TR_PAGE, 11);
    struct stat st;
    MUST(fstat(fd, &st));
    CHECK_EQ("links of the deleted file", 0, st.st_nlink);
    CHECK(access(tr_path("kept"), F_OK) != 0, "the deleted file has its name back");
    CHECK(access(tr_path("shared"), F_OK) != 0, "the deleted file has its name back");
    return tr_pass(NULL);
}
