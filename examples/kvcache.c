/* An in-memory cache with snapshots under load: a hash table with chained entries in one region, pointers inside included, which
 * a second run finds as it was. A writer thread changes it all the time; a lock in the hooks makes the snapshot's instant
 * consistent, and the writer is held up for the split only.
 *
 *     cc -std=c11 -pthread -o kvcache kvcache.c $(pkg-config --cflags --libs stillframe) && ./kvcache STORE [SECONDS]
 */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "stillframe.h"

#define BUCKETS 4096
#define ENTRIES 100000

struct entry {
    struct entry *next;
    uint64_t key, value;
};

/* All of the cache, in one region that comes back at the same address. */
struct cache {
    uint64_t puts; /* made so far */
    uint64_t sum;  /* of all values, which the entries must agree with */
    struct entry *buckets[BUCKETS];
    uint64_t used;
    struct entry entries[ENTRIES];
};

static struct cache *cache;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static volatile int stop;

static void must(int status, const char *what)
{
    if (status != SF_OK) {
        fprintf(stderr, "%s: %s\n", what, sf_error_message());
        exit(1);
    }
}

static void put(uint64_t key, uint64_t value)
{
    struct entry **bucket = &cache->buckets[key % BUCKETS], *entry;
    for (entry = *bucket; entry != NULL && entry->key != key; entry = entry->next)
        ;
    if (entry == NULL) {
        if (cache->used == ENTRIES)
            return;
        entry = &cache->entries[cache->used++];
        *entry = (struct entry){*bucket, key, 0};
        *bucket = entry;
    }
    cache->sum += value - entry->value;
    entry->value = value;
    cache->puts++;
}

/* Walks all chains: the sum must be that of the entries, and every entry must be reached. */
static void check(void)
{
    uint64_t sum = 0, seen = 0;
    for (size_t at = 0; at < BUCKETS; at++)
        for (struct entry *entry = cache->buckets[at]; entry != NULL; entry = entry->next, seen++)
            sum += entry->value;
    if (sum != cache->sum || seen != cache->used) {
        fprintf(stderr, "the cache is torn: %" PRIu64 " entries of %" PRIu64 ", sum %" PRIu64 " of %" PRIu64 "\n", seen, cache->used, sum, cache->sum);
        exit(1);
    }
}

static void *writer(void *unused)
{
    uint64_t seed = 1;
    (void)unused;
    while (!stop) {
        pthread_mutex_lock(&lock);
        for (int n = 0; n < 100; n++) {
            seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
            put((seed >> 33) % (2 * ENTRIES), seed >> 40);
        }
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static int take_lock(void *user)
{
    (void)user;
    return pthread_mutex_lock(&lock);
}

static void give_lock(void *user)
{
    (void)user;
    pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: kvcache STORE [SECONDS]\n");
        return 2;
    }
    double seconds = argc > 2 ? strtod(argv[2], NULL) : 5;
    struct sf_options options = SF_OPTIONS_INIT;
    options.store = argv[1];
    options.keep = 2;
    options.same_addresses = 1;
    struct sf_hooks hooks = SF_HOOKS_INIT;
    hooks.quiesce = take_lock;
    hooks.resume = give_lock;
    sf_session *session;
    must(sf_open("kvcache", &options, &hooks, &session), "cannot open a session");
    void *memory;
    must(sf_region_alloc(session, "cache", sizeof(struct cache), &memory), "cannot allocate the cache");
    cache = memory;
    check();
    printf("starts with %" PRIu64 " entries after %" PRIu64 " puts\n", cache->used, cache->puts);

    pthread_t thread;
    if (pthread_create(&thread, NULL, writer, NULL) != 0)
        return 1;
    time_t end = time(NULL) + (time_t)seconds;
    uint64_t taken = 0, longest = 0, bytes = 0;
    do {
        sf_ticket *ticket;
        struct sf_info info = {.size = sizeof info};
        must(sf_snapshot(session, NULL, 0, &ticket), "cannot take a snapshot");
        must(sf_wait(ticket, SF_STORED, -1, &info), "a snapshot failed");
        must(sf_ticket_free(ticket), "cannot free a ticket");
        taken++;
        bytes += info.changed_bytes;
        longest = info.pause_ns > longest ? info.pause_ns : longest;
        nanosleep(&(struct timespec){0, 100 * 1000 * 1000}, NULL);
    } while (time(NULL) < end);
    stop = 1;
    pthread_join(thread, NULL);
    printf("%" PRIu64 " snapshots under load held it up for %.2f ms at most and stored %.1f MiB\n", taken, (double)longest / 1e6, (double)bytes / (1 << 20));
    printf("ends after %" PRIu64 " puts\n", cache->puts);
    must(sf_close(session), "a snapshot failed");
    return 0;
}
