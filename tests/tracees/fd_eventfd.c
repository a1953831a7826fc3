/* eventfd: counter, semaphore mode, a value near the maximum, shared with a child. */
#include "tracee.h"

#include <sys/eventfd.h>

static uint64_t take(int fd)
{
    uint64_t v = 0;
    CHECK_EQ("size of an eventfd read", 8, read(fd, &v, 8));
    return v;
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    int counter = MUST(eventfd(12345, EFD_CLOEXEC));
    int sem = MUST(eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK));
    int huge = MUST(eventfd(0, EFD_NONBLOCK));
    int shared = MUST(eventfd(0, 0));
    MUST(eventfd_write(huge, 0xfffffffffffffffeULL));
    pid_t child = tr_fork();
    if (child == 0) {
        CHECK_EQ("what the parent added", 77, take(shared));
        _exit(0);
    }
    tr_await_syscall(child, SYS_read);

    tr_hold();

    CHECK_EQ("counter", 12345, take(counter));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(counter, F_GETFD));
    for (int i = 0; i < 3; i++)
        CHECK_EQ("semaphore", 1, take(sem));
    uint64_t v;
    CHECK(read(sem, &v, 8) == -1 && errno == EAGAIN, "the semaphore counted more than 3");
    CHECK(eventfd_write(huge, 1) == -1 && errno == EAGAIN, "the counter is not at its maximum");
    CHECK_EQ("maximum", -2, take(huge));
    MUST(eventfd_write(shared, 77));
    tr_check_exit("child", child, 0);
    return tr_pass(NULL);
}
