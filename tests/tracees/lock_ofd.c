/* Open file description locks: another description is locked out, a fork is not. */
#include "tracee.h"

static int try_lock(int fd, short type, off_t start, off_t len)
{
    struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return fcntl(fd, F_OFD_SETLK, &fl);
}

static void check_out(const char *what, int fd, short type, off_t start, bool want)
{
    int r = try_lock(fd, type, start, 5);
    CHECK((r == -1 && errno == EAGAIN) == want, "%s: expected %s, got %d (%s)", what,
          want ? "locked out" : "allowed", r, strerror(errno));
    if (r == 0)
        MUST(try_lock(fd, F_UNLCK, start, 5));
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    int a = MUST(open(tr_path("data"), O_RDWR | O_CREAT, 0600));
    int b = MUST(open(tr_path("data"), O_RDWR));
    MUST(try_lock(a, F_WRLCK, 10, 10));
    MUST(try_lock(b, F_RDLCK, 30, 10));

    tr_hold();

    check_out("write range from the other description", b, F_RDLCK, 10, true);
    check_out("write range, its last bytes", b, F_RDLCK, 15, true);
    check_out("read range, asked for writing", a, F_WRLCK, 30, true);
    check_out("read range, asked for reading", a, F_RDLCK, 30, false);
    check_out("free range", b, F_WRLCK, 20, false);
    pid_t child = tr_fork();
    if (child == 0) {
        int c = MUST(open(tr_path("data"), O_RDWR));
        check_out("another process", c, F_RDLCK, 10, true);
        CHECK_EQ("through the inherited description", 0, try_lock(a, F_WRLCK, 10, 10));
        _exit(0);
    }
    tr_check_exit("child", child, 0);
    close(a);
    check_out("after the holder closed", b, F_WRLCK, 10, false);
    return tr_pass(NULL);
}
