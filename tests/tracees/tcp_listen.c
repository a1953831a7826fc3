/* Listening TCP sockets over IPv4 and IPv6: same port, options, still accepting. */
#include "sockets.h"

static int make(int family)
{
    struct sockaddr_storage addr;
    socklen_t len = tr_loopback(family, 0, &addr);
    int fd = MUST(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    tr_setopt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    MUST(bind(fd, (struct sockaddr *)&addr, len));
    MUST(listen(fd, 9));
    return fd;
}

static void check(int fd, int family, int port)
{
    struct tcp_info info;
    socklen_t len = sizeof info;
    CHECK_EQ("family", family, tr_getopt(fd, SOL_SOCKET, SO_DOMAIN));
    CHECK_EQ("port", port, tr_local_port(fd));
    CHECK_EQ("SO_ACCEPTCONN", 1, tr_getopt(fd, SOL_SOCKET, SO_ACCEPTCONN));
    CHECK_EQ("SO_REUSEADDR", 1, tr_getopt(fd, SOL_SOCKET, SO_REUSEADDR));
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(fd, F_GETFD));
    MUST(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len));
    /* For a listening socket the kernel reports its backlog in this field. */
    CHECK_EQ("backlog", 9, info.tcpi_sacked);
    int client = MUST(socket(family, SOCK_STREAM, 0));
    tr_connect_to(client, family, port);
    int conn = MUST(accept(fd, NULL, NULL));
    tr_send(client, "hello");
    tr_recv("accepted connection", conn, "hello");
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    int v4 = make(AF_INET), v6 = make(AF_INET6);
    int port4 = tr_local_port(v4), port6 = tr_local_port(v6);

    tr_hold();

    check(v4, AF_INET, port4);
    check(v6, AF_INET6, port6);
    return tr_pass(NULL);
}
