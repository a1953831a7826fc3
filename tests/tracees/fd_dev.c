/* Device files: null, zero, full, urandom. */
#include "tracee.h"

#include <sys/sysmacros.h>

static void check_dev(int fd, unsigned want_minor, int want_flags)
{
    struct stat st;
    MUST(fstat(fd, &st));
    CHECK(S_ISCHR(st.st_mode), "not a character device: 0%o", st.st_mode);
    CHECK_EQ("major", 1, major(st.st_rdev));
    CHECK_EQ("minor", want_minor, minor(st.st_rdev));
    CHECK_EQ("flags", want_flags, fcntl(fd, F_GETFL) & ~0x8000 /* O_LARGEFILE */);
}

int main(int argc, char **argv)
{
    char buf[64];
    tr_init(argc, argv);
    int null = MUST(open("/dev/null", O_RDWR | O_APPEND));
    int zero = MUST(open("/dev/zero", O_RDONLY));
    int full = MUST(open("/dev/full", O_WRONLY));
    int urandom = MUST(open("/dev/urandom", O_RDONLY | O_NONBLOCK));
    /* A mapping of /dev/zero is anonymous memory with a file's name. */
    char *m = MUST(mmap(NULL, 4 * TR_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, zero, 0));
    char *s = MUST(mmap(NULL, 4 * TR_PAGE, PROT_READ, MAP_PRIVATE, zero, 0));
    tr_fill(m, 2 * TR_PAGE, 9);

    tr_hold();

    check_dev(null, 3, O_RDWR | O_APPEND);
    check_dev(zero, 5, O_RDONLY);
    check_dev(full, 7, O_WRONLY);
    check_dev(urandom, 9, O_RDONLY | O_NONBLOCK);
    check_dev(0, 3, O_RDONLY);
    CHECK_EQ("write to null", 5, write(null, "12345", 5));
    CHECK_EQ("read from null", 0, read(null, buf, 5));
    CHECK_EQ("read from zero", 64, read(zero, buf, 64));
    tr_verify_zero("zero", buf, 64);
    CHECK(write(full, "x", 1) == -1 && errno == ENOSPC, "write to full: %s", strerror(errno));
    CHECK_EQ("read from urandom", 64, read(urandom, buf, 64));
    tr_verify("private mapping of zero", m, 2 * TR_PAGE, 9);
    tr_verify_zero("untouched mapping of zero", m + 2 * TR_PAGE, 2 * TR_PAGE);
    tr_verify_zero("read-only mapping of zero", s, 4 * TR_PAGE);
    return tr_pass(NULL);
}
