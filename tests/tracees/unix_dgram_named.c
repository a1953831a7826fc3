/* Named datagram sockets: senders' names on queued packets, connected and not, and of a sender that is gone. */
#include "sockets.h"

static void check_from(const char *what, int fd, const char *text, const char *sender)
{
    struct sockaddr_un from = {0};
    socklen_t len = sizeof from;
    char buf[64] = "";
    MUST(recvfrom(fd, buf, sizeof buf - 1, MSG_DONTWAIT, (struct sockaddr *)&from, &len));
    tr_check_str(what, text, buf);
    tr_check_str("sender of a packet", sender, len > 2 ? from.sun_path : "");
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    struct sockaddr_un server = tr_unix_addr("server"), peer = tr_unix_addr("peer");
    int s = MUST(socket(AF_UNIX, SOCK_DGRAM, 0)), p = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    int anon = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    MUST(bind(s, (struct sockaddr *)&server, sizeof server));
    MUST(bind(p, (struct sockaddr *)&peer, sizeof peer));
    MUST(connect(p, (struct sockaddr *)&server, sizeof server));
    tr_send(p, "from peer");
    MUST(sendto(anon, "from nobody", 11, 0, (struct sockaddr *)&server, sizeof server));
    int gone = MUST(socket(AF_UNIX, SOCK_DGRAM, 0));
    struct sockaddr_un late = tr_unix_addr("gone");
    MUST(bind(gone, (struct sockaddr *)&late, sizeof late));
    MUST(sendto(gone, "from the gone", 13, 0, (struct sockaddr *)&server, sizeof server));
    MUST(close(gone));
    MUST(unlink("gone"));
    /* The names are relative to where the process was when it bound them. */
    MUST(chdir("/"));

    tr_hold();

    MUST(chdir(tr_dir));

    check_from("queued packet", s, "from peer", "peer");
    check_from("queued packet", s, "from nobody", "");
    check_from("queued packet", s, "from the gone", "gone");
    CHECK(access("gone", F_OK) == -1, "the deleted socket file is back");
    tr_send(p, "connected");
    check_from("new packet", s, "connected", "peer");
    MUST(sendto(s, "answer", 6, 0, (struct sockaddr *)&peer, sizeof peer));
    check_from("answer", p, "answer", "server");
    return tr_pass(NULL);
}
