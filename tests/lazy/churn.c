/* Memory with a known content, used in every way while it is still on its way: read and written at random, dropped, moved,
 * unmapped, protected, forked. Usage: churn DIR MIB. Publishes "ready"; starts when "go" is there; ends with "failed" or
 * "done", then stays. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define WORDS (PAGE / 8)
#define CHUNK 16UL /* pages that are dropped, moved and unmapped together */

enum { READ, WRITE, DROP, MOVE, UNMAP, PROTECT, FORK, REGIONS };

static const char *dir;
static size_t pages; /* of each region */
static uint64_t *region[REGIONS], *elsewhere;
static volatile int go;

static void publish(const char *name, const char *text)
{
    char path[512], fresh[512];
    snprintf(fresh, sizeof fresh, "%s/.%s.%d", dir, name, (int)gettid());
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(fresh, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        abort();
    close(fd);
    rename(fresh, path);
}

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    char text[400];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    publish("failed", text);
    _exit(1);
}

static uint64_t mix(uint64_t x)
{
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15ULL;
    return x ^ (x >> 29);
}

/* What word `word` of page `page` of region `number` holds in its version `version`. */
static uint64_t content(int number, size_t page, int version, size_t word)
{
    return mix(((uint64_t)number << 56) + ((uint64_t)version << 48) + page * WORDS + word + 1);
}

static void fill(uint64_t *at, int number, size_t page, int version)
{
    for (size_t word = 0; word < WORDS; word++)
        at[word] = content(number, page, version, word);
}

static void check(const char *when, uint64_t *at, int number, size_t page, int version)
{
    for (size_t word = 0; word < WORDS; word++)
        if (at[word] != content(number, page, version, word))
            fail("%s: region %d page %zu word %zu at %p holds %llx instead of %llx", when, number, page, word,
                 (void *)&at[word], (unsigned long long)at[word],
                 (unsigned long long)content(number, page, version, word));
}

static void check_zero(const char *when, uint64_t *at)
{
    for (size_t word = 0; word < WORDS; word++)
        if (at[word] != 0)
            fail("%s: word %zu at %p holds %llx instead of zero", when, word, (void *)&at[word],
                 (unsigned long long)at[word]);
}

static uint64_t *page_of(int number, size_t page) { return region[number] + page * WORDS; }

/* Visits all numbers below `count` in an order that looks random: `count` is a power of two, the step odd. */
static size_t shuffled(size_t index, size_t count, uint64_t seed) { return (index * (2 * mix(seed) + 1) + mix(seed + 1)) % count; }

static void *reader(void *argument)
{
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    while (!go)
        usleep(100);
    for (size_t i = 0; i < pages; i++) {
        size_t page = shuffled(i, pages, seed);
        check("read", page_of(READ, page), READ, page, 0);
    }
    return NULL;
}

static void *writer(void *argument)
{
    (void)argument;
    while (!go)
        usleep(100);
    for (size_t i = 0; i < pages; i++) {
        size_t page = shuffled(i, pages, 7);
        /* Every other page is written before it is read. */
        if (page % 2)
            check("before a write", page_of(WRITE, page), WRITE, page, 0);
        fill(page_of(WRITE, page), WRITE, page, 1);
    }
    for (size_t page = 0; page < pages; page++)
        check("after a write", page_of(WRITE, page), WRITE, page, 1);
    return NULL;
}

static void *dropper(void *argument)
{
    (void)argument;
    while (!go)
        usleep(100);
    for (size_t i = 0; i < pages / CHUNK; i++) {
        size_t first = shuffled(i, pages / CHUNK, 11) * CHUNK;
        if (i % 3 == 0)
            check("before a drop", page_of(DROP, first), DROP, first, 0);
        if (madvise(page_of(DROP, first), (CHUNK / 2) * PAGE, MADV_DONTNEED) != 0)
            fail("madvise: %s", strerror(errno));
        for (size_t page = first; page < first + CHUNK / 2; page++)
            if (page % 2)
                check_zero("after a drop", page_of(DROP, page));
            else
                fill(page_of(DROP, page), DROP, page, 1);
    }
    return NULL;
}

