/* Regular files: offset, access mode, status and close-on-exec flags, gaps in numbers. */
#include "tracee.h"

static int open_at(int fd, const char *name, int flags)
{
    int got = MUST(open(tr_path(name), flags, 0640));
    if (got != fd) {
        MUST(dup3(got, fd, flags & O_CLOEXEC));
        close(got);
    }
    return fd;
}

static void check_flags(int fd, int status, int cloexec)
{
    CHECK_EQ("status flags", status, fcntl(fd, F_GETFL) & ~0x8000 /* O_LARGEFILE */);
    CHECK_EQ("close-on-exec", cloexec, fcntl(fd, F_GETFD));
}

int main(int argc, char **argv)
{
    char buf[16] = "";
    struct stat st;
    tr_init(argc, argv);
    int rw = open_at(10, "rw", O_RDWR | O_CREAT);
    int append = open_at(57, "append", O_WRONLY | O_CREAT | O_APPEND);
    int ro = open_at(300, "rw", O_RDONLY | O_CLOEXEC);
    int nb = open_at(1000, "rw", O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOATIME);
    int created = open_at(11, "excl", O_RDWR | O_CREAT | O_EXCL | O_TRUNC);
    CHECK_EQ("write", 10, write(rw, "0123456789", 10));
    CHECK_EQ("write", 3, write(append, "one", 3));
    CHECK_EQ("write", 4, write(created, "kept", 4));
    MUST(lseek(rw, 4, SEEK_SET));
    MUST(lseek(ro, 5000000000LL, SEEK_SET));
    MUST(lseek(append, 0, SEEK_SET));

    tr_hold();

    check_flags(rw, O_RDWR, 0);
    check_flags(append, O_WRONLY | O_APPEND, 0);
    check_flags(ro, O_RDONLY, FD_CLOEXEC);
    check_flags(nb, O_RDWR | O_NONBLOCK | O_NOATIME, FD_CLOEXEC);
    check_flags(created, O_RDWR, 0);
    CHECK_EQ("offset", 4, lseek(rw, 0, SEEK_CUR));
    CHECK_EQ("offset beyond 4 GB", 5000000000LL, lseek(ro, 0, SEEK_CUR));
    CHECK_EQ("read", 3, read(rw, buf, 3));
    tr_check_str("bytes at the offset", "456", buf);
    CHECK_EQ("offsets are not shared", 0, lseek(nb, 0, SEEK_CUR));
    CHECK_EQ("write", 3, write(append, "two", 3));
    MUST(fstat(append, &st));
    CHECK_EQ("size after appending", 6, st.st_size);
    MUST(fstat(created, &st));
    CHECK_EQ("O_TRUNC must not happen again", 4, st.st_size);
    for (int fd = 3; fd < 1100; fd++)
        if (fd != rw && fd != append && fd != ro && fd != nb && fd != created)
            CHECK(fcntl(fd, F_GETFD) == -1, "descriptor %d should not be open", fd);
    CHECK_EQ("next free descriptor", 3, open("/dev/null", O_RDONLY));
    return tr_pass(NULL);
}
