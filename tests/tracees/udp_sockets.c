/* UDP: bound and connected sockets over both families, options. */
#include "sockets.h"

static void pair_up(int family, int *bound, int *connected)
{
    *bound = tr_bound(family, SOCK_DGRAM);
    *connected = tr_bound(family, SOCK_DGRAM);
    tr_connect_to(*connected, family, tr_local_port(*bound));
}

static void check_pair(const char *what, int family, int bound, int connected, int port)
{
    struct sockaddr_storage peer;
    socklen_t len = sizeof peer;
    CHECK_EQ("port", port, tr_local_port(bound));
    MUST(getpeername(connected, (struct sockaddr *)&peer, &len));
    CHECK_EQ("peer's port", port, ntohs(((struct sockaddr_in *)&peer)->sin_port));
    tr_send(connected, "new");
    tr_recv(what, bound, "new");
    len = tr_loopback(family, tr_local_port(connected), &peer);
    MUST(sendto(bound, "answer", 6, 0, (struct sockaddr *)&peer, len));
    tr_recv(what, connected, "answer");
}

int main(int argc, char **argv)
{
    int b4, c4, b6, c6;
    tr_init(argc, argv);
    pair_up(AF_INET, &b4, &c4);
    pair_up(AF_INET6, &b6, &c6);
    tr_setopt(b4, SOL_SOCKET, SO_BROADCAST, 1);
    tr_setopt(b4, SOL_SOCKET, SO_RCVBUF, 70000);
    int fresh = MUST(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0));
    int p4 = tr_local_port(b4), p6 = tr_local_port(b6);

    tr_hold();

    CHECK_EQ("SO_BROADCAST", 1, tr_getopt(b4, SOL_SOCKET, SO_BROADCAST));
    CHECK_EQ("SO_RCVBUF", 140000, tr_getopt(b4, SOL_SOCKET, SO_RCVBUF));
    check_pair("IPv4", AF_INET, b4, c4, p4);
    check_pair("IPv6", AF_INET6, b6, c6, p6);
    CHECK_EQ("port of the fresh socket", 0, tr_local_port(fresh));
    return tr_pass(NULL);
}
