/* Parent and child connected through a path and through an abstract name. */
#include "sockets.h"

static void child_side(const struct sockaddr_un *path, const struct sockaddr_un *name)
{
    int a = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    int b = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
    MUST(connect(a, (const struct sockaddr *)path, sizeof *path));
    MUST(connect(b, (const struct sockaddr *)name, sizeof *name));
    tr_send(a, "in flight");
    tr_touch("connected");
    tr_recv("child, by path", a, "down");
    tr_recv("child, by abstract name", b, "down too");
    tr_send(a, "up");
    tr_send(b, "up too");
    _exit(0);
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    struct sockaddr_un path = tr_unix_addr("by-path"), name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "tracee %d", getpid());
    int lp = MUST(socket(AF_UNIX, SOCK_STREAM, 0)), ln = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
    MUST(bind(lp, (struct sockaddr *)&path, sizeof path));
    MUST(bind(ln, (struct sockaddr *)&name, sizeof name));
    MUST(listen(lp, 5));
    MUST(listen(ln, 5));
    pid_t child = tr_fork();
    if (child == 0) {
        close(lp), close(ln);
        child_side(&path, &name);
    }
    int a = MUST(accept(lp, NULL, NULL)), b = MUST(accept(ln, NULL, NULL));
    tr_await("connected");
    /* The path goes while the connection and the listener stay. */
    MUST(unlink("by-path"));

    tr_hold();

    tr_recv("sent before", a, "in flight");
    tr_send(a, "down");
    tr_send(b, "down too");
    tr_recv("by path", a, "up");
    tr_recv("by abstract name", b, "up too");
    tr_check_exit("child", child, 0);
    CHECK(access("by-path", F_OK) == -1, "the deleted socket file is back");
    int again = MUST(socket(AF_UNIX, SOCK_SEQPACKET, 0));
    MUST(connect(again, (struct sockaddr *)&name, sizeof name));
    close(MUST(accept(ln, NULL, NULL)));
    return tr_pass(NULL);
}
