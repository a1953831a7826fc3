/*
 * Does to its memory whatever a program can do to private memory, without end: `churn SEED THREADS MIB CHILDREN`.
 * It checks nothing itself; whoever looks compares a frame with what the stopped process holds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#define MADV_GUARD_REMOVE 103
#endif

enum { PAGE = 4096, AREAS = 12 };

struct area {
    char *at;
    size_t pages;
};

struct worker {
    uint64_t seed;
    struct area fixed, areas[AREAS];
};

static const char *backing = "churn.data";
static int mib, children;

static uint64_t next(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

static void must(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        _exit(1);
    }
}

static void scribble(uint64_t *x, char *page)
{
    ((uint64_t *)page)[next(x) % (PAGE / 8)] = next(x);
}

/* Part of an area: offset and length in pages. */
static size_t part(uint64_t *x, const struct area *a, size_t *len)
{
    size_t at = next(x) % a->pages;
    *len = 1 + next(x) % (a->pages - at);
    return at;
}

static struct area fresh(uint64_t *x)
{
    struct area a = {NULL, 1 + next(x) % (next(x) % 4 == 0 ? 1024 : 64)};
    int file = -1, flags = MAP_PRIVATE | MAP_ANONYMOUS;
    if (next(x) % 5 == 0) {
        file = open(backing, O_RDONLY);
        must(file >= 0, "open");
        flags = MAP_PRIVATE;
        a.pages = 1 + next(x) % 256;
    }
    a.at = mmap(NULL, a.pages * PAGE, PROT_READ | PROT_WRITE, flags, file, 0);
    must(a.at != MAP_FAILED, "mmap");
    if (file >= 0)
        close(file);
    for (size_t i = 0; i < a.pages; i++)
        if (next(x) % 3)
            scribble(x, a.at + i * PAGE);
    return a;
}

static void move(uint64_t *x, struct area *a)
{
    size_t pages = 1 + next(x) % (2 * a->pages > 2048 ? 2048 : 2 * a->pages);
    char *to = mremap(a->at, a->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
    if (to == MAP_FAILED) { /* Pieces mapped over do not move together. */
        must(munmap(a->at, a->pages * PAGE) == 0, "munmap");
        *a = fresh(x);
        return;
    }
    a->at = to;
    /* What lies beyond the end of the file cannot be touched. */
    if (pages < a->pages)
        a->pages = pages;
    else if (pages > a->pages)
        must(munmap(to + a->pages * PAGE, (pages - a->pages) * PAGE) == 0, "munmap");
}

static void advise(uint64_t *x, struct area *a, int advice)
{
    size_t len, at = part(x, a, &len);
    int r = madvise(a->at + at * PAGE, len * PAGE, advice);
    must(r == 0 || errno == EINVAL || errno == EAGAIN || errno == ENOMEM || errno == EBUSY, "madvise");
}

static void guard(uint64_t *x, struct area *a)
{
    size_t at = next(x) % a->pages;
    if (madvise(a->at + at * PAGE, PAGE, MADV_GUARD_INSTALL) == 0)
        if (next(x) % 2)
            usleep(next(x) % 3000);
    madvise(a->at + at * PAGE, PAGE, MADV_GUARD_REMOVE);
}

static void protect(uint64_t *x, struct area *a)
{
    size_t len, at = part(x, a, &len);
    static const int kinds[] = {PROT_READ, PROT_NONE, PROT_READ | PROT_EXEC};
    must(mprotect(a->at + at * PAGE, len * PAGE, kinds[next(x) % 3]) == 0, "mprotect");
    if (next(x) % 4 == 0)
        usleep(next(x) % 2000);
    must(mprotect(a->at + at * PAGE, len * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
}

static void step(struct worker *w)
{
    uint64_t *x = &w->seed;
    struct area *a = next(x) % 2 ? &w->fixed : &w->areas[next(x) % AREAS];
    size_t len, at;
    switch (next(x) % 24) {
    case 0: advise(x, a, MADV_DONTNEED); break;
    case 1: advise(x, a, MADV_FREE); break;
    case 2: advise(x, a, next(x) % 2 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE); break;
    case 3: guard(x, a); break;
    case 4: protect(x, a); break;
    case 5:
        a = &w->areas[next(x) % AREAS];
        must(munmap(a->at, a->pages * PAGE) == 0, "munmap");
        *a = fresh(x);
        break;
    case 6: move(x, &w->areas[next(x) % AREAS]); break;
    case 7: /* Memory mapped over, in place. */
        at = part(x, a, &len);
        must(mmap(a->at + at * PAGE, len * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED, "mmap");
        break;
    case 8: /* Pages that are only read are the page of zeros. */
        at = part(x, a, &len);
        for (size_t i = 0; i < len; i++)
            (void)*(volatile char *)(a->at + (at + i) * PAGE);
        break;
    case 9: advise(x, a, 25 /* MADV_COLLAPSE */); break;
    case 10: advise(x, a, 21 /* MADV_PAGEOUT */); break;
    case 11:
        at = part(x, a, &len);
        memset(a->at + at * PAGE, (int)next(x), len * PAGE);
        break;
    default:
        for (int i = 0; i < 40; i++)
            scribble(x, a->at + next(x) % a->pages * PAGE);
    }
}

static void *work(void *p)
{
    struct worker *w = p;
    w->fixed.pages = (size_t)mib * 256;
    w->fixed.at = mmap(NULL, w->fixed.pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(w->fixed.at != MAP_FAILED, "mmap");
    memset(w->fixed.at, 1, w->fixed.pages * PAGE);
    for (int i = 0; i < AREAS; i++)
        w->areas[i] = fresh(&w->seed);
    for (;;) {
        step(w);
        if (next(&w->seed) % 16 == 0)
            usleep(200);
    }
    return NULL;
}

/* Forks during rounds and between them; a child changes what it got, and goes. */
static void breed(uint64_t x, struct worker *w)
{
    for (;;) {
        usleep(next(&x) % 40000);
        pid_t pid = fork();
        must(pid >= 0, "fork");
        if (pid == 0) {
            for (int i = 0; i < 200; i++) {
                scribble(&x, w->fixed.at + next(&x) % w->fixed.pages * PAGE);
                usleep(next(&x) % 400);
            }
            _exit(0);
        }
        must(waitpid(pid, NULL, 0) == pid, "waitpid");
    }
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    uint64_t seed = strtoull(argv[1], NULL, 10) * 2654435761u + 88172645463325252ull;
    int threads = atoi(argv[2]);
    mib = atoi(argv[3]), children = atoi(argv[4]);
    int file = open(backing, O_RDWR | O_CREAT | O_TRUNC, 0600);
    must(file >= 0, "open");
    for (int i = 0; i < 256 * PAGE / 8; i++) {
        uint64_t word = next(&seed);
        must(write(file, &word, 8) == 8, "write");
    }
    close(file);
    struct worker *workers = calloc(threads, sizeof *workers);
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        workers[i].seed = next(&seed) | 1;
        must(pthread_create(&t, NULL, work, &workers[i]) == 0, "pthread_create");
    }
    usleep(300000);
    int ready = open("ready", O_CREAT | O_WRONLY, 0600);
    must(write(ready, "1", 1) == 1, "write");
    close(ready);
    if (children)
        breed(next(&seed) | 1, &workers[0]);
    for (;;)
        pause();
}
