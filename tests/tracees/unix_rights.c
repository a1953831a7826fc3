/* Descriptors in flight (SCM_RIGHTS): a pipe end, a file with its offset, a socket. */
#include "sockets.h"

#include <sys/uio.h>

static void send_fds(int sock, const int *fds, int n, const char *text)
{
    char control[CMSG_SPACE(3 * sizeof(int))] = {0};
    struct iovec iov = {(void *)text, strlen(text)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                       .msg_controllen = CMSG_SPACE(n * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(n * sizeof(int));
    memcpy(CMSG_DATA(c), fds, n * sizeof(int));
    MUST(sendmsg(sock, &m, 0));
}

static int recv_fds(int sock, int *fds, const char *want)
{
    char control[256], text[64] = "";
    struct iovec iov = {text, sizeof text - 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                       .msg_controllen = sizeof control};
    MUST(recvmsg(sock, &m, MSG_DONTWAIT));
    tr_check_str("text beside the descriptors", want, text);
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c == NULL)
        return 0;
    CHECK_EQ("type of control message", SCM_RIGHTS, c->cmsg_type);
    int n = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(fds, CMSG_DATA(c), n * sizeof(int));
    return n;
}

int main(int argc, char **argv)
{
    int s[2], p[2], pair[2], got[8];
    char buf[16] = "";
    tr_init(argc, argv);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    MUST(pipe(p));
    int file = MUST(open(tr_path("data"), O_RDWR | O_CREAT, 0600));
    CHECK_EQ("write", 6, write(file, "abcdef", 6));
    MUST(lseek(file, 2, SEEK_SET));
    CHECK_EQ("write", 4, write(p[1], "pipe", 4));
    send_fds(s[0], (int[]){p[0], file}, 2, "two");
    send_fds(s[0], &pair[0], 1, "one");
    tr_send(s[0], "none");
    /* These live on in flight only; the file is kept open as well. */
    close(p[0]);
    close(pair[0]);

    tr_hold();

    CHECK_EQ("descriptors of the first message", 2, recv_fds(s[1], got, "two"));
    CHECK_EQ("read from the pipe that was in flight", 4, read(got[0], buf, 15));
    CHECK_EQ("offset of the file in flight", 2, lseek(got[1], 0, SEEK_CUR));
    MUST(lseek(got[1], 5, SEEK_SET));
    CHECK_EQ("offset shared with the open one", 5, lseek(file, 0, SEEK_CUR));
    CHECK_EQ("descriptors of the second message", 1, recv_fds(s[1], got + 2, "one"));
    tr_send(pair[1], "through");
    tr_recv("socket that was in flight", got[2], "through");
    CHECK_EQ("descriptors of the third message", 0, recv_fds(s[1], got + 3, "none"));
    CHECK_EQ("write", 1, write(p[1], "x", 1));
    CHECK_EQ("the pipe still connects", 1, read(got[0], buf, 15));
    return tr_pass(NULL);
}
