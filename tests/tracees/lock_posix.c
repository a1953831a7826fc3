/* fcntl record locks: ranges and types, belonging to the right process. */
#include "tracee.h"

static void lock(int fd, short type, off_t start, off_t len)
{
    struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    MUST(fcntl(fd, F_SETLK, &fl));
}

static void check(int fd, short ask, off_t start, off_t len, short want, pid_t holder)
{
    struct flock fl = {.l_type = ask, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    MUST(fcntl(fd, F_GETLK, &fl));
    CHECK(fl.l_type == want, "range %ld+%ld: type expected %d, got %d", (long)start, (long)len,
          want, fl.l_type);
    if (want != F_UNLCK)
        CHECK_EQ("holder of a lock", holder, fl.l_pid);
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    int fd = MUST(open(tr_path("data"), O_RDWR | O_CREAT, 0600));
    lock(fd, F_WRLCK, 0, 100);
    lock(fd, F_RDLCK, 200, 50);
    /* Splits the first range. */
    lock(fd, F_UNLCK, 40, 20);
    pid_t parent = getpid(), child = tr_fork();
    if (child == 0) {
        lock(fd, F_WRLCK, 1000, 0);
        tr_touch("up");
        tr_wait_go();
        check(fd, F_RDLCK, 0, 40, F_WRLCK, parent);
        check(fd, F_WRLCK, 40, 20, F_UNLCK, 0);
        check(fd, F_RDLCK, 60, 40, F_WRLCK, parent);
        check(fd, F_WRLCK, 200, 50, F_RDLCK, parent);
        check(fd, F_RDLCK, 200, 50, F_UNLCK, 0);
        check(fd, F_WRLCK, 250, 10, F_UNLCK, 0);
        tr_touch("child.done");
        tr_await("child.end");
        _exit(0);
    }
    tr_await("up");

    tr_hold();

    tr_await("child.done");
    check(fd, F_RDLCK, 1 << 20, 1, F_WRLCK, child);
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1500, .l_len = 1};
    CHECK(fcntl(fd, F_SETLK, &fl) == -1 && (errno == EAGAIN || errno == EACCES),
          "the child's lock does not lock the parent out");
    tr_touch("child.end");
    tr_check_exit("child", child, 0);
    check(fd, F_WRLCK, 1000, 0, F_UNLCK, 0);
    return tr_pass(NULL);
}
