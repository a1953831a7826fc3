/* Pipes: bytes inside, capacity, packet mode, non-blocking, half closed, full. */
#include "tracee.h"

#include <poll.h>
#include <sys/ioctl.h>

int main(int argc, char **argv)
{
    static char big[256 * 1024], back[256 * 1024];
    int p[2], large[2], packet[2], no_reader[2], no_writer[2], full[2];
    ssize_t n, stuffed = 0;
    tr_init(argc, argv);
    MUST((long)signal(SIGPIPE, SIG_IGN));
    MUST(pipe2(p, O_NONBLOCK | O_CLOEXEC));
    MUST(pipe(large));
    MUST(pipe2(packet, O_DIRECT));
    MUST(pipe(no_reader));
    MUST(pipe(no_writer));
    MUST(pipe2(full, O_NONBLOCK));
    CHECK_EQ("capacity", 1 << 20, fcntl(large[1], F_SETPIPE_SZ, 1 << 20));
    tr_fill(big, sizeof big, 1);
    CHECK_EQ("write", 11, write(p[1], "hello world", 11));
    CHECK_EQ("read", 6, read(p[0], back, 6));
    CHECK_EQ("write", sizeof big, write(large[1], big, sizeof big));
    CHECK_EQ("write", 3, write(packet[1], "one", 3));
    CHECK_EQ("write", 5, write(packet[1], "three", 5));
    close(no_reader[0]);
    CHECK_EQ("write", 4, write(no_writer[1], "last", 4));
    close(no_writer[1]);
    while ((n = write(full[1], big + stuffed, 4096)) > 0)
        stuffed += n;

    tr_hold();

    CHECK_EQ("bytes left", 5, read(p[0], back, 100));
    CHECK(memcmp(back, "world", 5) == 0, "wrong bytes left");
    CHECK(read(p[0], back, 1) == -1 && errno == EAGAIN, "the pipe is no longer non-blocking");
    CHECK_EQ("close-on-exec", FD_CLOEXEC, fcntl(p[1], F_GETFD));
    CHECK_EQ("flags of the write end", O_WRONLY | O_NONBLOCK, fcntl(p[1], F_GETFL));
    CHECK_EQ("capacity", 1 << 20, fcntl(large[0], F_GETPIPE_SZ));
    CHECK_EQ("default capacity", 65536, fcntl(p[0], F_GETPIPE_SZ));
    CHECK_EQ("FIONREAD", 0, ioctl(large[0], FIONREAD, &n));
    CHECK_EQ("bytes in the large pipe", sizeof big, (int)n);
    CHECK_EQ("read", sizeof big, read(large[0], back, sizeof back));
    tr_verify("large pipe", back, sizeof back, 1);
    CHECK_EQ("first packet", 3, read(packet[0], back, 100));
    CHECK_EQ("second packet", 5, read(packet[0], back, 100));
    CHECK_EQ("packet mode", O_WRONLY | O_DIRECT, fcntl(packet[1], F_GETFL));
    CHECK(write(no_reader[1], "x", 1) == -1 && errno == EPIPE, "write without a reader: %s",
          strerror(errno));
    CHECK_EQ("bytes before the end", 4, read(no_writer[0], back, 100));
    CHECK_EQ("end of file", 0, read(no_writer[0], back, 100));
    struct pollfd pf = {full[1], POLLOUT, 0};
    CHECK_EQ("a full pipe is not writable", 0, poll(&pf, 1, 0));
    for (ssize_t got = 0; got < stuffed; got += n)
        n = MUST(read(full[0], back + got, sizeof back - got));
    CHECK(memcmp(back, big, (size_t)stuffed) == 0, "bytes of the full pipe changed");
    return tr_pass(NULL);
}
