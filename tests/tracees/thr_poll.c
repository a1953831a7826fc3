/* poll, ppoll, select, epoll_wait: blocked with and without a timeout. */
#include "threads.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>

enum how { POLL, PPOLL, SELECT, PSELECT, EPOLL, HOWS };
static const char *const names[] = {"poll", "ppoll", "select", "pselect", "epoll_wait"};

struct job {
    enum how how;
    int fd, epfd;
    long timeout_ms;
    _Atomic bool done;
};

static int wait_readable(struct job *j)
{
    struct pollfd p = {j->fd, POLLIN, 0};
    struct timespec ts = {j->timeout_ms / 1000, j->timeout_ms % 1000 * 1000000};
    struct timeval tv = {ts.tv_sec, ts.tv_nsec / 1000};
    struct epoll_event ev;
    bool forever = j->timeout_ms < 0;
    fd_set set;
    FD_ZERO(&set);
    FD_SET(j->fd, &set);
    switch (j->how) {
    case POLL:
        return poll(&p, 1, (int)j->timeout_ms);
    case PPOLL:
        return ppoll(&p, 1, forever ? NULL : &ts, NULL);
    case SELECT:
        return select(j->fd + 1, &set, NULL, NULL, forever ? NULL : &tv);
    case PSELECT:
        return pselect(j->fd + 1, &set, NULL, NULL, forever ? NULL : &ts, NULL);
    default:
        return epoll_wait(j->epfd, &ev, 1, (int)j->timeout_ms);
    }
}

static void body(struct tr_thread *t)
{
    struct job *j = t->arg;
    long long start = tr_now_ns(CLOCK_MONOTONIC);
    int r = wait_readable(j);
    long long ms = (tr_now_ns(CLOCK_MONOTONIC) - start) / 1000000;
    j->done = true;
    CHECK(r >= 0, "%s(%ld): %s", names[j->how], j->timeout_ms, strerror(errno));
    CHECK_EQ(names[j->how], j->timeout_ms < 0 ? 1 : 0, r);
    CHECK(j->timeout_ms < 0 || ms >= j->timeout_ms, "%s: timeout of %ld ms ended after %lld",
          names[j->how], j->timeout_ms, ms);
}

int main(int argc, char **argv)
{
    static struct tr_thread threads[2 * HOWS];
    static struct job jobs[2 * HOWS];
    int quiet[2], busy[2];
    tr_init(argc, argv);
    MUST(pipe(quiet));
    MUST(pipe(busy));
    for (int i = 0; i < 2 * HOWS; i++) {
        struct job *j = &jobs[i];
        bool timed = i < HOWS;
        *j = (struct job){i % HOWS, timed ? quiet[0] : busy[0], -1, timed ? 2000 : -1, false};
        j->epfd = MUST(epoll_create1(0));
        struct epoll_event ev = {.events = EPOLLIN, .data.fd = j->fd};
        MUST(epoll_ctl(j->epfd, EPOLL_CTL_ADD, j->fd, &ev));
        tr_thread_start(&threads[i], body, j);
    }
    tr_sleep_ms(50);

    tr_hold();

    for (int i = HOWS; i < 2 * HOWS; i++)
        CHECK(!jobs[i].done, "%s without a timeout ended by itself", names[jobs[i].how]);
    CHECK_EQ("write", 1, write(busy[1], "x", 1));
    for (int i = 0; i < 2 * HOWS; i++)
        tr_thread_join(&threads[i]);
    return tr_pass(NULL);
}
