/* A service that counts: every 10 ms it appends "BOOTTIME_MS PIDNS NUMBER" to a file, and it answers TCP connections with the
 * number. Whoever reads the file knows which instance ran when, and what each one remembered. Asked with a "w" it writes to
 * 8 MiB of its memory first. "rN" adds record N, "l" tells how many records there are, or -1 if they are not 1, 2, 3 ... */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char memory[8 << 20];
static long records[1 << 20], recorded;

/* What is answered to a question, at this tick. */
static long answer(const char *ask, long number)
{
    switch (ask[0]) {
    case 'w':
        memset(memory, (int)number, sizeof memory);
        return number;
    case 'r':
        if (recorded < (long)(sizeof records / sizeof *records))
            records[recorded++] = atol(ask + 1);
        return recorded;
    case 'l':
        for (long i = 0; i < recorded; i++)
            if (records[i] != i + 1)
                return -1;
        return recorded;
    default:
        return number;
    }
}

static long long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    int out = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0644);
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (out < 0 || bind(listener, (void *)&address, sizeof address) || listen(listener, 64))
        return 3;
    struct pollfd fds[64] = { { .fd = listener, .events = POLLIN } };
    int count = 1;
    for (long number = 1;; number++) {
        char line[128], space[64] = "";
        if (readlink("/proc/self/ns/pid", space, sizeof space - 1) < 0)
            return 4;
        int length = snprintf(line, sizeof line, "%lld %s %ld\n", now_ms(), space, number);
        if (write(out, line, length) != length)
            return 5;
        long long due = now_ms() + 10;
        for (long long left; (left = due - now_ms()) > 0;) {
            if (poll(fds, count, left) <= 0)
                continue;
            if (fds[0].revents && count < 64) {
                int client = accept(listener, NULL, NULL);
                if (client >= 0)
                    fds[count++] = (struct pollfd){ .fd = client, .events = POLLIN };
            }
            for (int i = 1; i < count; i++) {
                char ask[256] = "";
                if (!fds[i].revents)
                    continue;
                ssize_t got = read(fds[i].fd, ask, sizeof ask - 1);
                if (got > 0) {
                    length = snprintf(line, sizeof line, "%ld\n", answer(ask, number));
                    got = write(fds[i].fd, line, length);
                }
                if (got <= 0) {
                    close(fds[i].fd);
                    fds[i--] = fds[--count];
                }
            }
        }
    }
}
