/* Storms: forks, spawned programs, threads, mappings, execs, or an early exit; each checks itself. Counts in `beat`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* In place, in one call: a frame may be taken while the file is open, and then depends on its name. */
static void put(const char *name, const char *text)
{
    char line[256];
    int len = snprintf(line, sizeof line, "%-20s\n", text);
    int fd = open(name, O_CREAT | O_WRONLY | O_CLOEXEC, 0666);
    if (fd < 0 || pwrite(fd, line, len, 0) != len || close(fd) != 0)
        _exit(2);
}

static void beat(unsigned long n)
{
    char text[32];
    snprintf(text, sizeof text, "%lu", n);
    put("beat", text);
}

static void fail(const char *what)
{
    char text[256];
    snprintf(text, sizeof text, "%s: %s", what, strerror(errno));
    put("failed", text);
    _exit(1);
}

static void forks(void)
{
    pid_t pid = fork();
    if (pid < 0)
        fail("fork");
    if (pid == 0) {
        pid_t inner = fork();
        if (inner == 0)
            _exit(7);
        int status;
        _exit(waitpid(inner, &status, 0) == inner && WEXITSTATUS(status) == 7 ? 3 : 4);
    }
    int status;
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 3)
        fail("a child came back wrong");
}

/* The parent of each sleeps in vfork until the exec. */
static void vforks(void)
{
    char *args[] = {"sh", "-c", "exit 6", NULL};
    pid_t pid;
    int status;
    if ((errno = posix_spawn(&pid, "/bin/sh", NULL, NULL, args, environ)) != 0)
        fail("posix_spawn");
    if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 6)
        fail("a spawned program came back wrong");
}

static void *give_back(void *arg) { return (char *)arg + 1; }

static void threads(void)
{
    pthread_t some[8];
    char base[8];
    for (int i = 0; i < 8; i++)
        if ((errno = pthread_create(&some[i], NULL, give_back, base + i)) != 0)
            fail("pthread_create");
    for (int i = 0; i < 8; i++) {
        void *got;
        if (pthread_join(some[i], &got) != 0 || got != base + i + 1)
            fail("a thread gave back something else");
    }
}

static void mappings(unsigned long n)
{
    static char *live[32];
    static unsigned char tag[32];
    unsigned slot = n % 32;
    size_t size = 4096 * (slot + 1);
    if (live[slot] != NULL) {
        for (size_t i = 0; i < size; i += 512)
            if ((unsigned char)live[slot][i] != tag[slot])
                fail("a mapping changed");
        if (munmap(live[slot], size) != 0)
            fail("munmap");
    }
    live[slot] = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (live[slot] == MAP_FAILED)
        fail("mmap");
    tag[slot] = (unsigned char)(n / 32 + slot + 1);
    memset(live[slot], tag[slot], size);
    if (n % 3 == 0 && mprotect(live[slot], 4096, PROT_READ) != 0)
        fail("mprotect");
}

static void execs(char **argv, unsigned long n)
{
    char count[32];
    snprintf(count, sizeof count, "%lu", n + 1);
    usleep(300);
    execl("/proc/self/exe", argv[0], "execs", count, NULL);
    fail("exec");
}

int main(int argc, char **argv)
{
    const char *kind = argc > 1 ? argv[1] : "";
    unsigned long n = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    if (strcmp(kind, "exits") == 0)
        return usleep((useconds_t)n), 5;
    for (;; n++) {
        if (strcmp(kind, "forks") == 0)
            forks();
        else if (strcmp(kind, "vforks") == 0)
            vforks();
        else if (strcmp(kind, "threads") == 0)
            threads();
        else if (strcmp(kind, "mappings") == 0)
            mappings(n);
        if (n % 16 == 0)
            beat(n + 1);
        if (strcmp(kind, "execs") == 0)
            execs(argv, n);
    }
}
