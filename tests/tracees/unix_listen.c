/* Listening at a path: accepts new clients; one is in the backlog at the checkpoint. */
#include "sockets.h"

/* A connection from the backlog either lives on or is cleanly reset. */
static void check_waiting(int client, int listener)
{
    char buf[16] = "";
    struct pollfd p = {listener, POLLIN, 0};
    if (poll(&p, 1, 0) == 1) {
        int fd = MUST(accept(listener, NULL, NULL));
        tr_recv("connection of the backlog", fd, "early");
        tr_send(fd, "welcome");
        tr_recv("client of the backlog", client, "welcome");
        close(fd);
        return;
    }
    ssize_t n = recv(client, buf, sizeof buf, MSG_DONTWAIT);
    CHECK(n == 0 || (n == -1 && (errno == ECONNRESET || errno == ENOTCONN)),
          "client of the backlog: neither accepted nor reset (%zd, %s)", n, strerror(errno));
}

int main(int argc, char **argv)
{
    struct sockaddr_un got = {0};
    socklen_t len = sizeof got;
    struct stat st;
    tr_init(argc, argv);
    struct sockaddr_un addr = tr_unix_addr("listener");
    int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(listener, (struct sockaddr *)&addr, sizeof addr));
    MUST(chmod("listener", 0640));
    MUST(listen(listener, 7));
    int early = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(early, (struct sockaddr *)&addr, sizeof addr));
    tr_send(early, "early");

    tr_hold();

    CHECK_EQ("SO_ACCEPTCONN", 1, tr_getopt(listener, SOL_SOCKET, SO_ACCEPTCONN));
    MUST(getsockname(listener, (struct sockaddr *)&got, &len));
    tr_check_str("bound name", "listener", got.sun_path);
    MUST(stat("listener", &st));
    CHECK_EQ("mode of the socket file", S_IFSOCK | 0640, st.st_mode);
    check_waiting(early, listener);
    int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(client, (struct sockaddr *)&addr, sizeof addr));
    int fd = MUST(accept(listener, NULL, NULL));
    tr_send(client, "late");
    tr_recv("new connection", fd, "late");
    return tr_pass(NULL);
}
