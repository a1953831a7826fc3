/* Established TCP over loopback: reset by a restore that closes, untouched otherwise. */
#include "sockets.h"

static void check_reset(const char *what, int fd)
{
    char c;
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1, "%s: poll does not wake up", what);
    ssize_t n = recv(fd, &c, 1, 0);
    CHECK(n == -1 && errno == ECONNRESET, "%s: expected ECONNRESET, got %zd (%s)", what, n,
          strerror(errno));
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    int listener = tr_bound(AF_INET, SOCK_STREAM);
    MUST(listen(listener, 3));
    int client = MUST(socket(AF_INET, SOCK_STREAM, 0));
    tr_connect_to(client, AF_INET, tr_local_port(listener));
    int server = MUST(accept(listener, NULL, NULL));
    tr_send(client, "warm");
    tr_recv("before", server, "warm");
    long long born = tr_start_time();

    tr_hold();

    if (tr_start_time() == born) {
        tr_send(client, "still here");
        tr_recv("never restored", server, "still here");
        return tr_pass(NULL);
    }
    check_reset("client", client);
    check_reset("server", server);
    int fresh = MUST(socket(AF_INET, SOCK_STREAM, 0));
    tr_connect_to(fresh, AF_INET, tr_local_port(listener));
    close(MUST(accept(listener, NULL, NULL)));
    return tr_pass(NULL);
}
