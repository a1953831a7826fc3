/* Half-closed stream pairs, and one whose other end is closed. */
#include "sockets.h"

int main(int argc, char **argv)
{
    int w[2], r[2], gone[2];
    char c;
    tr_init(argc, argv);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, w));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, r));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, gone));
    tr_send(w[0], "last words");
    MUST(shutdown(w[0], SHUT_WR));
    MUST(shutdown(r[0], SHUT_RD));
    tr_send(gone[1], "left behind");
    close(gone[1]);

    tr_hold();

    tr_recv("before the shutdown", w[1], "last words");
    CHECK_EQ("end of file", 0, recv(w[1], &c, 1, MSG_DONTWAIT));
    CHECK(send(w[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE, "send after SHUT_WR: %s",
          strerror(errno));
    tr_send(w[1], "other way");
    tr_recv("the direction still open", w[0], "other way");
    CHECK_EQ("read after SHUT_RD", 0, recv(r[0], &c, 1, MSG_DONTWAIT));
    CHECK(send(r[1], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE,
          "send to an end shut for reading: %s", strerror(errno));
    tr_send(r[0], "fine");
    tr_recv("from an end shut for reading", r[1], "fine");
    tr_recv("from a closed end", gone[0], "left behind");
    CHECK_EQ("end of file of a closed end", 0, recv(gone[0], &c, 1, MSG_DONTWAIT));
    CHECK(send(gone[0], "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE,
          "send to a closed end: %s", strerror(errno));
    return tr_pass(NULL);
}
