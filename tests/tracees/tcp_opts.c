/* Options of TCP sockets, on a listening one (inherited by accept) and a fresh one. */
#include "sockets.h"

static const struct {
    const char *name;
    int level, opt, set, want;
} opts[] = {
    {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1, 1},
    {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1, 1},
    {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 321, 321},
    {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 33, 33},
    {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 5, 5},
    {"SO_RCVBUF", SOL_SOCKET, SO_RCVBUF, 40000, 80000},
    {"SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, 45000, 90000},
    {"SO_REUSEPORT", SOL_SOCKET, SO_REUSEPORT, 1, 1},
    {"TCP_DEFER_ACCEPT off", IPPROTO_TCP, TCP_DEFER_ACCEPT, 0, 0},
    {"IP_TOS", IPPROTO_IP, IP_TOS, 0x10, 0x10},
    {"IP_TTL", IPPROTO_IP, IP_TTL, 42, 42},
};
enum { OPTS = sizeof opts / sizeof opts[0] };

static void check_all(const char *which, int fd)
{
    for (int i = 0; i < OPTS; i++) {
        int got = tr_getopt(fd, opts[i].level, opts[i].opt);
        CHECK(got == opts[i].want, "%s socket: %s expected %d, got %d", which, opts[i].name,
              opts[i].want, got);
    }
}

int main(int argc, char **argv)
{
    struct linger linger = {1, 7};
    socklen_t len = sizeof linger;
    tr_init(argc, argv);
    int listener = MUST(socket(AF_INET, SOCK_STREAM, 0));
    int fresh = MUST(socket(AF_INET, SOCK_STREAM, 0));
    struct sockaddr_storage addr;
    socklen_t addr_len = tr_loopback(AF_INET, 0, &addr);
    for (int i = 0; i < OPTS; i++) {
        tr_setopt(listener, opts[i].level, opts[i].opt, opts[i].set);
        tr_setopt(fresh, opts[i].level, opts[i].opt, opts[i].set);
    }
    MUST(setsockopt(fresh, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    MUST(bind(listener, (struct sockaddr *)&addr, addr_len));
    MUST(listen(listener, 3));
    int dual = MUST(socket(AF_INET6, SOCK_STREAM, 0));
    tr_setopt(dual, IPPROTO_IPV6, IPV6_V6ONLY, 1);

    tr_hold();

    check_all("listening", listener);
    check_all("fresh", fresh);
    memset(&linger, 0, sizeof linger);
    MUST(getsockopt(fresh, SOL_SOCKET, SO_LINGER, &linger, &len));
    CHECK_EQ("SO_LINGER", 7, linger.l_onoff ? linger.l_linger : -1);
    CHECK_EQ("IPV6_V6ONLY", 1, tr_getopt(dual, IPPROTO_IPV6, IPV6_V6ONLY));
    tr_connect_to(fresh, AF_INET, tr_local_port(listener));
    int conn = MUST(accept(listener, NULL, NULL));
    CHECK_EQ("TCP_NODELAY of an accepted socket", 1, tr_getopt(conn, IPPROTO_TCP, TCP_NODELAY));
    return tr_pass(NULL);
}
