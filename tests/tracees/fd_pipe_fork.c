/* Pipes between parent, child and grandchild, with bytes in flight; ends seen as EOF. */
#include "tracee.h"

static void echo(int from, int to, int add)
{
    unsigned char c;
    while (MUST(read(from, &c, 1)) == 1) {
        c = (unsigned char)(c + add);
        CHECK_EQ("write", 1, write(to, &c, 1));
    }
}

int main(int argc, char **argv)
{
    int down[2], mid[2], up[2];
    unsigned char buf[8];
    tr_init(argc, argv);
    MUST(pipe(down));
    MUST(pipe(mid));
    MUST(pipe(up));
    pid_t child = tr_fork();
    if (child == 0) {
        close(down[1]);
        pid_t grandchild = tr_fork();
        if (grandchild == 0) {
            close(down[0]), close(mid[1]), close(up[0]);
            tr_await("go");
            echo(mid[0], up[1], 100);
            _exit(0);
        }
        close(mid[0]), close(up[0]), close(up[1]);
        echo(down[0], mid[1], 10);
        close(mid[1]);
        tr_check_exit("grandchild", grandchild, 0);
        _exit(0);
    }
    close(down[0]), close(mid[0]), close(mid[1]), close(up[1]);
    /* These pass the child and wait in the pipe to the grandchild. */
    CHECK_EQ("write", 3, write(down[1], "\1\2\3", 3));
    tr_await_syscall(child, SYS_read);

    tr_hold();

    CHECK_EQ("write", 1, write(down[1], "\4", 1));
    close(down[1]);
    for (int i = 0; i < 4; i++) {
        CHECK_EQ("read", 1, read(up[0], buf, 1));
        CHECK_EQ("byte through both", 111 + i, buf[0]);
    }
    CHECK_EQ("end of file", 0, read(up[0], buf, 1));
    tr_check_exit("child", child, 0);
    return tr_pass(NULL);
}
