/* Datagram and seqpacket pairs: boundaries, order and empty packets in flight. */
#include "sockets.h"

static void fill(int fd)
{
    tr_send(fd, "first");
    tr_send(fd, "");
    tr_send(fd, "the third, longer");
}

static void check(const char *what, int fd)
{
    tr_recv(what, fd, "first");
    tr_recv(what, fd, "");
    tr_recv(what, fd, "the third, longer");
    tr_recv_none(what, fd);
}

int main(int argc, char **argv)
{
    static const int types[] = {SOCK_DGRAM, SOCK_SEQPACKET};
    static const char *const names[] = {"dgram", "seqpacket"};
    int s[2][2];
    tr_init(argc, argv);
    for (int i = 0; i < 2; i++) {
        MUST(socketpair(AF_UNIX, types[i], 0, s[i]));
        fill(s[i][0]);
        fill(s[i][1]);
    }

    tr_hold();

    for (int i = 0; i < 2; i++) {
        CHECK_EQ("type", types[i], tr_getopt(s[i][0], SOL_SOCKET, SO_TYPE));
        check(names[i], s[i][0]);
        check(names[i], s[i][1]);
        tr_send(s[i][1], "after");
        tr_recv(names[i], s[i][0], "after");
    }
    return tr_pass(NULL);
}
