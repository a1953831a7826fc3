/*
 * Touches N MiB of private memory in 4 KiB pages, rewrites random pages at a rate, 4,000 a second if none is given, and knows the
 * longest gap in its own loop. Commands are files in the working directory: `reset` forgets the gap, `fork` makes it fork itself as a
 * snapshot would, with the child living for a second. Reports in `state`: loops, longest gap in ns, ns of the last fork.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096 };

static uint64_t dice = 88172645463325252ULL;

static uint64_t roll(void)
{
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    return dice;
}

static long long now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static void fill(char *memory, size_t pages, int random)
{
    for (size_t p = 0; p < pages; p++) {
        uint64_t *words = (uint64_t *)(memory + p * PAGE);
        for (size_t w = 0; w < PAGE / 8; w++)
            words[w] = random ? roll() : p * 31 + w / 8;
    }
}

static void report(unsigned long loops, long long gap, long long forked)
{
    char text[128];
    int n = snprintf(text, sizeof text, "%lu %lld %lld\n", loops, gap, forked);
    int fd = open(".state", O_CREAT | O_TRUNC | O_WRONLY, 0666);
    if (write(fd, text, (size_t)n) != n || close(fd) != 0 || rename(".state", "state") != 0)
        _exit(2);
}

static long long fork_once(pid_t *child)
{
    long long begun = now_ns();
    *child = fork();
    if (*child == 0) {
        sleep(1);
        _exit(0);
    }
    return now_ns() - begun;
}

int main(int argc, char **argv)
{
    if (argc != 3 && argc != 4)
        return 2;
    long long step = 1000000000LL / (argc == 4 ? atoll(argv[3]) : 4000);
    size_t pages = strtoul(argv[1], NULL, 10) * 256;
    char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || madvise(memory, pages * PAGE, MADV_NOHUGEPAGE) != 0)
        return 2;
    fill(memory, pages, strcmp(argv[2], "random") == 0);
    long long last = now_ns(), gap = 0, forked = 0, next_write = last, next_look = last;
    pid_t child = 0;
    for (unsigned long loops = 0;; loops++) {
        long long now = now_ns();
        if (now - last > gap)
            gap = now - last;
        last = now;
        if (now >= next_write) {
            ((uint64_t *)(memory + roll() % pages * PAGE))[roll() % 512] = roll();
            next_write += step;
            /* What was missed in a pause is not made up for. */
            if (next_write < now)
                next_write = now;
        }
        if (now < next_look)
            continue;
        next_look = now + 10000000;
        report(loops, gap, forked);
        if (child > 0 && waitpid(child, NULL, WNOHANG) == child)
            child = 0;
        if (unlink("reset") == 0) {
            gap = 0;
            forked = 0;
            last = now_ns();
        }
        if (child == 0 && unlink("fork") == 0) {
            last = now_ns();
            gap = 0;
            forked = fork_once(&child);
        }
    }
}
