/* Options of local sockets: SO_PASSCRED, buffer sizes, timeouts; a plain bound one. */
#include "sockets.h"

#include <sys/time.h>

static void check_passcred(int from, int to)
{
    char control[128], c;
    struct iovec iov = {&c, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                       .msg_controllen = sizeof control};
    tr_send(from, "x");
    MUST(recvmsg(to, &m, 0));
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    CHECK(h != NULL && h->cmsg_type == SCM_CREDENTIALS, "no credentials were passed");
    struct ucred cred;
    memcpy(&cred, CMSG_DATA(h), sizeof cred);
    CHECK_EQ("pid in the credentials", getpid(), cred.pid);
}

int main(int argc, char **argv)
{
    int s[2];
    struct timeval tv = {3, 500000};
    socklen_t len = sizeof tv;
    tr_init(argc, argv);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    tr_setopt(s[0], SOL_SOCKET, SO_PASSCRED, 1);
    tr_setopt(s[0], SOL_SOCKET, SO_SNDBUF, 30000);
    tr_setopt(s[1], SOL_SOCKET, SO_RCVBUF, 50000);
    tr_setopt(s[1], SOL_SOCKET, SO_PRIORITY, 3);
    MUST(setsockopt(s[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv));
    /* Created, neither bound nor connected. */
    int fresh = MUST(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));

    tr_hold();

    CHECK_EQ("SO_SNDBUF", 60000, tr_getopt(s[0], SOL_SOCKET, SO_SNDBUF));
    CHECK_EQ("SO_RCVBUF", 100000, tr_getopt(s[1], SOL_SOCKET, SO_RCVBUF));
    CHECK_EQ("SO_PRIORITY", 3, tr_getopt(s[1], SOL_SOCKET, SO_PRIORITY));
    CHECK_EQ("SO_PASSCRED", 1, tr_getopt(s[0], SOL_SOCKET, SO_PASSCRED));
    CHECK_EQ("SO_PASSCRED of the peer", 0, tr_getopt(s[1], SOL_SOCKET, SO_PASSCRED));
    memset(&tv, 0, sizeof tv);
    MUST(getsockopt(s[1], SOL_SOCKET, SO_RCVTIMEO, &tv, &len));
    CHECK_EQ("SO_RCVTIMEO", 3500000, tv.tv_sec * 1000000 + tv.tv_usec);
    check_passcred(s[1], s[0]);
    CHECK_EQ("type of the fresh socket", SOCK_STREAM, tr_getopt(fresh, SOL_SOCKET, SO_TYPE));
    CHECK_EQ("flags of the fresh socket", O_RDWR | O_NONBLOCK, fcntl(fresh, F_GETFL));
    return tr_pass(NULL);
}
