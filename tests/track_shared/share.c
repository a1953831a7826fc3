/*
 * Processes that write to memory they share, without end: `share SEED PROCESSES MIB HABITS`. HABITS is a text of letters:
 *   p  punch holes, read what was punched          d  drop pages, change protections, page out
 *   m  move, end and make mappings                 f  fork children that write and exit at once
 *   w  write(2) to a memfd that stays open         o  let a process outside the tree hold a mapping
 *   z  sleep a good deal                           r  replace worker processes
 * It checks nothing itself; whoever looks compares a frame with what the stopped processes share.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, KINDS = 4, ANON = 0, SEALED = 1, SYSV = 2, OPEN = 3 };

struct pool {
    char *at;     /* every process has it here */
    char *second; /* a mapping that moves about */
    size_t pages;
};

static struct pool pools[KINDS];
static const char *habits;
static int segment, file;
static uint64_t seed;

static uint64_t next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static void must(int ok, const char *what)
{
    if (!ok) {
        perror(what);
        _exit(1);
    }
}

static int likes(char habit)
{
    return strchr(habits, habit) != NULL;
}

static void scribble(char *page)
{
    ((volatile uint64_t *)page)[next() % (PAGE / 8)] = next();
}

static char *view(struct pool *p)
{
    return p->second && next() % 2 ? p->second : p->at;
}

static size_t part(const struct pool *p, size_t *len)
{
    size_t at = next() % p->pages;
    *len = 1 + next() % (p->pages - at > 64 ? 64 : p->pages - at);
    return at;
}

static void punch(struct pool *p)
{
    size_t len, at = part(p, &len);
    must(madvise(view(p) + at * PAGE, len * PAGE, MADV_REMOVE) == 0, "MADV_REMOVE");
    if (next() % 2)
        for (size_t i = 0; i < len; i++)
            (void)*(volatile char *)(view(p) + (at + i) * PAGE);
    if (next() % 4 == 0)
        scribble(view(p) + at * PAGE);
}

static void drop(struct pool *p)
{
    static const int advice[] = {MADV_DONTNEED, 21 /* MADV_PAGEOUT */, 20 /* MADV_COLD */};
    size_t len, at = part(p, &len);
    char *start = view(p) + at * PAGE;
    int r = madvise(start, len * PAGE, advice[next() % 3]);
    must(r == 0 || errno == EINVAL, "madvise");
    /* A segment that is mapped in parts cannot be brought back. */
    if (p != &pools[SYSV] && next() % 3 == 0) {
        must(mprotect(start, len * PAGE, PROT_READ) == 0, "mprotect");
        must(mprotect(start, len * PAGE, PROT_READ | PROT_WRITE) == 0, "mprotect");
    }
}

/* There is one second mapping at most, so that a mapping that came and went leaves a trace. */
static void move(struct pool *p)
{
    size_t len = p->pages * PAGE;
    int kind = p - pools;
    if (!p->second && kind == SYSV) {
        p->second = shmat(segment, NULL, 0);
    } else if (!p->second) {
        p->second = mremap(p->at, 0, len, MREMAP_MAYMOVE);
    } else if (kind != SYSV && next() % 2) {
        char *place = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        must(place != MAP_FAILED, "mmap");
        p->second = mremap(p->second, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, place);
    } else {
        must((kind == SYSV ? shmdt(p->second) : munmap(p->second, len)) == 0, "munmap");
        p->second = NULL;
    }
    must(p->second != MAP_FAILED, "a second mapping");
}

static void write_some(struct pool *p)
{
    for (int i = 0; i < 30; i++)
        scribble(view(p) + next() % p->pages * PAGE);
}

static void spawn(struct pool *p)
{
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        write_some(p);
        if (next() % 2)
            usleep(next() % 2000);
        write_some(p);
        _exit(0);
    }
    must(waitpid(pid, NULL, 0) == pid, "waitpid");
}

