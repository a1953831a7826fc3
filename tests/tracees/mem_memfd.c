/* memfd: name, content, seals, offset, and mapping and descriptor being one object. */
#include "vma.h"

#define LEN (16 * TR_PAGE)

int main(int argc, char **argv)
{
    static uint64_t page[TR_PAGE / 8];
    char link[PATH_MAX], self[64];
    tr_init(argc, argv);
    int fd = MUST(memfd_create("still life", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    MUST(ftruncate(fd, LEN));
    char *rw = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    char *priv = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    tr_fill(rw, 4 * TR_PAGE, 1);
    tr_fill(priv + 8 * TR_PAGE, TR_PAGE, 2);
    MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW));
    MUST(lseek(fd, 12345, SEEK_SET));
    int plain = MUST(memfd_create("plain", 0));
    CHECK_EQ("write", 5, write(plain, "plain", 5));
    /* Mapped only: the descriptor is gone. */
    int tmp = MUST(memfd_create("mapped only", 0));
    MUST(ftruncate(tmp, LEN));
    char *only = MUST(mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, tmp, 0));
    close(tmp);
    tr_fill(only, LEN, 3);
    int sealed = MUST(memfd_create("sealed", MFD_ALLOW_SEALING));
    tr_fill(page, TR_PAGE, 4);
    CHECK_EQ("write", TR_PAGE, write(sealed, page, TR_PAGE));
    MUST(fcntl(sealed, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL));

    tr_hold();

    CHECK_EQ("seals", F_SEAL_SHRINK | F_SEAL_GROW, fcntl(fd, F_GET_SEALS));
    CHECK_EQ("seals of a plain memfd", F_SEAL_SEAL, fcntl(plain, F_GET_SEALS));
    CHECK_EQ("all seals", F_SEAL_WRITE | F_SEAL_SEAL, fcntl(sealed, F_GET_SEALS));
    CHECK(write(sealed, "x", 1) == -1 && errno == EPERM, "a write-sealed memfd was written");
    CHECK_EQ("pread", TR_PAGE, pread(sealed, page, TR_PAGE, 0));
    tr_verify("content of the sealed memfd", page, TR_PAGE, 4);
    CHECK(ftruncate(fd, LEN / 2) == -1 && errno == EPERM, "a shrink-sealed memfd shrank");
    CHECK_EQ("offset", 12345, lseek(fd, 0, SEEK_CUR));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    link[MUST(readlink(self, link, sizeof link - 1))] = 0;
    tr_check_str("name", "/memfd:still life (deleted)", link);
    tr_verify("shared view", rw, 4 * TR_PAGE, 1);
    tr_verify_zero("untouched part", rw + 4 * TR_PAGE, 12 * TR_PAGE);
    tr_verify("private view", priv, 4 * TR_PAGE, 1);
    tr_verify("private copy", priv + 8 * TR_PAGE, TR_PAGE, 2);
    tr_verify("memfd without a descriptor", only, LEN, 3);
    tr_fill(rw + TR_PAGE, TR_PAGE, 9);
    CHECK_EQ("pread", TR_PAGE, pread(fd, page, TR_PAGE, TR_PAGE));
    tr_verify("descriptor and mapping are one object", page, TR_PAGE, 9);
    tr_verify("private view of an unmodified page", priv + TR_PAGE, TR_PAGE, 9);
    CHECK_EQ("offset of the plain memfd", 5, lseek(plain, 0, SEEK_CUR));
    return tr_pass(NULL);
}
