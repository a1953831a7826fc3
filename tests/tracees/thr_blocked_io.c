/* Threads blocked in read, readv, write, accept, recvmsg, flock and a fifo open. */
#include "threads.h"

#include <sys/file.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>

static int in_pipe[2], out_pipe[2], pair[2], listener, held_fd;
static size_t stuffed;

static void reader(struct tr_thread *t)
{
    char buf[64];
    (void)t;
    CHECK_EQ("blocked read", 5, read(in_pipe[0], buf, sizeof buf));
    CHECK(memcmp(buf, "hello", 5) == 0, "blocked read: wrong bytes");
}

static void writer(struct tr_thread *t)
{
    static char big[8192];
    (void)t;
    memset(big, 'w', sizeof big);
    CHECK_EQ("blocked write", sizeof big, write(out_pipe[1], big, sizeof big));
}

static void receiver(struct tr_thread *t)
{
    char buf[64];
    struct iovec iov = {buf, sizeof buf};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    (void)t;
    CHECK_EQ("blocked recvmsg", 3, recvmsg(pair[0], &msg, 0));
}

static void acceptor(struct tr_thread *t)
{
    (void)t;
    int fd = MUST(accept(listener, NULL, NULL));
    close(fd);
}

static void locker(struct tr_thread *t)
{
    (void)t;
    int fd = MUST(open(tr_path("lock"), O_RDWR));
    MUST(flock(fd, LOCK_EX));
    close(fd);
}

static void opener(struct tr_thread *t)
{
    (void)t;
    int fd = MUST(open(tr_path("fifo"), O_RDONLY));
    close(fd);
}

static void set_up(struct sockaddr_un *addr)
{
    static char fill[4096];
    MUST(pipe(in_pipe));
    MUST(pipe2(out_pipe, O_NONBLOCK));
    for (ssize_t n; (n = write(out_pipe[1], fill, sizeof fill)) > 0;)
        stuffed += (size_t)n;
    MUST(fcntl(out_pipe[1], F_SETFL, 0));
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(listener, (struct sockaddr *)addr, sizeof *addr));
    MUST(listen(listener, 5));
    held_fd = MUST(open(tr_path("lock"), O_RDWR | O_CREAT, 0600));
    MUST(flock(held_fd, LOCK_EX));
    MUST(mkfifo(tr_path("fifo"), 0600));
}

static void drain(void)
{
    char buf[4096];
    size_t total = 0, want = stuffed + 8192;
    while (total < want) {
        ssize_t n = read(out_pipe[0], buf, sizeof buf);
        if (n > 0)
            total += (size_t)n;
        else
            tr_sleep_ms(1);
    }
    CHECK(read(out_pipe[0], buf, 1) == -1 && errno == EAGAIN, "more bytes than written");
}

int main(int argc, char **argv)
{
    static const struct {
        void (*body)(struct tr_thread *);
        long syscall;
    } jobs[] = {{reader, SYS_read},   {writer, SYS_write}, {receiver, SYS_recvmsg},
                {acceptor, SYS_accept}, {locker, SYS_flock}, {opener, SYS_openat}};
    static struct tr_thread threads[6];
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    tr_init(argc, argv);
    snprintf(addr.sun_path, sizeof addr.sun_path, "\001tracee-%d", getpid());
    addr.sun_path[0] = 0;
    set_up(&addr);
    for (int i = 0; i < 6; i++) {
        tr_thread_start(&threads[i], jobs[i].body, NULL);
        tr_await_syscall(threads[i].tid, jobs[i].syscall);
    }

    tr_hold();

    for (int i = 0; i < 6; i++)
        tr_await_syscall(threads[i].tid, jobs[i].syscall);
    CHECK_EQ("write", 5, write(in_pipe[1], "hello", 5));
    CHECK_EQ("send", 3, send(pair[1], "abc", 3, 0));
    int client = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(connect(client, (struct sockaddr *)&addr, sizeof addr));
    MUST(flock(held_fd, LOCK_UN));
    int fifo = MUST(open(tr_path("fifo"), O_WRONLY));
    drain();
    for (int i = 0; i < 6; i++)
        tr_thread_join(&threads[i]);
    close(fifo);
    return tr_pass(NULL);
}
