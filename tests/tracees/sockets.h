/* Addresses and short cuts for the socket tracees. */
#ifndef TRACEE_SOCKETS_H
#define TRACEE_SOCKETS_H

#include "tracee.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Binds by a short relative name: scratch paths may exceed sun_path. */
static inline struct sockaddr_un tr_unix_addr(const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    MUST(chdir(tr_dir));
    snprintf(a.sun_path, sizeof a.sun_path, "%s", name);
    return a;
}

static inline int tr_getopt(int fd, int level, int opt)
{
    int v = -1;
    socklen_t len = sizeof v;
    MUST(getsockopt(fd, level, opt, &v, &len));
    return v;
}

static inline void tr_setopt(int fd, int level, int opt, int v)
{
    MUST(setsockopt(fd, level, opt, &v, sizeof v));
}

static inline void tr_send(int fd, const char *text)
{
    CHECK_EQ("send", (ssize_t)strlen(text), send(fd, text, strlen(text), MSG_NOSIGNAL));
}

/* Receives once, without waiting longer than 5 s, and compares. */
static inline void tr_recv(const char *what, int fd, const char *want)
{
    char buf[256] = "";
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 5000) == 1, "%s: nothing to receive, expected \"%s\"", what, want);
    ssize_t n = recv(fd, buf, sizeof buf - 1, 0);
    CHECK(n >= 0, "%s: recv: %s", what, strerror(errno));
    buf[n] = 0;
    tr_check_str(what, want, buf);
}

static inline void tr_recv_none(const char *what, int fd)
{
    char c;
    CHECK(recv(fd, &c, 1, MSG_DONTWAIT | MSG_PEEK) == -1 && errno == EAGAIN,
          "%s: more to receive than expected", what);
}

/* Loopback address of either family with the port in host order. */
static inline socklen_t tr_loopback(int family, int port, struct sockaddr_storage *out)
{
    struct sockaddr_in *v4 = (void *)out;
    struct sockaddr_in6 *v6 = (void *)out;
    memset(out, 0, sizeof *out);
    out->ss_family = (sa_family_t)family;
    if (family == AF_INET) {
        v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        v4->sin_port = htons((uint16_t)port);
        return sizeof *v4;
    }
    v6->sin6_addr = in6addr_loopback;
    v6->sin6_port = htons((uint16_t)port);
    return sizeof *v6;
}

static inline int tr_local_port(int fd)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    MUST(getsockname(fd, (struct sockaddr *)&a, &len));
    /* The port has the same place in both families. */
    return ntohs(((struct sockaddr_in *)&a)->sin_port);
}

/* A socket bound to a free loopback port. */
static inline int tr_bound(int family, int type)
{
    struct sockaddr_storage a;
    socklen_t len = tr_loopback(family, 0, &a);
    int fd = MUST(socket(family, type, 0));
    MUST(bind(fd, (struct sockaddr *)&a, len));
    return fd;
}

static inline void tr_connect_to(int fd, int family, int port)
{
    struct sockaddr_storage a;
    socklen_t len = tr_loopback(family, port, &a);
    MUST(connect(fd, (struct sockaddr *)&a, len));
}

#endif
