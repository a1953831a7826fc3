/* Descriptions shared by dup and fork: one offset, one set of status flags. */
#include "tracee.h"

#include <linux/kcmp.h>

static bool same(pid_t a, int fa, pid_t b, int fb)
{
    return MUST(syscall(SYS_kcmp, a, b, KCMP_FILE, fa, fb)) == 0;
}

int main(int argc, char **argv)
{
    char buf[8] = "";
    tr_init(argc, argv);
    int a = MUST(open(tr_path("data"), O_RDWR | O_CREAT, 0600));
    CHECK_EQ("write", 20, write(a, "abcdefghijklmnopqrst", 20));
    int b = MUST(fcntl(a, F_DUPFD_CLOEXEC, 40));
    int apart = MUST(open(tr_path("data"), O_RDWR));
    MUST(lseek(a, 2, SEEK_SET));
    pid_t child = tr_fork();
    if (child == 0) {
        close(b);
        int own = MUST(open(tr_path("data"), O_RDONLY));
        MUST(dup2(own, 90));
        tr_touch("up");
        tr_await("child.go");
        CHECK_EQ("offset seen by the child", 5, lseek(a, 0, SEEK_CUR));
        MUST(lseek(a, 11, SEEK_SET));
        MUST(fcntl(a, F_SETFL, O_NONBLOCK));
        MUST(lseek(own, 7, SEEK_SET));
        CHECK_EQ("offset of the child's own dup", 7, lseek(90, 0, SEEK_CUR));
        tr_touch("child.done");
        tr_await("child.end");
        _exit(0);
    }
    tr_await("up");

    tr_hold();

    pid_t me = getpid();
    CHECK(same(me, a, me, b), "dup lost its description");
    CHECK(same(me, a, child, a), "the child lost the shared description");
    CHECK(!same(me, a, me, apart), "separate descriptions were merged");
    CHECK_EQ("read", 3, read(b, buf, 3));
    tr_check_str("read through the dup", "cde", buf);
    CHECK_EQ("offset through the original", 5, lseek(a, 0, SEEK_CUR));
    CHECK_EQ("separate description", 0, lseek(apart, 0, SEEK_CUR));
    CHECK_EQ("close-on-exec of the dup", FD_CLOEXEC, fcntl(b, F_GETFD));
    CHECK_EQ("close-on-exec of the original", 0, fcntl(a, F_GETFD));
    tr_touch("child.go");
    tr_await("child.done");
    CHECK_EQ("offset set by the child", 11, lseek(b, 0, SEEK_CUR));
    CHECK(fcntl(b, F_GETFL) & O_NONBLOCK, "status flags are not shared");
    tr_touch("child.end");
    tr_check_exit("child", child, 0);
    return tr_pass(NULL);
}