static void *mover(void *argument)
{
    (void)argument;
    while (!go)
        usleep(100);
    for (size_t i = 0; i < pages / CHUNK; i++) {
        size_t first = shuffled(i, pages / CHUNK, 13) * CHUNK;
        void *to = elsewhere + first * WORDS;
        if (mremap(page_of(MOVE, first), CHUNK * PAGE, CHUNK * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
            fail("mremap: %s", strerror(errno));
        if (i % 2)
            check("after a move", elsewhere + (first + 3) * WORDS, MOVE, first + 3, 0);
    }
    return NULL;
}

static void *unmapper(void *argument)
{
    (void)argument;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    while (!go)
        usleep(100);
    for (size_t i = 0; i < pages / CHUNK; i += 2) {
        size_t first = shuffled(i, pages / CHUNK, 17) * CHUNK;
        if (munmap(page_of(UNMAP, first), CHUNK / 2 * PAGE) != 0)
            fail("munmap: %s", strerror(errno));
        if (mmap(page_of(UNMAP, first), CHUNK / 2 * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
            fail("mmap: %s", strerror(errno));
        check_zero("mapped anew", page_of(UNMAP, first));
        check("beside what was unmapped", page_of(UNMAP, first + CHUNK / 2), UNMAP, first + CHUNK / 2, 0);
        fill(page_of(UNMAP, first), UNMAP, first, 1);
    }
    return NULL;
}

static void *protector(void *argument)
{
    (void)argument;
    while (!go)
        usleep(100);
    for (size_t i = 0; i < pages / CHUNK; i += 5) {
        size_t first = shuffled(i, pages / CHUNK, 19) * CHUNK;
        if (mprotect(page_of(PROTECT, first), CHUNK / 2 * PAGE, i % 2 ? PROT_NONE : PROT_READ) != 0)
            fail("mprotect: %s", strerror(errno));
        check("beside what was protected", page_of(PROTECT, first + CHUNK / 2), PROTECT, first + CHUNK / 2, 0);
        if (mprotect(page_of(PROTECT, first), CHUNK / 2 * PAGE, PROT_READ | PROT_WRITE) != 0)
            fail("mprotect: %s", strerror(errno));
        check("unprotected", page_of(PROTECT, first), PROTECT, first, 0);
    }
    return NULL;
}

/* A child sees the memory as it was at its birth, whatever it and its parent do with theirs. */
static void child(int round)
{
    pid_t grandchild = round % 3 == 1 ? fork() : 0;
    for (size_t i = 0; i < pages / 8; i++) {
        size_t page = shuffled(i * 5 + (size_t)round, pages, 23 + (uint64_t)round);
        check("in a child", page_of(FORK, page), FORK, page, 0);
        if (i % 16 == 0) {
            madvise(page_of(FORK, page), PAGE, MADV_DONTNEED);
            check_zero("dropped by a child", page_of(FORK, page));
            fill(page_of(FORK, page), FORK, page, 0);
        }
    }
    int status = 0;
    if (grandchild != 0 && (waitpid(grandchild, &status, 0) != grandchild || status != 0))
        fail("grandchild %d: status %x, %s", (int)grandchild, status, strerror(errno));
    _exit(0);
}

static void forks(void)
{
    for (int round = 0; round < 12; round++) {
        pid_t pid = fork();
        if (pid == 0)
            child(round);
        int status;
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
            fail("child %d of round %d: status %x, %s", (int)pid, round, status, strerror(errno));
    }
}

static void check_all(void)
{
    for (size_t page = 0; page < pages; page++) {
        size_t in_chunk = page % CHUNK;
        check("at the end", page_of(READ, page), READ, page, 0);
        check("at the end", page_of(WRITE, page), WRITE, page, 1);
        check("at the end", elsewhere + page * WORDS, MOVE, page, 0);
        check("at the end", page_of(PROTECT, page), PROTECT, page, 0);
        check("at the end", page_of(FORK, page), FORK, page, 0);
        if (in_chunk >= CHUNK / 2) {
            check("not dropped", page_of(DROP, page), DROP, page, 0);
            check("not unmapped", page_of(UNMAP, page), UNMAP, page, 0);
        } else if (page % 2) {
            check_zero("dropped, at the end", page_of(DROP, page));
        } else {
            check("written after a drop", page_of(DROP, page), DROP, page, 1);
        }
    }
}

int main(int count, char **arguments)
{
    if (count < 3)
        return 2;
    dir = arguments[1];
    for (pages = CHUNK; pages * 2 * REGIONS * PAGE <= (strtoul(arguments[2], NULL, 10) << 20);)
        pages *= 2;
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    for (int number = 0; number < REGIONS; number++) {
        region[number] = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
        for (size_t page = 0; page < pages; page++)
            fill(page_of(number, page), number, page, 0);
    }
    elsewhere = mmap(NULL, pages * PAGE, PROT_NONE, flags, -1, 0);
    void *(*const work[])(void *) = {reader, reader, writer, dropper, mover, unmapper, protector};
    pthread_t threads[sizeof work / sizeof *work];
    for (size_t i = 0; i < sizeof work / sizeof *work; i++)
        if (pthread_create(&threads[i], NULL, work[i], (void *)(uintptr_t)(i + 1)) != 0)
            return 2;
    publish("ready", "1");
    char path[512];
    snprintf(path, sizeof path, "%s/go", dir);
    while (access(path, F_OK) != 0)
        usleep(1000);
    go = 1;
    forks();
    for (size_t i = 0; i < sizeof work / sizeof *work; i++)
        pthread_join(threads[i], NULL);
    check_all();
    publish("done", "1");
    for (;;)
        pause();
}
