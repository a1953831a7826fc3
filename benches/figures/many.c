/* `many THREADS DESCRIPTORS MIB`: sleeping threads, open files and pipes, touched memory; its beat goes to `state`. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static void *rest(void *unused)
{
    for (;;)
        sleep(1000);
    return unused;
}

static long long now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    struct rlimit most = {8192, 8192};
    setrlimit(RLIMIT_NOFILE, &most);
    for (int i = atoi(argv[2]); i > 0; i -= 2) {
        int ends[2];
        if (i % 4 == 0 ? pipe(ends) : (ends[0] = open("/etc/passwd", O_RDONLY), ends[1] = open("/dev/null", O_RDWR), 0))
            return 2;
    }
    size_t len = strtoul(argv[3], NULL, 10) << 20;
    memset(mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 7, len);
    for (int i = atoi(argv[1]); i > 1; i--) {
        pthread_t t;
        if (pthread_create(&t, NULL, rest, NULL) != 0)
            return 2;
    }
    long long last = now_ns(), gap = 0, look = last;
    for (unsigned long loops = 0;; loops++) {
        long long now = now_ns();
        if (now - last > gap)
            gap = now - last;
        last = now;
        if (now < look)
            continue;
        look = now + 10000000;
        int fd = open(".state", O_CREAT | O_TRUNC | O_WRONLY, 0666);
        dprintf(fd, "%lu %lld 0\n", loops, gap);
        close(fd);
        rename(".state", "state");
        if (unlink("reset") == 0)
            gap = 0, last = now_ns();
    }
}