static void put(void)
{
    uint64_t words[16];
    for (int i = 0; i < 16; i++)
        words[i] = next();
    off_t at = next() % (pools[OPEN].pages * PAGE - sizeof words);
    must(pwrite(file, words, sizeof words, at) == sizeof words, "pwrite");
}

static void step(void)
{
    struct pool *p = &pools[next() % KINDS];
    switch (next() % 40) {
    case 0: case 1: case 2: if (likes('p')) punch(p); break;
    case 3: case 4: if (likes('d')) drop(p); break;
    case 5: if (likes('m')) move(p); break;
    case 6: if (likes('f')) spawn(p); break;
    case 7: if (likes('w')) put(); break;
    case 8: { /* only read */
        size_t len, at = part(p, &len);
        for (size_t i = 0; i < len; i++)
            (void)*(volatile char *)(view(p) + (at + i) * PAGE);
        break;
    }
    case 9: {
        size_t len, at = part(p, &len);
        memset(view(p) + at * PAGE, (int)next(), len * PAGE);
        break;
    }
    default: write_some(p);
    }
    usleep(likes('z') ? 2000 + next() % 3000 : next() % 400);
}

static void work(uint64_t own, int steps)
{
    seed = own;
    for (int i = 0; steps < 0 || i < steps; i++)
        step();
    _exit(0);
}

static pid_t hire(int steps)
{
    uint64_t own = next() | 1;
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0)
        work(own, steps);
    return pid;
}

/* A grandchild whose parent goes at once is nobody's of the tree. */
static void leave(void)
{
    uint64_t own = next() | 1;
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        if (fork() == 0) {
            seed = own;
            for (;;) {
                write_some(&pools[ANON]);
                usleep(500);
            }
        }
        _exit(0);
    }
    must(waitpid(pid, NULL, 0) == pid, "waitpid");
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    seed = strtoull(argv[1], NULL, 10) * 2654435761u + 88172645463325252ull;
    int processes = atoi(argv[2]);
    habits = argv[4];
    /* So that the memory is younger than its maker, to the hundredth of a second. */
    usleep(50000);
    for (int kind = 0; kind < KINDS; kind++)
        pools[kind].pages = kind == ANON ? (size_t)atoi(argv[3]) * 256 : 512;
    pools[ANON].at = mmap(NULL, pools[ANON].pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int kind = SEALED; kind <= OPEN; kind += OPEN - SEALED) {
        file = memfd_create(kind == OPEN ? "open" : "sealed", MFD_CLOEXEC);
        must(file >= 0 && ftruncate(file, pools[kind].pages * PAGE) == 0, "memfd");
        pools[kind].at = mmap(NULL, pools[kind].pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (kind == SEALED)
            close(file);
    }
    segment = shmget(IPC_PRIVATE, pools[SYSV].pages * PAGE, 0600);
    must(segment >= 0, "shmget");
    pools[SYSV].at = shmat(segment, NULL, 0);
    /* It ends with its last mapping; until then it can be attached again. */
    must(shmctl(segment, IPC_RMID, NULL) == 0, "IPC_RMID");
    for (int kind = 0; kind < KINDS; kind++) {
        must(pools[kind].at != MAP_FAILED && pools[kind].at != NULL, "mapping");
        for (size_t i = 0; i < pools[kind].pages; i++)
            if (next() % 8)
                scribble(pools[kind].at + i * PAGE);
    }
    if (likes('o'))
        leave();
    for (int i = 0; i < processes; i++)
        hire(-1);
    int ready = open("ready", O_CREAT | O_WRONLY, 0600);
    must(write(ready, "1", 1) == 1, "write");
    close(ready);
    for (;;) {
        if (!likes('r'))
            pause();
        usleep(next() % 30000);
        pid_t pid = hire(1 + next() % 30);
        must(waitpid(pid, NULL, 0) == pid, "waitpid");
    }
}
