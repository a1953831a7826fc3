/* Names and peer credentials on both ends of accepted local connections. A restored connection
   names the restorer's pid, which made both ends. */
#include "sockets.h"

struct link {
    int listener, client, server;
};

static struct link make(const struct sockaddr_un *addr)
{
    struct link l = {MUST(socket(AF_UNIX, SOCK_STREAM, 0)), MUST(socket(AF_UNIX, SOCK_STREAM, 0)),
                     -1};
    MUST(bind(l.listener, (const struct sockaddr *)addr, sizeof *addr));
    MUST(listen(l.listener, 4));
    MUST(connect(l.client, (const struct sockaddr *)addr, sizeof *addr));
    l.server = MUST(accept(l.listener, NULL, NULL));
    return l;
}

/* The name follows the leading byte, which is 0 in an abstract one. */
static void check_name(const char *what, int fd, bool peer, const struct sockaddr_un *want)
{
    struct sockaddr_un got = {0};
    socklen_t len = sizeof got;
    MUST((peer ? getpeername : getsockname)(fd, (struct sockaddr *)&got, &len));
    CHECK_EQ(what, want->sun_path[0], got.sun_path[0]);
    tr_check_str(what, want->sun_path + 1, got.sun_path + 1);
}

static void check(const struct link *l, const struct sockaddr_un *addr, bool restored)
{
    static const struct sockaddr_un nameless;
    struct ucred cred;
    check_name("listener", l->listener, false, addr);
    check_name("accepted socket", l->server, false, addr);
    check_name("peer of the client", l->client, true, addr);
    check_name("client", l->client, false, &nameless);
    check_name("peer of the accepted socket", l->server, true, &nameless);
    for (int i = 0; i < 2; i++) {
        socklen_t len = sizeof cred;
        MUST(getsockopt(i ? l->client : l->server, SOL_SOCKET, SO_PEERCRED, &cred, &len));
        CHECK(restored || cred.pid == getpid(), "SO_PEERCRED pid: got %d", (int)cred.pid);
        CHECK_EQ("SO_PEERCRED uid", getuid(), cred.uid);
    }
    tr_send(l->client, "there");
    tr_recv("accepted socket", l->server, "there");
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    struct sockaddr_un path = tr_unix_addr("named"), abstract = {.sun_family = AF_UNIX};
    snprintf(abstract.sun_path + 1, sizeof abstract.sun_path - 1, "names of %d", getpid());
    struct link by_path = make(&path), by_name = make(&abstract);
    long long born = tr_start_time();

    tr_hold();

    bool restored = tr_start_time() != born;
    check(&by_path, &path, restored);
    check(&by_name, &abstract, restored);
    return tr_pass(NULL);
}
