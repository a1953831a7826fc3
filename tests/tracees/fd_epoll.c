/* epoll: modes, user data, events pending, nested sets, targets by dup, closed targets. */
#include "tracee.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

static int add(int ep, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event ev = {.events = events, .data.u64 = data};
    return MUST(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
}

static void check_next(const char *what, int ep, uint64_t data)
{
    struct epoll_event ev = {0};
    int n = MUST(epoll_wait(ep, &ev, 1, data == 0 ? 20 : 5000));
    CHECK_EQ(what, data == 0 ? 0 : 1, n);
    if (data != 0)
        CHECK_EQ(what, data, ev.data.u64);
}

int main(int argc, char **argv)
{
    tr_init(argc, argv);
    int level = MUST(eventfd(1, 0)), edge = MUST(eventfd(0, 0)), once = MUST(eventfd(1, 0));
    int pending = MUST(eventfd(1, 0)), inner_fd = MUST(eventfd(1, 0));
    int ep[6];
    for (int i = 0; i < 6; i++)
        ep[i] = MUST(epoll_create1(i == 0 ? EPOLL_CLOEXEC : 0));
    add(ep[0], level, EPOLLIN, 0x1122334455667788ULL);
    add(ep[1], edge, EPOLLIN | EPOLLET, 2);
    add(ep[2], once, EPOLLIN | EPOLLONESHOT, 3);
    check_next("one-shot before", ep[2], 3);
    add(ep[3], pending, EPOLLIN | EPOLLET, 4);
    /* ep[4] watches ep[5]. */
    add(ep[5], inner_fd, EPOLLIN, 6);
    add(ep[4], ep[5], EPOLLIN, 5);
    int far = MUST(fcntl(level, F_DUPFD, 200));
    add(ep[5], far, EPOLLOUT, 0);
    MUST(epoll_ctl(ep[5], EPOLL_CTL_DEL, far, NULL));

    tr_hold();

    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(ep[0], F_GETFD));
    check_next("level", ep[0], 0x1122334455667788ULL);
    check_next("level, again", ep[0], 0x1122334455667788ULL);
    check_next("edge without an event", ep[1], 0);
    MUST(eventfd_write(edge, 1));
    check_next("edge", ep[1], 2);
    check_next("edge, again", ep[1], 0);
    check_next("one-shot that has fired", ep[2], 0);
    struct epoll_event ev = {.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 33};
    MUST(epoll_ctl(ep[2], EPOLL_CTL_MOD, once, &ev));
    check_next("one-shot armed anew", ep[2], 33);
    check_next("edge pending across", ep[3], 4);
    check_next("outer", ep[4], 5);
    check_next("inner", ep[5], 6);
    eventfd_t v;
    MUST(eventfd_read(inner_fd, &v));
    check_next("outer after draining", ep[4], 0);
    CHECK(epoll_ctl(ep[0], EPOLL_CTL_ADD, level, &ev) == -1 && errno == EEXIST,
          "the target is not registered under its descriptor");
    CHECK(epoll_ctl(ep[5], EPOLL_CTL_DEL, far, NULL) == -1 && errno == ENOENT,
          "a removed target came back");
    return tr_pass(NULL);
}
