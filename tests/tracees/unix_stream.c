/* Stream socketpair with bytes in flight both ways, shared with a child. */
#include "sockets.h"

int main(int argc, char **argv)
{
    static char big[100000], back[100000];
    int s[2], inner[2], filled[2];
    size_t have = 0;
    tr_init(argc, argv);
    MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, inner));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, filled));
    tr_send(s[0], "to the right");
    tr_send(s[0], ", twice");
    tr_send(s[1], "to the left");
    tr_fill(big, sizeof big, 4);
    CHECK_EQ("send", sizeof big, send(filled[0], big, sizeof big, 0));
    pid_t child = tr_fork();
    if (child == 0) {
        close(inner[0]);
        tr_recv("child", inner[1], "ping");
        tr_send(inner[1], "pong");
        _exit(0);
    }
    close(inner[1]);

    tr_hold();

    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(s[0], F_GETFD));
    CHECK_EQ("flags", O_RDWR | O_NONBLOCK, fcntl(s[1], F_GETFL));
    tr_recv("right end", s[1], "to the right, twice");
    tr_recv("left end", s[0], "to the left");
    tr_recv_none("right end", s[1]);
    for (ssize_t n; have < sizeof back; have += (size_t)n)
        n = MUST(recv(filled[1], back + have, sizeof back - have, 0));
    CHECK(memcmp(big, back, sizeof big) == 0, "bytes of the filled pair changed");
    tr_send(filled[1], "still connected");
    tr_recv("filled pair, the other way", filled[0], "still connected");
    tr_send(inner[0], "ping");
    tr_recv("parent", inner[0], "pong");
    tr_check_exit("child", child, 0);
    CHECK_EQ("end of file after the child ended", 0, recv(inner[0], back, 1, 0));
    return tr_pass(NULL);
}
